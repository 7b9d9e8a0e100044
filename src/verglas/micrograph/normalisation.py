"""Particle images brought to background mean 0 and deviation 1, RELION's way (measured against relion_preprocess)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_FLAT = 1e-10  # deviation of a background that holds no noise


@dataclass(frozen=True)
class Normalised:
    """Images float32 [n, b, b], and which of them hold an image at all, bool [n] (not constant, no NaN); the others are zero."""

    images: torch.Tensor
    sound: torch.Tensor


def background_mask(box: int, radius: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """Pixels [box, box] with x² + y² > radius² (strictly) about index box//2."""
    line = torch.arange(box, device=device) - box // 2
    return (line[:, None] ** 2 + line[None, :] ** 2) > radius**2


def normalise(
    images: torch.Tensor, radius: float, *, ramp: bool = True, white_dust: float = -1.0, black_dust: float = -1.0, seed: int = 1
) -> Normalised:
    """Subtract the background's plane (or its mean, without `ramp`) and divide by its standard deviation (of the population).

    images: [n, b, b]; the background is what lies outside `radius` px. Dust: pixels more than `white_dust` deviations above or
    `black_dust` below the background's mean are replaced by noise of that mean and deviation first; -1 switches it off.
    """
    values = images.double()
    outside = background_mask(values.shape[-1], radius, values.device)
    if white_dust > 0 or black_dust > 0:
        values = _without_dust(values, outside, white_dust, black_dust, seed)
    background = values[:, outside]
    if ramp:
        plane = _plane_terms(values.shape[-1], values.device)
        fit = background @ torch.linalg.pinv(plane[outside]).T
        values = values - (plane @ fit.T).movedim(-1, 0)
        background = values[:, outside]
    mean, spread = background.mean(1), background.std(1, unbiased=False)
    sound = (spread > _FLAT) & torch.isfinite(spread)
    scaled = (values - mean[:, None, None]) / torch.where(sound, spread, 1.0)[:, None, None]
    return Normalised(torch.where(sound[:, None, None], scaled, 0.0).float(), sound)


def _plane_terms(box: int, device: torch.device) -> torch.Tensor:
    """x, y and 1 at every pixel [box, box, 3], centred and scaled so that the fit is well conditioned."""
    line = (torch.arange(box, device=device, dtype=torch.float64) - box // 2) / box
    return torch.stack([line[None, :].expand(box, box), line[:, None].expand(box, box), torch.ones(box, box, device=device)], dim=-1)


def _without_dust(values: torch.Tensor, outside: torch.Tensor, white: float, black: float, seed: int) -> torch.Tensor:
    background = values[:, outside]
    mean, spread = background.mean(1)[:, None, None], background.std(1, unbiased=False)[:, None, None]
    z = (values - mean) / spread.clamp(min=_FLAT)
    dust = torch.zeros_like(z, dtype=torch.bool)
    if white > 0:
        dust |= z > white
    if black > 0:
        dust |= z < -black
    generator = torch.Generator(device=values.device).manual_seed(seed)
    noise = torch.randn(values.shape, generator=generator, dtype=values.dtype, device=values.device)
    return torch.where(dust, mean + spread * noise, values)
