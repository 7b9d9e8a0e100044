"""The images of particles: from stacks on disk, or from memory.

images = StackImages(read_particles("particles.star"))
batch = images.read(np.arange(100))          # float32 [100, box, box], bright particles
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from verglas.compute.native import in_threads, native_library, threads_for
from verglas.errors import InputError
from verglas.io.mrc_header import MrcHeader, read_header
from verglas.io.mrc_images import read_images
from verglas.particles.tables import ParticleSet

_SOURCE = Path(__file__).with_name("stack_reading.cpp")
_COPIES_AT_ONCE = 8
_STACKS_AT_ONCE = 8  # a disk, and a file system that many disks serve, read several files faster than one


class ImageSource(Protocol):
    """Where an engine takes particle images from."""

    box: int  # pixels
    pixel_size: float  # Å

    def __len__(self) -> int:
        """Number of images."""

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """Images of these particles, float32 or float16 [n, box, box]: on the CPU, unless they are made on a device."""


class ArrayImages:
    """Images that are in memory already: a tensor [n, box, box], float32 or float16, with its pixel size (Å)."""

    def __init__(self, images: torch.Tensor, pixel_size: float) -> None:
        self._images, self.pixel_size, self.box = images.contiguous(), pixel_size, int(images.shape[-1])

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """See `ImageSource.read`."""
        return _chosen(self._images, np.asarray(indices))


class StackImages:
    """Images named `000001@stack.mrcs`. Every stack and index is checked when the source is made, before any work.

    Raises InputError for a stack that is missing, an image outside it (the first is 1), and for boxes that differ.
    """

    def __init__(self, particles: ParticleSet) -> None:
        self.box, self.pixel_size = particles.optics.box_size, particles.optics.pixel_size
        self._stacks, self._stack_of, self._index = _locate([str(name) for name in particles.column("image_name")])
        by_stack = np.split(np.argsort(self._stack_of, kind="stable"), np.cumsum(np.bincount(self._stack_of))[:-1])
        self._headers = [_checked(stack, self.box, self._index[rows], rows) for stack, rows in zip(self._stacks, by_stack)]
        halves = all(header.dtype == np.float16 for header in self._headers)
        self.dtype = torch.float16 if halves else torch.float32

    def __len__(self) -> int:
        return len(self._index)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """See `ImageSource.read`. float16 where all stacks are. Each stack is opened once a call, several at a time."""
        out = room(len(indices), self.box, self.dtype)
        self._read_into(out.numpy(), np.asarray(indices))
        return out

    def preload(self) -> ArrayImages:
        """All images read into memory."""
        images = torch.empty(len(self), self.box, self.box, dtype=self.dtype)
        self._read_into(images.numpy(), np.arange(len(self)))
        return ArrayImages(images, self.pixel_size)

    def _read_into(self, out: np.ndarray, indices: np.ndarray) -> None:
        stack_of = self._stack_of[indices]
        by_stack = np.argsort(stack_of, kind="stable")
        parts = np.split(by_stack, np.flatnonzero(np.diff(stack_of[by_stack])) + 1) if len(indices) else []
        library = native_library(_SOURCE)
        stacks = [int(stack_of[rows[0]]) for rows in parts]
        if library is not None and parts and all(self._headers[stack].dtype == out.dtype for stack in stacks):
            parts = _read_straight(
                library, [self._stacks[k] for k in stacks], [self._headers[k] for k in stacks], self._index[indices], parts, out
            )

        def read(rows: np.ndarray) -> None:
            number, own = stack_of[rows[0]], self._index[indices[rows]]
            together = rows[-1] - rows[0] == len(rows) - 1
            into = out[rows[0] : rows[-1] + 1] if together else np.empty((len(rows), *out.shape[1:]), out.dtype)
            read_images(self._stacks[number], self._headers[number], own, into)
            if not together:
                out[rows] = into

        with ThreadPoolExecutor(_STACKS_AT_ONCE) as readers:
            for _ in readers.map(read, parts):
                pass


def _read_straight(
    library: ctypes.CDLL, stacks: list[Path], headers: list[MrcHeader], index: np.ndarray, parts: list[np.ndarray], out: np.ndarray
) -> list[np.ndarray]:
    """Read images `index` [n] of each part's stack into the rows of `out` [n, y, x] that the part names; returns the parts that failed.

    By compiled code, which needs Python's lock for nothing: thousands of single images would else hold up who computes meanwhile.
    """
    rows, wrong = np.concatenate(parts), np.zeros(len(parts), np.int64)
    paths = (ctypes.c_char_p * len(stacks))(*(os.fsencode(stack) for stack in stacks))
    starts = np.cumsum([0, *map(len, parts)])
    arrays = [np.array([header.offset for header in headers], np.int64), starts, index[rows], rows]
    tables = [ctypes.c_void_p(table.ctypes.data) for table in arrays]
    places = (ctypes.c_int64(out[0].nbytes), ctypes.c_void_p(out.ctypes.data), ctypes.c_void_p(wrong.ctypes.data))

    def part(thread: int, threads: int) -> None:
        library.read_stacks(paths, *tables, *places, *map(ctypes.c_int64, (len(parts), thread, threads)))

    in_threads(part, min(_STACKS_AT_ONCE, len(parts)))
    return [parts[k] for k in np.flatnonzero(wrong)]


class KeptImages:
    """Images of another source, kept in memory from their first reading on: each rank of many keeps those that it works with."""

    def __init__(self, source: ImageSource) -> None:
        self._source, self.box, self.pixel_size = source, source.box, source.pixel_size
        # the system gives memory for what is written only
        self._images = torch.empty(len(source), self.box, self.box, dtype=getattr(source, "dtype", torch.float32))
        self._kept = np.zeros(len(source), bool)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """See `ImageSource.read`."""
        indices = np.asarray(indices)
        new = np.unique(indices[~self._kept[indices]])
        if len(new):
            self._images[torch.from_numpy(new)] = self._source.read(new)
            self._kept[new] = True
        return _chosen(self._images, indices)


def _chosen(images: torch.Tensor, indices: np.ndarray) -> torch.Tensor:
    """A copy of images [n, box, box] in memory, made by several threads: torch takes one for large images."""
    out = room(len(indices), images.shape[-1], images.dtype)

    def part(thread: int, threads: int) -> None:
        own = slice(*(len(indices) * number // threads for number in (thread, thread + 1)))
        np.take(images.numpy(), indices[own], axis=0, out=out.numpy()[own], mode="clip")

    if len(indices) and not 0 <= indices.min() <= indices.max() < len(images):
        raise IndexError(f"images {indices.min()} to {indices.max()} of {len(images)}")
    in_threads(part, threads_for(_COPIES_AT_ONCE))
    return out


def room(n: int, box: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory for images [n, box, box]. Pinned where this process works with a card: copies to it are faster, and it is kept for reuse."""
    return torch.empty(n, box, box, dtype=dtype, pin_memory=torch.cuda.is_initialized())


