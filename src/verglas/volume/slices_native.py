"""The compiled sampling of slices (slices.cpp) for maps in float32 on the CPU; `slices` holds its twin in torch and decides."""

from __future__ import annotations

import math
from ctypes import Structure, byref, c_float, c_int64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from verglas.compute.native import address, built_library, in_threads, threads_for

if TYPE_CHECKING:
    from verglas.volume.slices import Pixels

SOURCE = Path(__file__).with_name("slices.cpp")
_SLICES_A_THREAD = 4  # fewer are not worth a thread


class Grid(Structure):
    """slices.h: where the points of a map's transform lie in memory."""

    _fields_ = (("stride_y", c_int64), ("stride_z", c_int64), ("stride_map", c_int64), ("half", c_float), ("padding", c_float))


class Plane(Structure):
    """slices.h: the pixels of a slice."""

    _fields_ = (("kx", c_void_p), ("ky", c_void_p), ("count", c_int64), ("k", c_int64))


def grid_of(shape: tuple[int, ...] | torch.Size, half_range: int, padding: int) -> Grid:
    """The grid of maps [z, y, x] or [y, x]."""
    return Grid(shape[-1], shape[-2] * shape[-1] if len(shape) == 3 else 0, math.prod(shape), half_range, padding)


def plane_of(pixels: Pixels) -> Plane:
    """The pixels, which must live as long as this does."""
    return Plane(address(pixels.kx), address(pixels.ky), pixels.count, len(pixels))


def address_or_null(values: torch.Tensor | None) -> c_void_p:
    """`address`, or null where there are no values."""
    return c_void_p(None) if values is None else address(values)


def project(
    table: torch.Tensor, half_range: int, padding: int, matrices: torch.Tensor, pixels: Pixels, which: torch.Tensor | None
) -> torch.Tensor:
    """`Projector.project` from a `Projector.table`."""
    library = built_library(SOURCE)
    out = torch.empty(len(matrices), len(pixels), dtype=torch.complex64)
    turns = matrices.to(table).contiguous()
    grid, plane = grid_of(table.shape[1:-1], half_range, padding), plane_of(pixels)

    def part(thread: int, threads: int) -> None:
        start, end = (len(turns) * number // threads for number in (thread, thread + 1))
        maps = address_or_null(None if which is None else which[start:end])
        into = (address(turns[start:end]), maps, c_int64(end - start), address(out[start:end]))
        library.project(address(table), byref(grid), byref(plane), *into)

    in_threads(part, threads_for(len(turns) // _SLICES_A_THREAD))
    return out


def spread(
    sums: torch.Tensor,
    shape: tuple[int, ...],
    padding: int,
    matrices: torch.Tensor,
    pixels: Pixels,
    numerators: torch.Tensor,
    weights: torch.Tensor | None,
    which: torch.Tensor | None,
) -> None:
    """`FourierSums.add` into sums [maps, voxels, 3] of a grid of `shape`; the result does not depend on the number of threads."""
    library = built_library(SOURCE)
    turns, values = matrices.to(sums).contiguous(), numerators.to(torch.complex64).contiguous()
    shares = None if weights is None else weights.to(sums).contiguous()
    grid, plane = grid_of(shape, shape[-1] - 1, padding), plane_of(pixels)
    threads = threads_for(len(turns) // _SLICES_A_THREAD)
    bounds = _planes(shape[0], threads)

    def part(thread: int, _: int) -> None:
        slices = (address(turns), address_or_null(which), c_int64(len(turns)), address(values), address_or_null(shares))
        library.spread(address(sums), byref(grid), byref(plane), *slices, c_int64(bounds[thread]), c_int64(bounds[thread + 1]))

    in_threads(part, threads)


def _planes(count: int, threads: int) -> list[int]:
    """Bounds of `threads` runs of planes with equal shares of the slices' points, whose density falls linearly from the middle."""
    shares = [number / threads for number in range(1, threads)]
    middle = [(2 * share) ** 0.5 / 2 if share < 0.5 else 1 - (2 - 2 * share) ** 0.5 / 2 for share in shares]
    return [0, *(round(count * place) for place in middle), count]
