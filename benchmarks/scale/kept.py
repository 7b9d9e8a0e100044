"""Rendered particles made once and kept: as float16 in memory, or as stacks in a folder. The job then reads them as it reads any others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from scale.rendered import PER_MICROGRAPH, RenderedParticles
from verglas.io.mrc import write_stack
from verglas.particles import ArrayImages, ParticleSet, StackImages
from verglas.refine.reading import ahead

_AT_ONCE = 1 << 29  # bytes of float32 images
_WRITERS = 8  # stacks written at a time


def in_memory(source: RenderedParticles) -> ArrayImages:
    """All images of `source` as float16, on the host."""
    images = torch.empty(len(source), source.box, source.box, dtype=torch.float16)
    for first, part in _parts(source, np.float16, max(1, _AT_ONCE // (4 * source.box**2))):
        images[first : first + len(part)] = part
    return ArrayImages(images, source.pixel_size)


def in_files(source: RenderedParticles, particles: ParticleSet, folder: Path, dtype: str) -> StackImages:
    """All images of `source` as stacks of one micrograph each, which no cache holds when it returns. Stacks that are there are kept."""
    names = [f"{number}@{folder / stack}" for number, _, stack in (name.partition("@") for name in particles.column("image_name"))]
    folder.mkdir(parents=True, exist_ok=True)
    made = {path.name for path in folder.glob("*.mrcs")}
    stacks = [Path(name.partition("@")[2]) for name in names[::PER_MICROGRAPH]]
    if not made.issuperset(path.name for path in stacks):

        def write(stack: tuple[Path, tuple[int, torch.Tensor]]) -> None:
            path, (_, part) = stack
            write_stack(path, part.numpy(), source.pixel_size, dtype)

        for _ in ahead(write, zip(stacks, _parts(source, np.dtype(dtype), PER_MICROGRAPH), strict=True), _WRITERS):
            pass
    for _ in ahead(_forget, stacks, _WRITERS):
        pass
    return StackImages(particles.with_columns(image_name=names))


def _parts(source: RenderedParticles, dtype: np.dtype | type, count: int) -> Iterator[tuple[int, torch.Tensor]]:
    """First index and images [at most `count`, box, box] of each part, on the host; the next is on its way while the caller works."""
    kind = torch.float16 if np.dtype(dtype) == np.float16 else torch.float32
    on_card = source.device.type == "cuda"
    firsts = range(0, len(source), count)

    def part(first: int) -> torch.Tensor:
        images = source.read(np.arange(first, min(first + count, len(source)))).to(kind)
        return torch.empty(images.shape, dtype=kind, pin_memory=True).copy_(images) if on_card else images

    yield from zip(firsts, ahead(part, firsts))


def _forget(path: Path) -> None:
    """Write the file to the disk and drop it from the system's cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
