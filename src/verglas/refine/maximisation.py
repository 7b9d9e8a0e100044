"""From sums to the next model: noise, priors, maps (METHOD.md §5). All spectra are per shell, of one real component."""

from __future__ import annotations

import torch

from verglas.refine.model import Sums
from verglas.refine.observations import Observations
from verglas.volume.fourier import radial_average, rfft_centred, sum_by
from verglas.volume.fsc import fsc
from verglas.volume.masks import radius_grid, raised_cosine
from verglas.volume.padded import batches
from verglas.volume.reconstruct import reconstruct, weight_of_shells
from verglas.volume.slices import FourierSums

MAX_SSNR = 999.0
_LEAST_NOISE = 1e-3  # of the spectrum before: a noise of nothing would make every score infinite
FLATTEN_EDGE_PX = 5.0


def new_noise(sums: Sums, seen: Observations, before: torch.Tensor) -> torch.Tensor:
    """Variance of a component in each shell, [noise groups, shells], from the residuals; groups without images keep theirs."""
    count = 2 * seen.pixels_of_shell.double() * sums.images[:, None]
    noise = torch.where(count > 0, sums.residual / count.clamp(min=1), before)
    noise = torch.maximum(noise, _LEAST_NOISE * before)
    noise[:, 0] = noise[:, 1]
    return noise


def first_noise(seen: Observations, power: torch.Tensor, mean: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Noise at the start [noise groups, shells]: half the mean power of images less half the power of their mean.

    power float64 [n, shells] Σ|X|² of each image; mean complex [groups, k] their mean transform; group int64 [n]. A group without
    images takes the mean power of all, one with a single image the power of that.
    """
    pixels = seen.pixels_of_shell.double().clamp(min=1)
    counts = torch.bincount(group, minlength=seen.noise_groups)
    total = sum_by(group, power.T, seen.noise_groups).T
    of_mean = seen.shell_sum(mean.abs().square(), seen.all_pixels)
    count = counts[:, None].double()
    noise = (total - count * of_mean) / (count - 1).clamp(min=1)  # the mean holds an n-th of the noise
    noise = torch.where(count > 1, noise, torch.where(count == 1, total, power.mean(0))) / (2 * pixels)
    floor = _LEAST_NOISE * (total.sum(0) / len(power)) / (2 * pixels)
    noise = torch.maximum(noise, floor)
    noise[:, 0] = noise[:, 1]
    return noise


def spectrum(volumes: torch.Tensor) -> torch.Tensor:
    """Half the mean |F|² in each shell: the variance of a component of maps or class averages [m, ...], float64 [m, N // 2 + 1]."""
    dims, box = volumes.dim() - 1, volumes.shape[-1]
    parts = [volumes[maps] for maps in batches(len(volumes), dims, box, volumes.device)]
    return torch.cat([radial_average(rfft_centred(part, dims).abs().square(), box, dims) / 2 for part in parts])


def noise_free_power(sums: FourierSums, weight: torch.Tensor) -> torch.Tensor:
    """Variance of the signal's components in each shell of the plain averages: their power less the noise's, never under 0.

    weight float64 [m, shells] as of `shell_weights`; what is found has its shape.
    """
    plain = _to_length(spectrum(reconstruct(sums)), weight.shape[1])
    return torch.where(weight > 0, plain - 1 / weight.clamp(min=1e-300), 0.0).clamp(min=0.0)


def class_maps(
    sums: FourierSums, tau2: torch.Tensor, weight: torch.Tensor, fudge: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The classes' maps, their SSNR (fudge · tau2 · weight) and new tau2 (the maps' own spectra), [m, shells] each, as `tau2`."""
    volumes = reconstruct(sums, fudge * tau2)
    return volumes, (fudge * tau2 * weight).clamp(max=MAX_SSNR), _to_length(spectrum(volumes), tau2.shape[1])


def joined_low(first: FourierSums, second: FourierSums, shell: int) -> None:
    """Replace both halves' sums up to `shell` by their mean, so that the halves do not drift apart where they cannot overfit."""
    middle, reach = first.shape[0] // 2, (shell + 1) * first.padding
    for rows in first.rows():
        near = slice(max(rows.start, middle - reach), min(rows.stop, middle + reach + 1))
        if near.start >= near.stop:
            continue
        low = (first.shells(near) <= shell)[..., None]
        for maps in first.batches():
            own = [half.grid(maps, near) for half in (first, second)]
            mean = (own[0] + own[1]) / 2
            for values in own:
                values.copy_(torch.where(low, mean, values))


def shell_weights(sums: FourierSums, shells: int) -> torch.Tensor:
    """`weight_of_shells`, cut or filled with 0 to `shells`, [m, shells]."""
    return _to_length(weight_of_shells(sums), shells)


def half_map_fsc(first: torch.Tensor, second: torch.Tensor, shells: int, joined_shell: int = 0) -> torch.Tensor:
    """FSC of the unfiltered half maps [shells], float64; 1 where they were joined, 0 past the end of the maps' transforms."""
    curve = _to_length(fsc(first, second), shells)
    curve[: joined_shell + 1] = 1.0
    return curve


def ssnr_of_fsc(curve: torch.Tensor, *, joined: bool = False) -> torch.Tensor:
    """Signal over noise from the FSC: f / (1 − f), f = √(2 FSC / (1 + FSC)) for both halves together; at most 999."""
    curve = curve.clamp(min=1e-3, max=1.0)
    if joined:
        curve = torch.sqrt(2 * curve / (1 + curve))
    return (curve / (1 - curve).clamp(min=1e-12)).clamp(max=MAX_SSNR)


def tau2_of_ssnr(ssnr: torch.Tensor, sums: FourierSums, fudge: float) -> torch.Tensor:
    """Prior variances [m, shells] that make fudge · SSNR [shells] of the half's own weight: fudge · SSNR / weight; 0 where no weight is."""
    weight = shell_weights(sums, len(ssnr))
    return torch.where(weight > 0, fudge * ssnr / weight.clamp(min=1e-300), 0.0)


def flattened(volumes: torch.Tensor, mask: torch.Tensor | None, diameter_px: float) -> torch.Tensor:
    """Maps [m, ...] with solvent set to 0: outside `mask`, or outside a soft sphere (circle) of the particle's diameter."""
    if mask is None:
        distance = radius_grid(volumes.shape[-1], volumes.dim() - 1, volumes.device)
        mask = raised_cosine(distance - diameter_px / 2, FLATTEN_EDGE_PX)
    return volumes * mask


def new_scale(sums: Sums, before: torch.Tensor) -> torch.Tensor:
    """Strength of each micrograph's particles, mean 1 [micrographs]: Σ cross / Σ energy over the shells that tell it.

    Kept within a factor of five of the median, as a micrograph of a few particles may say anything.
    """
    told = sums.energy > 0
    if not told.any():
        return before
    scale = torch.where(told, before.double() * sums.cross / sums.energy.clamp(min=1e-300), before.double())
    middle = scale[told].median().clamp(min=1e-3)
    scale = scale.clamp(min=float(middle / 5), max=float(middle * 5))
    return (scale / scale.mean()).float()


def _to_length(values: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(values[..., :length], (0, max(0, length - values.shape[-1]))).double()
