"""The compiled sums of `curvature` (curvature.cpp) on the CPU."""

from __future__ import annotations

from ctypes import byref, c_int64
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from verglas.compute.native import address, built_library, in_threads, threads_for
from verglas.volume import slices_native

if TYPE_CHECKING:
    from verglas.volume.slices import Pixels, Projector

SOURCE = Path(__file__).with_name("curvature.cpp")
SUMS = 20  # of an image


def local_sums(projector: Projector, pixels: Pixels, moved: torch.Tensor, ctf: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """As `curvature.plain_sums`."""
    library, out = built_library(SOURCE), torch.empty(len(matrices), SUMS)
    grid = slices_native.grid_of(projector.table.shape[1:-1], projector.half_range, projector.padding)
    plane = slices_native.plane_of(pixels)
    given = moved.contiguous(), ctf.contiguous(), matrices.to(projector.table).contiguous()
    images = [address(values) for values in given]

    def part(thread: int, threads: int) -> None:
        place = (address(projector.table), byref(grid), byref(plane))
        library.local_sums(*place, *images, c_int64(len(matrices)), address(out), c_int64(thread), c_int64(threads))

    in_threads(part, threads_for(len(matrices)))
    return out
