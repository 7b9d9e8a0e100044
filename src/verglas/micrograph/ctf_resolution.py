"""How far a fitted CTF is seen in a power spectrum: the equi-phase average and its local correlation with the model.

After Rohou & Grigorieff, J. Struct. Biol. 2015 (CTFFIND4): pixels of equal phase are averaged, which undoes astigmatism, and the
fit is trusted up to the first frequency at which average and model no longer correlate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from verglas.micrograph.ctf_estimation import CtfFit, CtfSearch, Microscope, background_basis, radial_profile, ring_pixels
from verglas.optics.ctf import ctf_1d

THRESHOLD = 0.5  # CTFFIND4's
_FEWEST_BINS = 16
_BEGINNING = 6  # the part of the range (1/6) in which the first ring must be seen


@dataclass(frozen=True)
class CtfProfile:
    """Along the mean defocus: frequency 1/Å, log power without its background, |CTF|^2, local correlation, each [n]."""

    frequency: torch.Tensor
    observed: torch.Tensor
    model: torch.Tensor
    correlation: torch.Tensor

    @property
    def resolution(self) -> float:
        """Å of the last bin before the correlation first falls under 0.5; the lowest resolution where no ring is seen at the beginning."""
        good = self.correlation >= THRESHOLD
        begin = good[: max(1, len(good) // _BEGINNING)].nonzero()
        if not len(begin):
            return 1 / float(self.frequency[0])
        fallen = (~good[int(begin[0]) :]).nonzero()
        last = int(begin[0] + fallen[0]) - 1 if len(fallen) else len(good) - 1
        return 1 / float(self.frequency[last])


def ctf_profile(spectrum: torch.Tensor, pixel_size: float, fit: CtfFit, microscope: Microscope, search: CtfSearch) -> CtfProfile:
    """Equi-phase average of a power spectrum [box, box//2+1] (FFT order) at `pixel_size` Å, beside the fitted model.

    Each window of the correlation spans two rings of the model at least, and 16 bins of half a Fourier pixel.
    """
    kx, ky, log_power = ring_pixels(spectrum, pixel_size, search.lowest, search.highest)
    radius = torch.sqrt(kx * kx + ky * ky)
    mean = (fit.defocus_u + fit.defocus_v) / 2
    turn = 2 * (torch.atan2(ky, kx) - torch.deg2rad(torch.tensor(fit.defocus_angle)))
    local = mean + fit.astigmatism / 2 * torch.cos(turn)
    # where the mean defocus has the phase that this pixel has (to first order in the astigmatism)
    equal = radius * torch.sqrt(local / mean)
    frequency, observed, counts = radial_profile(equal, log_power, spectrum.shape[0] * pixel_size)
    inside = (frequency > 1 / search.lowest) & (frequency < 1 / search.highest) & (counts > 4)
    frequency, observed, counts = frequency[inside], observed[inside], counts[inside]
    model = ctf_1d(
        frequency, defocus=mean, phase_shift=fit.phase_shift, voltage=microscope.voltage,
        spherical_aberration=microscope.spherical_aberration, amplitude_contrast=microscope.amplitude_contrast,
    ).square()  # fmt: skip
    columns = torch.cat([background_basis(frequency), model[:, None]], dim=1) * counts.sqrt()[:, None]
    solution = torch.linalg.lstsq(columns.double(), (observed * counts.sqrt()).double()[:, None]).solution[:, 0].float()
    observed = observed - background_basis(frequency) @ solution[:-1]
    return CtfProfile(frequency.cpu(), observed.cpu(), model.cpu(), local_correlation(observed, model).cpu())


def local_correlation(observed: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """Correlation [n] of two series in a window about each bin that spans two periods of the model, straight lines taken out."""
    turns = ((model[1:-1] < model[:-2]) & (model[1:-1] <= model[2:])).nonzero()[:, 0] + 1  # the zeros
    period = torch.full_like(model, float(_FEWEST_BINS) / 2)
    for first, last in zip(turns[:-1].tolist(), turns[1:].tolist()):
        period[first:last] = last - first
    if len(turns) > 1:
        period[: int(turns[0])] = period[int(turns[0])]
        period[int(turns[-1]) :] = period[int(turns[-1]) - 1]
    values = torch.zeros_like(model)
    for index in range(len(model)):
        half = max(_FEWEST_BINS // 2, int(period[index]))
        low, high = max(0, index - half), min(len(model), index + half + 1)
        line = torch.linspace(-1, 1, high - low, device=model.device)
        basis = torch.linalg.qr(torch.stack([torch.ones_like(line), line], dim=1)).Q
        a, b = (series[low:high] - basis @ (basis.T @ series[low:high]) for series in (observed, model))
        values[index] = (a @ b) / (a.norm() * b.norm()).clamp(min=1e-12)
    return values
