"""Shifts of a series of noisy images of one thing: each is compared with the sum of the others until none moves any more.

The scheme of Grant & Grigorieff, eLife 2015 (unblur) and Zheng et al., Nat. Methods 2017 (MotionCor2), as RELION has it too
(Zivanov, Nakane & Scheres, IUCrJ 2019): leave-one-out sums, weighted cross-correlations, sub-pixel peaks. Frequencies are in cycles
a px of the movie and shifts in px of the movie throughout, however far the images were shrunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from verglas.micrograph.frames import crop_rect, frequencies

_RINGS = 40
_FINE_STEPS = 9  # samples a side of the patch around the peak
_DIRECT_REACH = 4.0  # px; up to here a correlation is sampled directly and no whole surface is made


@dataclass(frozen=True)
class RadialWeight:
    """Weight of the cross-correlation against frequency: `values` [n] at frequencies `at` [n], straight lines between, 0 outside."""

    at: torch.Tensor
    values: torch.Tensor

    def __call__(self, radius: torch.Tensor) -> torch.Tensor:
        """Weights at frequencies of any shape."""
        at, values = self.at.to(radius), self.values.to(radius)
        upper = torch.searchsorted(at, radius.contiguous()).clamp(1, len(at) - 1)
        low, high = at[upper - 1], at[upper]
        share = (radius - low) / (high - low)
        inside = (share >= 0) & (share <= 1)
        return torch.where(inside, values[upper - 1] + share * (values[upper] - values[upper - 1]), 0.0)

    @property
    def highest(self) -> float:
        """The frequency from which on all weights are 0."""
        used = (self.values > 0).nonzero()
        return float(self.at[min(int(used.max()) + 1, len(self.at) - 1)]) if len(used) else float(self.at[-1])


@dataclass(frozen=True)
class Series:
    """Half transforms of series of images, all of one size.

    spectra: complex [..., frames, y, x//2+1]; shape: (y, x) of the images; pixel: px of the movie that a px of theirs spans, (y, x).
    """

    spectra: torch.Tensor
    shape: tuple[int, int]
    pixel: tuple[float, float]

    def frequencies(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Frequencies kx [1, x//2+1] and ky [y, 1], cycles a px of the movie."""
        kx, ky = frequencies(self.shape, self.spectra.device)
        return kx / self.pixel[1], ky / self.pixel[0]

    def radius(self) -> torch.Tensor:
        """Length of each frequency [y, x//2+1]."""
        kx, ky = self.frequencies()
        return torch.sqrt(kx * kx + ky * ky)

    def weighted(self, weight: RadialWeight) -> Series:
        """The series times the root of the weight, cut to the frequencies that have any."""
        shape = tuple(min(n, 2 * math.ceil(n * pixel * weight.highest) + 2) for n, pixel in zip(self.shape, self.pixel))
        pixel = tuple(pixel * n / new for pixel, n, new in zip(self.pixel, self.shape, shape))
        cut = Series(crop_rect(self.spectra, self.shape, shape), shape, pixel)  # type: ignore[arg-type]
        return Series(cut.spectra * weight(cut.radius()).sqrt(), cut.shape, cut.pixel)

    def moved(self, shifts: torch.Tensor) -> torch.Tensor:
        """Spectra of the images moved by `shifts` [..., frames, 2] (x, y)."""
        kx, ky = self.frequencies()
        along_x = torch.polar(torch.ones_like(kx), -2 * math.pi * kx * shifts[..., 0, None, None])
        along_y = torch.polar(torch.ones_like(ky), -2 * math.pi * ky * shifts[..., 1, None, None])
        return self.spectra * along_y * along_x


def bfactor_weight(bfactor: float, lowest: float, highest: float) -> RadialWeight:
    """exp(-B k^2 / 4) up to `highest`, B in px^2 of the movie; below `lowest` it falls off: that is illumination, not specimen."""
    at = torch.linspace(0, highest, 200)
    return RadialWeight(at, torch.exp(-bfactor * at**2 / 4) * (1 - torch.exp(-(at**2) / (2 * lowest**2))))


def signal_weight(series: Series, shifts: torch.Tensor, lowest: float) -> RadialWeight | None:
    """The weight that the images themselves call for: 1/N * S/(S + N/(n-1)) in rings, the matched filter for images in white noise.

    S, the power that images have in common once moved by `shifts` [frames, 2], comes from products of different images, N is the rest.
    None where they have nothing in common. Frequencies below `lowest` and from the first ring without common power on get 0.
    """
    aligned = series.moved(shifts)
    count = len(aligned)
    power = aligned.abs().square().mean(dim=0)
    common = (aligned.sum(dim=0).abs().square() / count - power) / (count - 1)
    radius = series.radius()
    highest = float(radius.max()) / math.sqrt(2)
    ring = torch.where((radius >= lowest) & (radius < highest), 1 + ((radius - lowest) / (highest - lowest) * _RINGS).long(), 0)
    cells = torch.bincount(ring.flatten(), minlength=_RINGS + 1)[1:].clamp(min=1).double()

    def ringed(values: torch.Tensor) -> torch.Tensor:
        return torch.bincount(ring.flatten(), values.flatten().double(), minlength=_RINGS + 1)[1:] / cells

    noise = ringed(power - common).clamp(min=1e-30)
    ratio = _smooth(ringed(common) / noise)
    believed = torch.cumprod((ratio > 2 / (count * cells).sqrt()).double(), dim=0)
    gain = believed * ratio / (ratio + 1 / (count - 1)) / noise
    if not bool((gain > 0).any()):
        return None
    width = (highest - lowest) / _RINGS
    at = lowest + (torch.arange(_RINGS, dtype=torch.float32) + 0.5) * width
    at = torch.cat([torch.tensor([lowest]), at, torch.tensor([highest])])
    gain = torch.cat([gain[:1] * 0, gain, gain[:1] * 0]).float().cpu()
    return RadialWeight(at, gain / gain.max())


def _smooth(values: torch.Tensor) -> torch.Tensor:
    """A series averaged over three neighbours, ends repeated."""
    padded = torch.cat([values[:1], values, values[-1:]])
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def estimate_shifts(
    series: Series, start: torch.Tensor | None = None, *, reach: float, iterations: int, tolerance: float = 0.05
) -> torch.Tensor:
    """Shifts [..., frames, 2] (x, y), px, that bring the images of each weighted series into register; their mean is that of `start`.

    reach: largest change of one shift in an iteration. Stops when no shift changes by more than `tolerance`, both px.
    """
    spectra = series.spectra
    shifts = torch.zeros(*spectra.shape[:-2], 2, device=spectra.device) if start is None else start
    for _ in range(iterations):
        moved = series.moved(shifts)
        others = moved.sum(dim=-3, keepdim=True) - moved
        change = find_peaks(Series(moved.conj() * others, series.shape, series.pixel), reach)
        change = change - change.mean(dim=-2, keepdim=True)
        shifts = shifts + change
        largest = float(change.abs().max())
        if largest < tolerance:
            break
        reach = min(reach, max(2 * largest, 1.0))
    return shifts


def smooth_path(shifts: torch.Tensor) -> torch.Tensor:
    """A path [frames, 2] smoothed by as much as predicts left-out frames best (second differences; Whittaker 1923, PRESS).

    A path that jumps from frame to frame, more than its noise, is left almost as it is.
    """
    frames = len(shifts)
    if frames < 5:
        return shifts
    points = shifts.double().cpu()
    identity = torch.eye(frames, dtype=torch.float64)
    bend = identity.diff(dim=0, n=2)
    best, best_error = points, math.inf
    for strength in 10.0 ** torch.arange(-3, 2.1, 0.5, dtype=torch.float64):
        hat = torch.linalg.inv(identity + strength * bend.T @ bend)
        smoothed = hat @ points
        error = float(((points - smoothed) / (1 - hat.diagonal())[:, None]).square().sum())
        if error < best_error:
            best, best_error = smoothed, error
    return best.to(shifts)


def newton_steps(series: Series, shifts: torch.Tensor) -> torch.Tensor:
    """One step [..., frames, 2], px, from `shifts` towards the maximum of each correlation with the sum of the others.

    The curvature is that of all images together: the steps of single images are as noisy as their data but never run away, which
    makes them fit for averaging (a model over many patches) where single peaks would be outliers.
    """
    moved = series.moved(shifts)
    products = moved.conj() * (moved.sum(dim=-3, keepdim=True) - moved)
    kx, ky = (2 * math.pi * k for k in series.frequencies())
    twice = torch.full_like(kx, 2.0)
    twice[:, 0] = 1.0
    imaginary, real = products.imag * twice, products.real * twice
    slope = torch.stack([-(imaginary * kx).sum(dim=(-2, -1)), -(imaginary * ky).sum(dim=(-2, -1))], dim=-1)
    mean = real.flatten(0, -3).mean(dim=0)
    curvature = torch.stack([(mean * kx * kx).sum(), (mean * kx * ky).sum(), (mean * kx * ky).sum(), (mean * ky * ky).sum()]).reshape(2, 2)
    values, axes = torch.linalg.eigh(curvature)
    return slope @ axes / values.clamp(min=1e-3 * values.abs().max()) @ axes.T


def find_peaks(products: Series, reach: float) -> torch.Tensor:
    """Peaks [..., 2] (x, y), px, of cross-correlations whose half transforms are `products`, within `reach` along x and y.

    Whole samples first; then two rounds of finer ones, computed exactly from the transform, and a parabola.
    """
    if reach <= _DIRECT_REACH:
        step = min(products.pixel) / 2
        side = torch.arange(-math.ceil(reach / step), math.ceil(reach / step) + 1, device=products.spectra.device) * step
        zero = torch.zeros(*products.spectra.shape[:-2], 1, device=products.spectra.device)
        coarse = sample_correlation(products, side + zero, side + zero)
        peak, step_y, step_x = parabola_peak(coarse) * step + side[0], step, step
    else:
        peak, step_y, step_x = _whole_surface_peak(products, reach), *products.pixel
    for share in (0.8, 0.2):
        offsets = torch.linspace(-share, share, _FINE_STEPS, device=peak.device)
        x, y = peak[..., 0, None] + offsets * step_x, peak[..., 1, None] + offsets * step_y
        found = parabola_peak(sample_correlation(products, x, y)) * (2 * share / (_FINE_STEPS - 1))
        peak = torch.stack([x[..., 0] + found[..., 0] * step_x, y[..., 0] + found[..., 1] * step_y], dim=-1)
    return peak


def _whole_surface_peak(products: Series, reach: float) -> torch.Tensor:
    """The largest sample [..., 2] of the correlation within `reach`."""
    surface = torch.fft.irfft2(products.spectra, s=products.shape)
    half_y, half_x = (min(math.ceil(reach / pixel), (n - 1) // 2) for n, pixel in zip(products.shape, products.pixel))
    rows, columns = (torch.arange(-half, half + 1, device=surface.device) for half in (half_y, half_x))
    near = surface[..., rows, :][..., columns]
    best = near.flatten(-2).argmax(dim=-1)
    return torch.stack([columns[best % len(columns)] * products.pixel[1], rows[best // len(columns)] * products.pixel[0]], dim=-1)


def sample_correlation(products: Series, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Correlations [..., m, n] at positions y [..., m] and x [..., n], px, by direct transform (Guizar-Sicairos, Opt. Lett. 2008)."""
    kx, ky = products.frequencies()
    twice = torch.full_like(kx[0], 2.0)  # the half transform stands for both halves, its first column only for itself
    twice[0] = 1.0
    phase_y = 2 * math.pi * y[..., :, None] * ky[:, 0]
    phase_x = 2 * math.pi * x[..., :, None] * kx[0]
    rows = torch.polar(torch.ones_like(phase_y), phase_y) @ products.spectra
    return (rows @ torch.polar(twice.expand_as(phase_x).contiguous(), phase_x).transpose(-1, -2)).real


def parabola_peak(values: torch.Tensor) -> torch.Tensor:
    """Maximum [..., 2] (x, y) of surfaces [..., m, n], in samples from the corner, by a parabola along each axis."""
    rows, columns = values.shape[-2:]
    flat = values.flatten(-2)
    best = flat.argmax(dim=-1)
    y, x = best // columns, best % columns

    def offset(index: torch.Tensor, step: int, limit: int) -> torch.Tensor:
        inside = (index > 0) & (index < limit - 1)
        low, high = (best - step).clamp(min=0), (best + step).clamp(max=flat.shape[-1] - 1)
        before, centre, after = (flat.gather(-1, place[..., None])[..., 0] for place in (low, best, high))
        curve = before - 2 * centre + after
        return torch.where(inside & (curve < 0), 0.5 * (before - after) / curve.clamp(max=-1e-30), torch.zeros_like(curve))

    return torch.stack([x + offset(x, 1, columns), y + offset(y, columns, rows)], dim=-1)