def reading_order(particles: ParticleSet) -> np.ndarray:
    """Rows by stack and then by image, int64 [n]: stacks are read from end to end, whatever the order of the rows."""

    def place(row: int) -> tuple[str, int, str]:
        number, _, stack = names[row].partition("@")
        return stack, int(number) if number.isdigit() else 0, number

    names = particles.column("image_name").astype(str).tolist()
    return np.array(sorted(range(len(names)), key=place), np.int64)


def _locate(names: list[str]) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """Distinct stacks, and for each image its stack and its index counted from 0."""
    stacks: dict[str, int] = {}
    stack_of, index = np.empty(len(names), np.int64), np.empty(len(names), np.int64)
    for row, name in enumerate(names):
        number, at, stack = name.partition("@")
        if not at or not number.isdigit():
            raise InputError(f"row {row + 1}", f"image name {name!r} is not NUMBER@STACK", "Write it as 000001@stack.mrcs")
        stack_of[row], index[row] = stacks.setdefault(stack, len(stacks)), int(number) - 1
    return [Path(stack) for stack in stacks], stack_of, index


def _checked(stack: Path, box: int, index: np.ndarray, rows: np.ndarray) -> MrcHeader:
    """The header of a stack that has the particles' box and all images `index`, which rows `rows` ask for."""
    if not stack.exists():
        raise InputError(
            stack, f"no such stack, {len(index)} particles refer to it", "Run from the project folder that the names start from"
        )
    header = read_header(stack)
    shape, count = header.shape, header.shape[0]
    if shape[-2:] != (box, box):
        raise InputError(
            stack, f"images are {shape[-1]} × {shape[-2]} px, the optics table says {box}", "Mend rlnImageSize or extract again"
        )
    outside = np.flatnonzero((index < 0) | (index >= count))
    if len(outside):
        where = f"row {rows[outside[0]] + 1}" + (f" and {len(outside) - 1} more" if len(outside) > 1 else "")
        problem = f"image {index[outside[0]] + 1} asked for, it holds 1 to {count} ({where})"
        raise InputError(stack, problem, "Mend rlnImageName; the first image is 1")
    return header
