"""Compiled code of the expectation (comparison.cpp), with slices that are sampled, used and forgotten.

The twins in torch are `score.own_scores` on sampled slices, and `accumulate`'s sums.
"""

from __future__ import annotations

from ctypes import Structure, byref, c_bool, c_int64, c_void_p
from pathlib import Path

import torch

from verglas.compute.native import address, built_library, in_threads, threads_for, why_not_native
from verglas.refine.groups import Groups
from verglas.refine.ragged import Lists
from verglas.volume import slices_native
from verglas.volume.slices import Pixels, Projector

SOURCE = Path(__file__).with_name("comparison.cpp")


class _References(Structure):
    _fields_ = (("tables", c_void_p), ("grid", slices_native.Grid), ("plane", slices_native.Plane))


class _Lists(Structure):
    _fields_ = (("values", c_void_p), ("starts", c_void_p), ("counts", c_void_p))


class _Images(Structure):
    _fields_ = (("images", c_void_p), ("ctf", c_void_p), ("factors", c_void_p), ("stride", c_int64))


class _Groups(Structure):
    _fields_ = (("starts", c_void_p), ("shift", c_void_p), ("weight", c_void_p))


def why_not() -> str:
    """Why the code, or that of the slices, is not there; empty where it is."""
    return why_not_native(slices_native.SOURCE) or why_not_native(SOURCE)


def score_own(
    projector: Projector,
    pixels: Pixels,
    images: torch.Tensor,
    ctf: torch.Tensor,
    factors: torch.Tensor,
    which: torch.Tensor,
    slices: Lists,
    matrices: torch.Tensor,
    classes: torch.Tensor,
    shifts: Lists,
    *,
    correlation: bool,
) -> torch.Tensor:
    """Scores [o, slices, shifts] of the images `which` int64 [o], −inf past the end of an image's own lists.

    images complex64 [b, ≥ k], ctf float32 [b, ≥ k], factors complex64 [shifts, k]. slices: of each image, places in `matrices`
    float32 [m, 3, 3] and `classes` int64 [m]; shifts: of each image, rows of `factors`. The score is that of `score.own_scores`.
    """
    library = built_library(SOURCE)
    most = int(slices.counts[which].max()), int(shifts.counts[which].max())
    out = torch.full((len(which), *most), -torch.inf)
    of, seen = _references(projector, pixels), _images(images, ctf, factors)
    lists = [_Lists(*(address(values) for values in (each.values, each.starts, each.counts))) for each in (slices, shifts)]
    poses = (address(matrices), address(classes))
    shape = (c_int64(most[0]), c_int64(most[1]), c_bool(correlation))

    def part(thread: int, threads: int) -> None:
        own = (address(which), c_int64(len(which)), byref(lists[0]), *poses, byref(lists[1]), address(out), *shape)
        library.score_own(byref(of), byref(seen), *own, c_int64(thread), c_int64(threads))

    in_threads(part, threads_for(len(which)))
    return out


def sum_into_slices(
    images: torch.Tensor, ctf: torch.Tensor, factors: torch.Tensor, groups: Groups, order: torch.Tensor, starts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numerators complex64 [rows, k] and weights float32 [rows, k] of slices: Σ w · X · C · S and Σ w · C².

    Slice r is made of the groups order[starts[r]] to order[starts[r + 1] − 1]. Operands as in `score_own`.
    """
    library, k, rows = built_library(SOURCE), factors.shape[1], len(starts) - 1
    numerators, weights = torch.empty(rows, k, dtype=torch.complex64), torch.empty(rows, k)
    seen, entries = _images(images, ctf, factors), _groups(groups)

    def part(thread: int, threads: int) -> None:
        lists = (address(groups.image), address(order), address(starts), c_int64(rows), address(numerators), address(weights))
        library.sum_into_slices(byref(seen), c_int64(k), byref(entries), *lists, c_int64(thread), c_int64(threads))

    in_threads(part, threads_for(rows))
    return numerators, weights


def sum_over_slices(
    projector: Projector,
    pixels: Pixels,
    images: torch.Tensor,
    ctf: torch.Tensor,
    factors: torch.Tensor,
    groups: Groups,
    matrices: torch.Tensor,
    classes: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ w · Re(conj(X C S) P) and Σ w · |P|² C² of each image over its groups, float32 [b, k]; `matrices`, `classes` are the groups'."""
    library, count = built_library(SOURCE), len(images)
    cross, energy = torch.empty(count, len(pixels)), torch.empty(count, len(pixels))
    starts = torch.searchsorted(groups.image, torch.arange(count + 1))
    of, seen, entries = _references(projector, pixels), _images(images, ctf, factors), _groups(groups)

    def part(thread: int, threads: int) -> None:
        own = (address(matrices), address(classes), address(starts), c_int64(count), address(cross), address(energy))
        library.sum_over_slices(byref(of), byref(seen), byref(entries), *own, c_int64(thread), c_int64(threads))

    in_threads(part, threads_for(count))
    return cross, energy


def _references(projector: Projector, pixels: Pixels) -> _References:
    """The classes' tables, which must live as long as this does."""
    grid = slices_native.grid_of(projector.table.shape[1:-1], projector.half_range, projector.padding)
    return _References(address(projector.table), grid, slices_native.plane_of(pixels))


def _images(images: torch.Tensor, ctf: torch.Tensor, factors: torch.Tensor) -> _Images:
    assert images.shape == ctf.shape
    return _Images(address(images), address(ctf), address(factors), images.shape[1])


def _groups(groups: Groups) -> _Groups:
    return _Groups(address(groups.starts), address(groups.shift), address(groups.weight))
