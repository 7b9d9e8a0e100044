"""What CtfFind leaves of a micrograph: a STAR file with the fit and its profile, and the picture of observed beside fitted rings."""

from __future__ import annotations

from dataclasses import asdict
from os import PathLike

import numpy as np
import pandas as pd
import torch

from verglas.errors import FileFormatError
from verglas.io.star import numbers, read_star, write_star
from verglas.micrograph.ctf_estimation import CtfFit, Microscope
from verglas.micrograph.ctf_resolution import CtfProfile
from verglas.micrograph.frames import box_mean
from verglas.optics.ctf import ctf

PathName = str | PathLike[str]
_LABELS = {
    "defocus_u": "rlnDefocusU",
    "defocus_v": "rlnDefocusV",
    "defocus_angle": "rlnDefocusAngle",
    "phase_shift": "rlnPhaseShift",
    "score": "rlnCtfFigureOfMerit",
}
_PROFILE = {"frequency": "rlnResolution", "observed": "verglasLogPower", "model": "verglasCtfSquared", "correlation": "verglasCorrelation"}


def write_ctf_fit(path: PathName, fit: CtfFit, profile: CtfProfile) -> None:
    """Write tables `ctf_fit` and `ctf_profile`."""
    values = {_LABELS[name]: repr(value) for name, value in asdict(fit).items()} | {"rlnCtfMaxResolution": repr(profile.resolution)}
    columns = {label: getattr(profile, name).double().numpy() for name, label in _PROFILE.items()}
    write_star(path, {"ctf_fit": values, "ctf_profile": pd.DataFrame(columns)})


def read_ctf_fit(path: PathName) -> tuple[CtfFit, CtfProfile]:
    """The fit and profile of `write_ctf_fit`. Raises FileFormatError for another file."""
    blocks = read_star(path)
    values, table = blocks.get("ctf_fit"), blocks.get("ctf_profile")
    if not isinstance(values, dict) or not isinstance(table, pd.DataFrame):
        raise FileFormatError(path, f"has tables {', '.join(blocks) or 'none'}, not ctf_fit and ctf_profile", "Run CtfFind again")
    fit = CtfFit(**{name: float(values[label]) for name, label in _LABELS.items()})
    return fit, CtfProfile(**{name: torch.tensor(numbers(table, label, path)).float() for name, label in _PROFILE.items()})


def rings_beside_model(
    spectrum: torch.Tensor, pixel_size: float, fit: CtfFit, microscope: Microscope, lowest: float, highest: float
) -> np.ndarray:
    """Picture [box, box], float32: observed rings on the left, fitted CTF^2 between the two resolutions (Å) on the right; both 0 to 1.

    The observed half is the log power without its smooth background and slightly smoothed.
    """
    box = spectrum.shape[0]
    log = torch.log(spectrum.clamp(min=float(spectrum[spectrum > 0].min())))
    full = torch.fft.fftshift(torch.cat([log, torch.roll(log[:, 1:-1].flip(0, 1), 1, dims=0)], dim=1))
    flat = box_mean(box_mean(full, 3), 3) - box_mean(full, max(9, box // 24 * 2 + 1))
    ky = torch.fft.fftshift(torch.fft.fftfreq(box, pixel_size))[:, None].expand(box, box)
    kx = ky.T
    inside = (kx**2 + ky**2 > 1 / lowest**2) & (kx**2 + ky**2 < 1 / highest**2)
    spread = flat[inside].std().clamp(min=1e-12)
    observed = ((flat / spread).clamp(-2, 2) + 2) / 4
    model = ctf(
        kx, ky, defocus_u=fit.defocus_u, defocus_v=fit.defocus_v, defocus_angle=fit.defocus_angle, phase_shift=fit.phase_shift,
        voltage=microscope.voltage, spherical_aberration=microscope.spherical_aberration, amplitude_contrast=microscope.amplitude_contrast,
    ).square()  # fmt: skip
    picture: np.ndarray = torch.where(kx < 0, observed, torch.where(inside, model, 0.5)).numpy()
    return picture
