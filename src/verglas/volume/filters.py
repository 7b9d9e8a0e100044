"""Filters that act on the amplitudes of images or maps: low-pass, B-factor, weights by shell.

`dims` is 2 for images [..., y, x] and 3 for maps [..., z, y, x]. Filters do not move anything: the centre does not matter.
"""

from __future__ import annotations

import math

import torch

from verglas.volume.fourier import frequency_grid, shell_index


def lowpass_weights(size: int, pixel_size: float, resolution: float, edge_shells: int = 2, dims: int = 3) -> torch.Tensor:
    """RELION's low-pass as factors of a half transform: a raised cosine over `edge_shells` shells about the one of `resolution` Å."""
    centre = round_half_up(size * pixel_size / resolution)
    low = max(0, centre - edge_shells // 2)
    high = min(size // 2 + 1, centre + edge_shells // 2)
    shells = radius(size, dims)
    falling = 0.5 + 0.5 * torch.cos(math.pi * (shells - low) / max(high - low, 1e-9))
    return torch.where(shells < low, 1.0, torch.where(shells > high, 0.0, falling)).float()


def lowpass(values: torch.Tensor, pixel_size: float, resolution: float, edge_shells: int = 2, dims: int = 3) -> torch.Tensor:
    """Images or maps without what is finer than `resolution` Å, with RELION's edge of two shells."""
    weights = lowpass_weights(values.shape[-1], pixel_size, resolution, edge_shells, dims)
    return apply_weights(values, weights.to(values.device), dims)


def bfactor_weights(size: int, pixel_size: float, bfactor: float, dims: int = 3) -> torch.Tensor:
    """exp(-B k² / 4) on a half transform; a negative B (Å²) sharpens."""
    squared = radius(size, dims).square() / (size * pixel_size) ** 2
    # past e^60 float32 would soon be infinite, and infinite times a low-pass filter's 0 is no number
    return torch.exp((-bfactor / 4 * squared).clamp(max=60.0)).float()


def shell_weights(curve: torch.Tensor, size: int, dims: int = 3) -> torch.Tensor:
    """A curve [shells] spread over a half transform; 0 in shells beyond its end."""
    padded = torch.cat([curve, curve.new_zeros(1)])
    return padded[shell_index(size, dims, curve.device).clamp(max=len(curve))].float()


def apply_weights(values: torch.Tensor, weights: torch.Tensor, dims: int = 3) -> torch.Tensor:
    """Images or maps with their half transform multiplied by real `weights`."""
    axes = tuple(range(-dims, 0))
    transform = torch.fft.rfftn(values, dim=axes) * weights
    return torch.fft.irfftn(transform, s=values.shape[-dims:], dim=axes)


def radius(size: int, dims: int = 3) -> torch.Tensor:
    """|k| of every entry of a half transform in Fourier pixels, float64, not rounded."""
    return torch.stack([(k.double() * size).round().square() for k in frequency_grid(size, 1.0, dims)]).sum(dim=0).sqrt()


def round_half_up(value: float) -> int:
    """RELION's ROUND for positive numbers: halves go up (Python's go to the even neighbour)."""
    return math.floor(value + 0.5)
