"""From two half maps to a map that can be interpreted: masked and corrected FSC, sharpening, filtering (RELION's `relion_postprocess`).

The steps: FSC of the half maps without mask, with mask, and with mask after their phases were randomised where the unmasked FSC is
under 0.8 (Chen et al., Ultramicroscopy 2013); the corrected curve gives the resolution at 0.143. Their mean is divided by the
detector's MTF, weighted by √(2 FSC / (1 + FSC)), sharpened by a B-factor from the Guinier plot (Rosenthal & Henderson, J. Mol. Biol.
2003) or a given one, and low-passed at the resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from verglas.errors import InputError
from verglas.volume.filters import apply_weights, bfactor_weights, lowpass_weights, radius, shell_weights
from verglas.volume.fourier import radial_average, rfft_centred
from verglas.volume.fsc import fsc, resolution_shell, shell_to_resolution, solvent_corrected
from verglas.volume.masks import share_of_box

# A Guinier fit over fewer shells than this says little, so its low-resolution end is moved.
_SHELLS_TO_FIT = 5
# RELION's rlnParticleBoxFractionSolventMask is this over the mask's share of the box (measured on nine masks).
_RELION_FRACTION = 0.476


@dataclass(frozen=True)
class FscCurves:
    """Correlations of the half maps by shell, each [shells] float64, and what was read from them.

    `particle`: the unmasked curve as it would be if the box held nothing but the mask's inside. `randomised_from`: first shell of
    random phases. `shell`: the last with a corrected FSC of 0.143 or more; `resolution`: the same in Å.
    """

    unmasked: torch.Tensor
    masked: torch.Tensor
    randomised: torch.Tensor
    corrected: torch.Tensor
    particle: torch.Tensor
    randomised_from: int
    shell: int
    resolution: float


@dataclass(frozen=True)
class Guinier:
    """Logarithm of the mean amplitude by shell: of the mean map (MTF taken off), FSC-weighted, and sharpened; each [shells].

    `squared`: 1/d² of each shell, Å⁻². `slope`, `intercept`, `correlation` of the line fitted over `fit_low` to `fit_high` Å; they are
    0 when the B-factor was given.
    """

    squared: torch.Tensor
    original: torch.Tensor
    weighted: torch.Tensor
    sharpened: torch.Tensor
    slope: float
    intercept: float
    correlation: float
    fit_low: float
    fit_high: float


@dataclass(frozen=True)
class PostProcessed:
    """The sharpened map [z, y, x] without and with the mask, and how it came about.

    `mask_share` is the mask's true share of the box, `relion_fraction` what RELION writes in its place.
    """

    map: torch.Tensor
    masked_map: torch.Tensor
    curves: FscCurves
    guinier: Guinier
    bfactor: float
    lowpass: float
    mask_share: float
    relion_fraction: float


def postprocess(
    half1: torch.Tensor,
    half2: torch.Tensor,
    mask: torch.Tensor,
    pixel_size: float,
    *,
    bfactor: float | None = None,
    fit_lowest: float = 10.0,
    fit_highest: float = 0.0,
    mtf: tuple[torch.Tensor, torch.Tensor] | None = None,
    mtf_pixel_size: float | None = None,
    fsc_weighting: bool = True,
    lowpass: float | None = None,
    seed: int = 1,
) -> PostProcessed:
    """Judge, sharpen and filter the mean of two half maps [N, N, N].

    `bfactor` (Å², negative sharpens) or None for the Guinier fit from `fit_lowest` to `fit_highest` Å (0: the resolution). `mtf`:
    frequencies (cycles a detector pixel) and values, with the detector's pixel in `mtf_pixel_size` Å (default: the maps'). `lowpass`:
    Å, None for the resolution, 0 for none. Raises InputError when mask or maps don't fit together.
    """
    check_maps(half1, half2, mask)
    size = half1.shape[-1]
    curves = fsc_curves(half1, half2, mask, pixel_size, seed)
    mean = (half1 + half2) / 2
    if mtf is not None:
        mean = apply_weights(mean, 1 / mtf_weights(size, pixel_size, *mtf, mtf_pixel_size or pixel_size).to(mean.device))
    original = log_amplitudes(mean)
    if fsc_weighting:
        mean = apply_weights(mean, shell_weights(fsc_weights(curves.corrected), size).to(mean.device))
    weighted = log_amplitudes(mean)
    line = guinier_fit(weighted, size, pixel_size, fit_lowest, fit_highest or curves.resolution) if bfactor is None else None
    bfactor = 4 * line.slope if line else bfactor or 0.0
    lowpass = curves.resolution if lowpass is None else lowpass
    weights = bfactor_weights(size, pixel_size, bfactor)
    if 0 < lowpass < math.inf:
        weights = weights * lowpass_weights(size, pixel_size, lowpass)
    sharpened = apply_weights(mean, weights.to(mean.device))
    line = line or _Line(0.0, 0.0, 0.0, 0.0, 0.0)
    guinier = Guinier(squared_frequency(size, pixel_size), original, weighted, log_amplitudes(sharpened), *line.values())
    share = share_of_box(mask)
    return PostProcessed(sharpened, sharpened * mask, curves, guinier, bfactor, lowpass, share, _RELION_FRACTION / share)


def check_maps(half1: torch.Tensor, half2: torch.Tensor, mask: torch.Tensor) -> None:
    """Raise InputError unless the three are of one shape, the halves differ, and the mask lies in 0 to 1 and holds something."""
    if not half1.shape == half2.shape == mask.shape:
        shapes = [tuple(array.shape) for array in (half1, half2, mask)]
        raise InputError("half maps and mask", f"their boxes differ: {shapes}", "All three must have one box and pixel size")
    if torch.equal(half1, half2):
        raise InputError("half maps", "the two are the same map", "Their FSC would be 1 everywhere; give the other half")
    low, high = float(mask.min()), float(mask.max())
    if low < -1e-3 or high > 1.001 or share_of_box(mask) == 0:
        raise InputError("mask", f"values from {low:.3g} to {high:.3g}", "A mask lies between 0 (solvent) and 1 (particle) and reaches ½")


def fsc_curves(half1: torch.Tensor, half2: torch.Tensor, mask: torch.Tensor, pixel_size: float, seed: int = 1) -> FscCurves:
    """The FSC of two half maps [N, N, N] without and with the mask, corrected for what the mask itself brings."""
    unmasked = fsc(half1, half2)
    masked, randomised, corrected, start = solvent_corrected(half1, half2, mask, unmasked, seed)
    fraction = _RELION_FRACTION / share_of_box(mask)
    particle = fraction * unmasked / (1 + (fraction - 1) * unmasked)
    shell = resolution_shell(corrected)
    return FscCurves(
        unmasked, masked, randomised, corrected, particle, start, shell, shell_to_resolution(shell, half1.shape[-1], pixel_size)
    )


def fsc_weights(curve: torch.Tensor) -> torch.Tensor:
    """√(2 FSC / (1 + FSC)) of a half-map FSC [shells]; 0 from the first shell on whose FSC is not positive."""
    alive = torch.cumprod((curve > 1e-10).long(), dim=0).bool()
    return torch.where(alive, (2 * curve / (1 + curve).clamp(min=1e-9)).clamp(min=0).sqrt(), 0.0)


def mtf_weights(size: int, pixel_size: float, frequency: torch.Tensor, value: torch.Tensor, mtf_pixel_size: float) -> torch.Tensor:
    """The MTF on a half transform of a map; `frequency` in cycles a detector pixel of `mtf_pixel_size` Å, linear between its points."""
    wanted = (radius(size) / (size * pixel_size) * mtf_pixel_size).clamp(float(frequency[0]), float(frequency[-1]))
    right = torch.searchsorted(frequency.double(), wanted).clamp(1, len(frequency) - 1)
    x, y = frequency.double(), value.double()
    part = (wanted - x[right - 1]) / (x[right] - x[right - 1])
    mtf = y[right - 1] + part * (y[right] - y[right - 1])
    if float(mtf.min()) <= 0:
        raise InputError("MTF", "reaches 0 within the map's frequencies", "The map cannot be divided by it; check the file and its pixel")
    return mtf.float()


def log_amplitudes(density: torch.Tensor) -> torch.Tensor:
    """Logarithm of the mean amplitude in each shell [N//2+1], transform divided by the number of voxels; -99 where there is none."""
    size = density.shape[-1]
    mean = radial_average(rfft_centred(density, 3).abs(), size, 3) / size**3
    return torch.where(mean > 1e-20, mean.clamp(min=1e-20).log(), -99.0)


def squared_frequency(size: int, pixel_size: float) -> torch.Tensor:
    """1/d² of shells 0 to N//2, Å⁻², float64."""
    return (torch.arange(size // 2 + 1, dtype=torch.float64) / (size * pixel_size)) ** 2


@dataclass(frozen=True)
class _Line:
    slope: float
    intercept: float
    correlation: float
    low: float
    high: float

    def values(self) -> tuple[float, float, float, float, float]:
        return self.slope, self.intercept, self.correlation, self.low, self.high


def guinier_fit(logs: torch.Tensor, size: int, pixel_size: float, lowest: float, highest: float) -> _Line:
    """The line through ln(amplitude) against 1/d² between `lowest` and `highest` Å; B is 4 times its slope.

    Where fewer than 5 shells lie between, the low-resolution end is moved until 5 do. A map that ends before `lowest`, or has fewer
    than 2 shells of power, gives slope 0: what a protein's spectrum does there says nothing of a B-factor.
    """
    squared = squared_frequency(size, pixel_size)
    shells = torch.arange(len(logs))
    last = min(len(logs) - 1, math.floor(size * pixel_size / highest + 1e-6))
    first = min(math.ceil(size * pixel_size / lowest - 1e-6), max(1, last - _SHELLS_TO_FIT + 1))
    used = (shells >= first) & (shells <= last) & (logs.cpu() > -90)
    low, high = (shell_to_resolution(shell, size, pixel_size) for shell in (first, last))
    if highest > lowest or int(used.sum()) < 2:
        return _Line(0.0, 0.0, 0.0, low, high)
    x, y = squared[used], logs.cpu().double()[used]
    dx, dy = x - x.mean(), y - y.mean()
    slope = float((dx * dy).sum() / dx.square().sum())
    correlation = float((dx * dy).sum() / (dx.square().sum() * dy.square().sum()).sqrt().clamp(min=1e-30))
    return _Line(slope, float(y.mean()) - slope * float(x.mean()), correlation, low, high)
