"""Aberrations beyond defocus and Cs: Zernike terms, beam tilt, anisotropic magnification, in RELION's order and signs.

Zernike polynomials are taken at k itself, in 1/Å (no scaling to a unit disc). Even ones change the CTF's phase; odd ones and beam tilt
multiply the image's transform by a phase factor. Order of the coefficients: even (n, m) = (0, 0), (2, -2), (2, 0), (2, 2), (4, -4) ...;
odd (1, -1), (1, 1), (3, -3), (3, -1), (3, 1), (3, 3), ...; m < 0 is the sine of |m| theta, m >= 0 the cosine of m theta.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from verglas.optics.microscope import wavelengths


def even_index(i: int) -> tuple[int, int]:
    """(n, m) of the i-th even coefficient, counted from 0."""
    row = math.isqrt(i)
    return 2 * row, 2 * (i - row * row) - 2 * row


def odd_index(i: int) -> tuple[int, int]:
    """(n, m) of the i-th odd coefficient, counted from 0."""
    row = (math.isqrt(1 + 4 * i) - 1) // 2
    return 2 * row + 1, 2 * (i - row * (row + 1)) - (2 * row + 1)


def zernike(kx: torch.Tensor, ky: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Zernike polynomial Z(n, m) at (kx, ky), of their shape."""
    order = abs(m)
    k2 = kx * kx + ky * ky
    radial = torch.zeros_like(k2)
    for s in range((n - order) // 2 + 1):
        factor = math.factorial(n - s) / (math.factorial(s) * math.factorial((n + order) // 2 - s) * math.factorial((n - order) // 2 - s))
        radial = radial + (-1) ** s * factor * k2 ** ((n - order) // 2 - s)
    # k^m (cos m theta + i sin m theta) is a polynomial: no angle, nothing undefined at the origin
    power = torch.complex(kx, ky) ** order if order else torch.ones_like(k2) + 0j
    return radial * (power.imag if m < 0 else power.real)


def even_zernike_phase(kx: torch.Tensor, ky: torch.Tensor, coefficients: torch.Tensor, shape: int) -> torch.Tensor:
    """Sum of the even terms in radians; `coefficients` [c] or [n, c] against frequencies that end in `shape` axes."""
    return _series(kx, ky, coefficients, shape, even_index)


def aberration_phase(
    kx: torch.Tensor,
    ky: torch.Tensor,
    *,
    voltage: float | torch.Tensor,
    spherical_aberration: float | torch.Tensor,
    beam_tilt: torch.Tensor | None = None,
    odd_zernike: torch.Tensor | None = None,
    mag: torch.Tensor | None = None,
) -> torch.Tensor:
    """Phase factor exp(i phase) that the images carry, complex, for frequencies of shape F -> F or [n, *F].

    beam_tilt: (x, y) in mrad, [2] or [n, 2]: phase = -2 pi Cs lambda^2 k^2 (k . b). odd_zernike: [c] or [n, c], phase = + their sum.
    Multiply an image's transform by the conjugate to undo it. Units as for `ctf.ctf`.
    """
    shape = kx.dim()
    kx, ky = magnified(kx, ky, mag)
    phase = torch.zeros_like(kx)
    if odd_zernike is not None:
        phase = phase + _series(kx, ky, odd_zernike, shape, odd_index)
    if beam_tilt is not None:
        strength = -2 * math.pi * 1e7 * torch.as_tensor(spherical_aberration).double() * wavelengths(voltage) ** 2
        tilt = 1e-3 * strength[..., None] * beam_tilt.double()
        tilt = tilt[(...,) + (None,) * shape].to(device=kx.device, dtype=kx.dtype)
        along = kx * tilt.select(-1 - shape, 0) + ky * tilt.select(-1 - shape, 1)
        phase = phase + (kx * kx + ky * ky) * along
    return torch.polar(torch.ones_like(phase), phase)


def magnified(kx: torch.Tensor, ky: torch.Tensor, mag: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies mag @ (kx, ky); `mag` [2, 2] keeps their shape F, [n, 2, 2] makes it [n, *F]."""
    if mag is None:
        return kx, ky
    m = mag.to(device=kx.device, dtype=kx.dtype)[(...,) + (None,) * kx.dim()] if mag.dim() > 2 else mag.to(kx)
    axis = -2 - kx.dim() if mag.dim() > 2 else 0
    top, bottom = m.select(axis, 0), m.select(axis, 1)
    column = axis + 1 if mag.dim() > 2 else 0
    return (
        top.select(column, 0) * kx + top.select(column, 1) * ky,
        bottom.select(column, 0) * kx + bottom.select(column, 1) * ky,
    )


def _series(
    kx: torch.Tensor, ky: torch.Tensor, coefficients: torch.Tensor, shape: int, index: Callable[[int], tuple[int, int]]
) -> torch.Tensor:
    total = torch.zeros_like(kx)
    coefficients = coefficients.to(device=kx.device, dtype=kx.dtype)
    for i in range(coefficients.shape[-1]):
        factor = coefficients[..., i]
        total = total + (factor[(...,) + (None,) * shape] if factor.dim() else factor) * zernike(kx, ky, *index(i))
    return total
