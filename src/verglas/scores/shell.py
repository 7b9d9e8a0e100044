"""Whether a map is a hollow shell, as apoferritin is, and how large."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ShellScore:
    """`hollow`: mean density within the inner radius as a share of the shell's peak. `peak_radius`, `diameter`: Å.

    The diameter is twice the radius at which the density averaged over all directions has fallen, outside its peak, to half of it.
    """

    hollow: float
    peak_radius: float
    diameter: float


def shell_score(density: torch.Tensor, pixel_size: float, inner_radius: float) -> ShellScore:
    """Score of a map [N, N, N] about index N//2, solvent at 0. `inner_radius` in Å.

    Raises ValueError for a map whose density averaged over directions is nowhere positive, or does not fall to half inside the box.
    """
    size = density.shape[-1]
    index = (torch.arange(size, device=density.device) - size // 2).square()
    radius = (index[:, None, None] + index[:, None] + index).double().sqrt()
    rings = radius.round().long().flatten()
    profile = torch.bincount(rings, density.flatten().double()) / torch.bincount(rings)
    profile = profile[: size // 2]
    peak = int(profile.argmax())
    half = float(profile[peak]) / 2
    below = torch.nonzero(profile[peak:] < half)
    if half <= 0 or not len(below):
        raise ValueError("the map's average over directions has no peak that falls to half inside the box")
    outer = peak + int(below[0])
    fall = float((profile[outer - 1] - half) / (profile[outer - 1] - profile[outer]))
    inside = float(density[radius * pixel_size <= inner_radius].double().mean())
    return ShellScore(inside / (2 * half), peak * pixel_size, 2 * (outer - 1 + fall) * pixel_size)
