"""Shifts of a series of noisy images of one thing: each is compared with the sum of the others until none moves any more.

The scheme of Grant & Grigorieff, eLife 2015 (unblur) and Zheng et al., Nat. Methods 2017 (MotionCor2), as RELION has it too
(Zivanov, Nakane & Scheres, IUCrJ 2019): leave-one-out sums, a B factor on the cross-correlation, sub-pixel peaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from verglas.micrograph.frames import frequencies

_FINE_STEPS = 9  # samples a side of the patch around the peak


@dataclass(frozen=True)
class Series:
    """Weighted half transforms of the images of one or several series (patches), all of one size.

    spectra: complex [..., frames, y, x//2+1]; shape: (y, x) in px of the images.
    """

    spectra: torch.Tensor
    shape: tuple[int, int]


def correlation_weight(shape: tuple[int, int], pixel: float, bfactor: float, lowest: float = 0.0, highest: float = 0.5) -> torch.Tensor:
    """Weight of the cross-correlation [y, x//2+1]: exp(-B k^2 / 4) between two limits, no DC.

    pixel: px of the movie that one px here spans; bfactor in px^2 of the movie; limits in cycles a px of the movie. The lower limit
    keeps out what does not move with the specimen: uneven illumination and the frame's edges.
    """
    kx, ky = frequencies(shape)
    squared = (kx * kx + ky * ky) / pixel**2
    weight = torch.exp(-bfactor * squared / 4)
    weight = weight * (1 - torch.exp(-squared / (2 * max(lowest, 1e-6) ** 2)))
    return torch.where((squared > 0) & (squared < highest**2), weight, 0.0)


def estimate_shifts(series: Series, start: torch.Tensor | None = None, *, reach: float, iterations: int = 5, tolerance: float = 0.02) -> torch.Tensor:
    """Shifts [..., frames, 2] (x, y), px, that bring the images of each series into register; frame 1 is not special here.

    start: shifts to begin with. reach: largest change of one shift in an iteration, px. Stops when no shift changes by more
    than `tolerance`.
    """
    spectra, shape = series.spectra, series.shape
    shifts = torch.zeros(*spectra.shape[:-2], 2, device=spectra.device) if start is None else start.clone()
    for _ in range(iterations):
        moved = spectra * shift_factors(shape, shifts)
        others = moved.sum(dim=-3, keepdim=True) - moved
        change = find_peaks(moved.conj() * others, shape, reach)
        shifts = shifts + change
        shifts = shifts - shifts.mean(dim=-2, keepdim=True)
        if float(change.abs().max()) < tolerance:
            break
    return shifts


def signal_weight(aligned: torch.Tensor, shape: tuple[int, int], first: torch.Tensor) -> torch.Tensor:
    """Weight of the cross-correlation [y, x//2+1] from the images themselves: 1/N * S/(S + N/(n-1)), in rings.

    aligned: half transforms [n, y, x//2+1] in register. S, what images have in common, comes from products of different images, N is the
    rest; this is the matched filter for images in white noise. Kept where `first` (the weight so far) is not 0; rings without
    common signal, and all beyond the first such, get 0.
    """
    count = len(aligned)
    total = aligned.sum(dim=0)
    power = aligned.abs().square().mean(dim=0)
    common = (total.abs().square() / count - power) / (count - 1)
    ring = _rings(shape, first > 0)
    cells = torch.bincount(ring.flatten()).clamp(min=1)

    def ringed(values: torch.Tensor) -> torch.Tensor:
        return torch.bincount(ring.flatten(), values.flatten().double(), minlength=len(cells)) / cells

    noise = ringed(power - common)[1:].clamp(min=1e-30)
    ratio = smooth(ringed(common)[1:] / noise)
    error = 1 / (count * cells[1:].double()).sqrt()
    believed = torch.cumprod((ratio > 2 * error).double(), dim=0)
    gain = torch.cat([ratio.new_zeros(1), believed * ratio / (ratio + 1 / (count - 1)) / noise])
    if not bool(believed.any()):
        return first
    weight = gain[ring].float()
    return weight / weight.max()


def smooth(values: torch.Tensor) -> torch.Tensor:
    """A series averaged over three neighbours, ends repeated."""
    padded = torch.cat([values[:1], values, values[-1:]])
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def _rings(shape: tuple[int, int], used: torch.Tensor) -> torch.Tensor:
    """Number of the ring of each entry of a half transform [y, x//2+1], from 1, about 24 rings of equal width; 0 where not `used`."""
    kx, ky = frequencies(shape, used.device)
    radius = torch.sqrt(kx * kx + ky * ky)
    highest = float(radius[used].max())
    return torch.where(used, 1 + (radius / highest * 24).long().clamp(max=23), 0)


def shift_factors(shape: tuple[int, int], shifts: torch.Tensor) -> torch.Tensor:
    """Factors [..., y, x//2+1] that move images of `shape` by `shifts` [..., 2] (x, y), px."""
    kx, ky = frequencies(shape, shifts.device)
    along_x = torch.polar(torch.ones_like(kx), -2 * math.pi * kx * shifts[..., 0, None, None])
    along_y = torch.polar(torch.ones_like(ky), -2 * math.pi * ky * shifts[..., 1, None, None])
    return along_y * along_x


def find_peaks(products: torch.Tensor, shape: tuple[int, int], reach: float) -> torch.Tensor:
    """Peak positions [..., 2] (x, y), px, of the cross-correlations whose half transforms are `products` [..., y, x//2+1].

    Whole pixels within `reach` first; then two rounds of finer samples, computed exactly from the transform, and a parabola.
    """
    height, width = shape
    surface = torch.fft.irfft2(products, s=shape)
    half_y, half_x = (int(min(max(1, math.ceil(reach)), (n - 1) // 2)) for n in shape)
    surface = torch.roll(surface, (half_y, half_x), dims=(-2, -1))[..., : 2 * half_y + 1, : 2 * half_x + 1]
    best = surface.flatten(-2).argmax(dim=-1)
    peak = torch.stack([best % (2 * half_x + 1) - half_x, best // (2 * half_x + 1) - half_y], dim=-1).float()
    for span in (0.8, 0.2):
        offsets = torch.linspace(-span, span, _FINE_STEPS, device=products.device)
        fine = sample_correlation(products, shape, peak[..., 0, None] + offsets, peak[..., 1, None] + offsets)
        peak = peak + parabola_peak(fine) * (offsets[1] - offsets[0]) + torch.stack([offsets[0], offsets[0]])
    return peak


def sample_correlation(products: torch.Tensor, shape: tuple[int, int], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Values [..., m, n] of correlations at positions y [..., m] and x [..., n], px, by direct transform (Guizar-Sicairos, Opt. Lett. 2008)."""
    kx, ky = frequencies(shape, products.device)
    twice = torch.full_like(kx[0], 2.0)  # the half transform stands for both halves, its first column only for itself
    twice[0] = 1.0
    phase_y = 2 * math.pi * y[..., :, None] * ky[:, 0]
    phase_x = 2 * math.pi * x[..., :, None] * kx[0]
    rows = torch.polar(torch.ones_like(phase_y), phase_y) @ products
    return (rows @ torch.polar(twice.expand_as(phase_x).contiguous(), phase_x).transpose(-1, -2)).real


def parabola_peak(values: torch.Tensor) -> torch.Tensor:
    """Position [..., 2] (x, y) in samples from the corner, of the maximum of sampled surfaces [..., m, n], by a parabola along each axis."""
    rows, columns = values.shape[-2:]
    best = values.flatten(-2).argmax(dim=-1)
    y, x = best // columns, best % columns
    flat = values.flatten(-2)

    def offset(index: torch.Tensor, step: int, limit: int) -> torch.Tensor:
        inside = (index > 0) & (index < limit - 1)
        low, high = (best - step).clamp(min=0), (best + step).clamp(max=flat.shape[-1] - 1)
        before, centre, after = (flat.gather(-1, place[..., None])[..., 0] for place in (low, best, high))
        curve = before - 2 * centre + after
        return torch.where(inside & (curve < 0), 0.5 * (before - after) / curve.clamp(max=-1e-30), torch.zeros_like(curve))

    return torch.stack([x + offset(x, 1, columns), y + offset(y, columns, rows)], dim=-1)
