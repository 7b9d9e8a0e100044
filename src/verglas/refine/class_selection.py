"""Classes chosen by rule, so that nobody has to look: the same data give the same choice, and no class number is fixed.

2D averages are ranked by what a person looks for: detail (the resolution where the average's SNR falls to 1), contrast of the
particle against the rim of the box, and enough particles. 3D classes are chosen by resolution, and classes that show the same
structure are joined: a particle set that has one state would otherwise lose particles to an arbitrary split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from verglas.volume.fsc import fsc
from verglas.volume.masks import soft_circle

# Defaults tuned on simulated averages with known junk and on the apoferritin test micrographs.
RESOLUTION_SLACK = 1.6
LEAST_CONTRAST = 1.5
LEAST_OCCUPANCY = 0.25
SAME_STRUCTURE_FSC = 0.8


@dataclass(frozen=True)
class AverageScores:
    """Per class [K]: SNR-limited resolution (Å), contrast (variance inside the particle / outside), share of particles, kept or not."""

    resolution: np.ndarray
    contrast: np.ndarray
    occupancy: np.ndarray
    keep: np.ndarray


def choose_class_averages(
    averages: torch.Tensor, occupancy: np.ndarray, resolution: np.ndarray, pixel_size: float, mask_diameter: float
) -> AverageScores:
    """Which class averages [K, n, n] show particles.

    `occupancy` is each class's share of the particles, `resolution` its estimated resolution in Å (inf when it has none),
    `mask_diameter` in Å. A class is kept when its resolution is within a factor of 1.6 of the best half of the particles',
    its contrast is at least 1.5, and it has at least a quarter of the mean class's share.
    """
    contrast = _contrast(averages, pixel_size, mask_diameter)
    usable = (contrast >= LEAST_CONTRAST) & np.isfinite(resolution) & (occupancy >= LEAST_OCCUPANCY / len(occupancy))
    if usable.any():
        usable &= resolution <= RESOLUTION_SLACK * _weighted_quantile(resolution[usable], occupancy[usable], 0.5)
    return AverageScores(resolution, contrast, occupancy, usable)


def choose_volumes(maps: torch.Tensor, occupancy: np.ndarray, shells: np.ndarray) -> np.ndarray:
    """Which 3D classes to go on with, a mask [K].

    `maps` [K, n, n, n], `occupancy` their shares, `shells` the Fourier shell of each class's estimated resolution. The best
    class has the highest shell (within one shell, the most particles); classes within two shells of it whose mean FSC with it
    up to the lower of the two shells is at least 0.8 show the same structure and are joined to it.
    """
    order = np.where(shells >= shells.max() - 1, occupancy, -1.0)
    best = int(order.argmax())
    keep = np.zeros(len(occupancy), bool)
    for number in range(len(occupancy)):
        limit = int(min(shells[number], shells[best]))
        curve = fsc(maps[best], maps[number])[1 : limit + 1]
        same = len(curve) > 0 and float(curve.mean()) >= SAME_STRUCTURE_FSC
        keep[number] = number == best or (same and shells[number] >= shells[best] - 2)
    return keep


def _contrast(averages: torch.Tensor, pixel_size: float, mask_diameter: float) -> np.ndarray:
    """Variance of each average inside the particle's circle over that outside of it; 0 for an empty average."""
    size = averages.shape[-1]
    inside = soft_circle(size, min(mask_diameter / 2 / pixel_size, size / 2 - 1), 0.0) > 0.5
    values_in, values_out = averages[:, inside], averages[:, ~inside]
    background = values_out.mean(dim=1, keepdim=True)
    power_in = (values_in - background).square().mean(dim=1)
    power_out = (values_out - background).square().mean(dim=1)
    return torch.where(power_in > 0, power_in / power_out.clamp_min(1e-12), torch.zeros(())).numpy()


def _weighted_quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(cumulative, share)])
