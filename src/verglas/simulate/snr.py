"""How much signal a Fourier component of a particle set carries, from the physics that made it."""

from __future__ import annotations

import numpy as np
import torch

from verglas.optics.ctf import ctf
from verglas.optics.dose import damage
from verglas.optics.microscope import interaction_constant
from verglas.simulate.detector import mtf
from verglas.simulate.ice import kept_between_frames, phase_spectrum
from verglas.simulate.movie import mean_counts
from verglas.simulate.potential import Projector
from verglas.simulate.settings import SimulationSettings
from verglas.volume.fourier import frequency_grid, radial_average
from verglas.volume.rotations import random_rotations

RESOLUTIONS = (40.0, 30.0, 20.0, 15.0, 12.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0)
VIEWS, DEFOCI = 48, 24


def snr_per_component(settings: SimulationSettings, projector: Projector) -> dict[str, list[float]]:
    """Power of the signal over that of the noise for one Fourier component of one particle's box, dose-weighted sum of the frames.

    Averages over views, defocus and direction; CTF, envelope, damage, MTF, shot noise and ice included. Keys: `resolution`
    (Å), `snr`, and `box` (Å, one value): the larger the box, the less signal in each of its components.
    """
    frequency, signal, noise = spectra(settings, projector)
    wanted = [1 / r for r in RESOLUTIONS if 1 / r < frequency[-1]]
    ratio = np.interp(wanted, frequency, signal / noise)
    return {
        "resolution": [round(1 / k, 1) for k in wanted],
        "snr": [float(f"{value:.3g}") for value in ratio],
        "box": [projector.box * settings.pixel_size],
    }


def spectra(settings: SimulationSettings, projector: Projector) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies (1/Å) of the box's shells, and mean power of signal and noise in the dose-weighted sum, relative units."""
    s, box = settings, projector.box
    kx, ky = frequency_grid(box, s.pixel_size, 2)
    k = torch.hypot(kx, ky)
    defoci = torch.linspace(s.defocus_min, s.defocus_max, DEFOCI)
    transfer = ctf(
        kx,
        ky,
        defocus_u=defoci,
        defocus_v=defoci,
        voltage=s.voltage,
        spherical_aberration=s.spherical_aberration,
        amplitude_contrast=s.amplitude_contrast,
        ctf_bfactor=s.envelope_bfactor,
    )
    seen = transfer.square().mean(dim=0) * mtf(k * s.pixel_size, s.mtf_nyquist) ** 2
    sigma = interaction_constant(s.voltage)
    views = projector.slices(random_rotations(VIEWS, torch.Generator().manual_seed(0)))
    signal = (2 * sigma * s.pixel_size) ** 2 * views.abs().square().mean(dim=0) * seen
    exposure = s.dose_per_frame * (torch.arange(s.frames) + 0.5)
    weights = damage(k, exposure if s.damage else 0 * exposure, s.voltage)
    norm = weights.square().sum(dim=0)
    shot = box**2 / mean_counts(s)
    keep = kept_between_frames(k, s.ice_diffusion * s.dose_per_frame)
    ice = 4 * phase_spectrum(k, s.ice_thickness, sigma) * box**2 / s.pixel_size**2 * seen
    noise = shot + ice * _remembered(weights, keep) / norm
    rings = [radial_average(power, box).numpy() for power in (signal * norm, noise)]
    return np.arange(len(rings[0])) / (box * s.pixel_size), rings[0], rings[1]


def _remembered(weights: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Power of Σ w_f X_f where frames f and g of X correlate by keep^|f−g| and have power 1."""
    total = torch.zeros_like(keep)
    for first, weight in enumerate(weights):
        for second, other in enumerate(weights):
            total += weight * other * keep ** abs(first - second)
    return total
