"""The contrast transfer function, in RELION's convention (underfocus positive, CTF(0) = +amplitude contrast).

    chi = pi lambda dz k^2 - pi/2 Cs lambda^3 k^4,   dz = 1/2 [U + V + (U - V) cos 2(theta - angle)]
    CTF = sin(chi + atan(Q / sqrt(1 - Q^2)) + phase shift - even Zernikes) * scale * exp(-B k^2 / 4)

Particles are rows: every parameter is a number or a tensor [n], and frequencies are tensors of any shape F (a half plane, or a packed
list of Fourier pixels): the result is [n, *F], or F where all parameters are numbers. A parameter that already has two or more axes is
broadcast against the frequencies as it is, so [n, 1] goes with frequencies [n, k] of each particle's own.
"""

from __future__ import annotations

import math

import torch

from verglas.optics.aberrations import even_zernike_phase, magnified
from verglas.optics.microscope import wavelengths

Value = float | torch.Tensor


def ctf(
    kx: torch.Tensor,
    ky: torch.Tensor,
    *,
    defocus_u: Value,
    defocus_v: Value,
    defocus_angle: Value = 0.0,
    voltage: Value,
    spherical_aberration: Value,
    amplitude_contrast: Value,
    phase_shift: Value = 0.0,
    ctf_bfactor: Value = 0.0,
    ctf_scale: Value = 1.0,
    mag: torch.Tensor | None = None,
    even_zernike: torch.Tensor | None = None,
    intact_until_first_peak: bool = False,
) -> torch.Tensor:
    """CTF of each particle at the frequencies (kx, ky), 1/Å.

    Units: Å (defocus), degrees (angle, phase shift), kV, mm (spherical aberration), Å^2 (B factor).
    mag: anisotropic magnification [2, 2] or [n, 2, 2]; the CTF is evaluated at mag @ (kx, ky).
    even_zernike: coefficients [c] or [n, c] in RELION's order (see `aberrations`).
    intact_until_first_peak: 1 where the phase is within a quarter turn of 0 (RELION's "ignore CTFs until first peak").
    """
    shape = kx.dim()
    kx, ky = magnified(kx, ky, mag)

    def rows(value: torch.Tensor) -> torch.Tensor:
        value = value[(...,) + (None,) * shape] if value.dim() == 1 else value
        return value.to(device=kx.device, dtype=kx.dtype)

    xx, xy, yy, quartic, constant = (
        rows(value)
        for value in _phase_terms(defocus_u, defocus_v, defocus_angle, voltage, spherical_aberration, amplitude_contrast, phase_shift)
    )
    k2 = kx * kx + ky * ky
    phase = xx * (kx * kx) + xy * (kx * ky) + yy * (ky * ky) + quartic * (k2 * k2) + constant
    if even_zernike is not None:
        phase = phase - even_zernike_phase(kx, ky, even_zernike, shape)
    values = torch.sin(phase)
    if intact_until_first_peak:
        values = torch.where(phase.abs() < math.pi / 2, 1.0, values)
    if _differs(ctf_bfactor, 0.0):
        values = values * torch.exp(rows(_double(ctf_bfactor)) * (k2 / -4))
    if _differs(ctf_scale, 1.0):
        values = values * rows(_double(ctf_scale))
    return values


def ctf_1d(frequency: torch.Tensor, *, defocus: Value, **parameters: Value) -> torch.Tensor:
    """CTF along a line of frequencies [k], 1/Å, without astigmatism; `parameters` as for `ctf` -> [k] or [n, k]."""
    return ctf(frequency, torch.zeros_like(frequency), defocus_u=defocus, defocus_v=defocus, **parameters)  # type: ignore[arg-type]


def phase_from_amplitude_contrast(amplitude_contrast: Value) -> torch.Tensor:
    """Phase in radians that stands for a fraction Q of amplitude contrast: atan(Q / sqrt(1 - Q^2)), float64."""
    return torch.asin(_double(amplitude_contrast))


def _phase_terms(
    defocus_u: Value, defocus_v: Value, defocus_angle: Value, voltage: Value, cs: Value, contrast: Value, phase_shift: Value
) -> tuple[torch.Tensor, ...]:
    """Factors of kx^2, kx ky, ky^2, k^4 and 1 in the phase, float64: no trigonometry is left for the pixels."""
    wave = wavelengths(voltage)
    mean = math.pi * wave * (_double(defocus_u) + _double(defocus_v)) / 2
    spread = math.pi * wave * (_double(defocus_u) - _double(defocus_v)) / 2
    double_angle = 2 * torch.deg2rad(_double(defocus_angle))
    cosine, sine = spread * torch.cos(double_angle), spread * torch.sin(double_angle)
    quartic = -math.pi / 2 * 1e7 * _double(cs) * wave**3
    constant = phase_from_amplitude_contrast(contrast) + torch.deg2rad(_double(phase_shift))
    return mean + cosine, 2 * sine, mean - cosine, quartic, constant


def _double(value: Value) -> torch.Tensor:
    return torch.as_tensor(value).double()


def _differs(value: Value, usual: float) -> bool:
    """Whether a factor has to be computed at all: a tensor on a card is not asked, that would stop the queue."""
    return isinstance(value, torch.Tensor) or value != usual
