"""Radiation damage: critical exposure and the weights of a movie's frames (Grant & Grigorieff 2015, eLife 4, e06980)."""

from __future__ import annotations

import torch


def critical_exposure(frequency: torch.Tensor, voltage: float = 300.0) -> torch.Tensor:
    """Exposure in e/Å^2 after which the signal at `frequency` (1/Å, any shape) has fallen to 1/e in power; infinite at 0.

    0.245 k^-1.665 + 2.81 at 300 kV and 0.8 of it at 200 kV; other voltages lie on the straight line through these two.
    """
    return (0.245 * frequency**-1.665 + 2.81) * (1 + 0.2 * (voltage - 300.0) / 100.0)


def accumulated_exposure(frames: int, dose_per_frame: float, pre_exposure: float = 0.0) -> torch.Tensor:
    """Exposure in e/Å^2 that the specimen has had at the end of each frame [frames], float64."""
    return pre_exposure + dose_per_frame * torch.arange(1, frames + 1, dtype=torch.float64)


def damage(frequency: torch.Tensor, exposure: torch.Tensor, voltage: float = 300.0) -> torch.Tensor:
    """Amplitude left, exp(-N / 2 Ne), at frequencies of shape F after exposures [frames] -> [frames, *F]."""
    exposure = exposure.to(frequency)[(...,) + (None,) * frequency.dim()]
    return torch.exp(-exposure / (2 * critical_exposure(frequency, voltage)))


def dose_weights(frequency: torch.Tensor, exposure: torch.Tensor, voltage: float = 300.0) -> torch.Tensor:
    """Factors [frames, *F] for the frames' transforms before they are summed.

    `frequency` in 1/Å, of shape F; `exposure` as `accumulated_exposure` gives it. Divided by the root of their sum of squares, so
    that white noise keeps at every frequency the power that it has in one frame; an exposure before the first frame cancels by that.
    """
    weights = damage(frequency, exposure - exposure.min(), voltage)
    return weights / weights.square().sum(dim=0).sqrt()
