"""The images of particles: from stacks on disk, or from memory.

images = StackImages(read_particles("particles.star"))
batch = images.read(np.arange(100))          # float32 [100, box, box], bright particles
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from verglas.errors import InputError
from verglas.io.mrc import read_header, read_stack
from verglas.particles.tables import ParticleSet


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
        self._images, self.pixel_size, self.box = images, pixel_size, int(images.shape[-1])

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """See `ImageSource.read`."""
        out = room(len(indices), self.box, self._images.dtype)
        return torch.index_select(self._images, 0, torch.as_tensor(indices, dtype=torch.long), out=out)


class StackImages:
    """Images named `000001@stack.mrcs`. Every stack and index is checked when the source is made, before any work.

    Raises InputError for a stack that is missing, an image outside it (the first is 1), and for boxes that differ.
    """

    def __init__(self, particles: ParticleSet) -> None:
        self.box, self.pixel_size = particles.optics.box_size, particles.optics.pixel_size
        self._stacks, self._stack_of, self._index = _locate([str(name) for name in particles.column("image_name")])
        for number, stack in enumerate(self._stacks):
            rows = np.flatnonzero(self._stack_of == number)
            _check_stack(stack, self.box, self._index[rows], rows)

    def __len__(self) -> int:
        return len(self._index)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """See `ImageSource.read`. Each stack is opened once a call."""
        indices = np.asarray(indices)
        out = torch.empty(len(indices), self.box, self.box)
        stack_of = self._stack_of[indices]
        for number in np.unique(stack_of):
            rows = np.flatnonzero(stack_of == number)
            out[torch.from_numpy(rows)] = torch.from_numpy(read_stack(self._stacks[number], self._index[indices[rows]]))
        return out

    def preload(self) -> ArrayImages:
        """All images read into memory."""
        return ArrayImages(self.read(np.arange(len(self))), self.pixel_size)


class KeptImages:
    """Images of another source, kept in memory from their first reading on: each rank of many keeps those that it works with."""

    def __init__(self, source: ImageSource) -> None:
        self._source, self.box, self.pixel_size = source, source.box, source.pixel_size
        self._images = torch.empty(len(source), self.box, self.box)  # the system gives memory for what is written only
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
        return self._images[torch.from_numpy(indices)]


def room(n: int, box: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory for images [n, box, box]. Pinned where this process works with a card: copies to it are faster, and it is kept for reuse."""
    return torch.empty(n, box, box, dtype=dtype, pin_memory=torch.cuda.is_initialized())


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


def _check_stack(stack: Path, box: int, index: np.ndarray, rows: np.ndarray) -> None:
    if not stack.exists():
        raise InputError(
            stack, f"no such stack, {len(index)} particles refer to it", "Run from the project folder that the names start from"
        )
    shape = read_header(stack).shape
    count = shape[0] if len(shape) == 3 else 1
    if shape[-2:] != (box, box):
        raise InputError(
            stack, f"images are {shape[-1]} × {shape[-2]} px, the optics table says {box}", "Mend rlnImageSize or extract again"
        )
    outside = np.flatnonzero((index < 0) | (index >= count))
    if len(outside):
        where = f"row {rows[outside[0]] + 1}" + (f" and {len(outside) - 1} more" if len(outside) > 1 else "")
        problem = f"image {index[outside[0]] + 1} asked for, it holds 1 to {count} ({where})"
        raise InputError(stack, problem, "Mend rlnImageName; the first image is 1")
