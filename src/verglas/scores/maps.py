"""How near a map is to the true one, and two maps to each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from verglas.volume.align import Alignment, align_maps
from verglas.volume.fsc import fsc, resolution_shell, shell_to_resolution
from verglas.volume.masks import soft_sphere


@dataclass(frozen=True)
class MapScore:
    """FSC [shells] of a map against the truth; the last shell at 0.5 or more (and in Å); how the truth had to be laid on the map.

    `mirrored`: the map is the mirror image of the truth. `radius`, `edge`: of the soft sphere both were seen through, Å.
    """

    fsc: torch.Tensor
    shell: int
    resolution: float
    mirrored: bool
    alignment: Alignment
    radius: float
    edge: float


def map_fsc_to_truth(
    density: torch.Tensor,
    truth: torch.Tensor,
    pixel_size: float,
    *,
    radius: float,
    edge: float = 10.0,
    threshold: float = 0.5,
    rotations: torch.Tensor | None = None,
    align_to: float | None = None,
) -> MapScore:
    """Compare a map [N, N, N] with the truth on the same grid, inside a sphere of `radius` Å with a soft edge of `edge` Å.

    The truth is laid on the map (so that the map's noise is not smoothed), its mirror image too; the better of the two is reported.
    `rotations`: where to start the alignment (see `align_maps`); `align_to`: finest resolution used in it, Å (default half of Nyquist).
    """
    size = density.shape[-1]
    max_shell = None if align_to is None else min(size // 2, max(4, round(size * pixel_size / align_to)))
    alignment = align_maps(truth, density, rotations=rotations, radius=radius / pixel_size, max_shell=max_shell)
    sphere = soft_sphere(size, radius / pixel_size, edge / pixel_size, density.device)
    curve = fsc(alignment.apply(truth) * sphere, density * sphere)
    shell = resolution_shell(curve, threshold)
    return MapScore(curve, shell, shell_to_resolution(shell, size, pixel_size), alignment.mirrored, alignment, radius, edge)


def fsc_in_sphere(first: torch.Tensor, second: torch.Tensor, pixel_size: float, *, radius: float, edge: float = 10.0) -> torch.Tensor:
    """FSC [shells] of two maps [N, N, N] that lie on each other, inside a sphere of `radius` Å with a soft edge of `edge` Å."""
    sphere = soft_sphere(first.shape[-1], radius / pixel_size, edge / pixel_size, first.device)
    return fsc(first * sphere, second * sphere)


def fsc_area(curve: torch.Tensor) -> float:
    """Mean of an FSC [shells] over its shells from 1 on: the area under it as a share of a perfect map's, 1 at most."""
    return float(curve[1:].double().mean())
