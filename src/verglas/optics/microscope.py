"""Constants of the electron beam."""

from __future__ import annotations

import math

import torch

_REST_ENERGY = 510998.95  # of the electron, eV
_HC = 12398.4198  # eV Å


def wavelength(voltage: float) -> float:
    """Relativistic wavelength in Å at `voltage` kV, with RELION's constants (300 kV: 0.0196876)."""
    return float(wavelengths(voltage))


def wavelengths(voltage: float | torch.Tensor) -> torch.Tensor:
    """`wavelength` of a tensor of voltages in kV, float64, of the same shape."""
    volts = 1e3 * torch.as_tensor(voltage).double()
    return 12.2643247 / torch.sqrt(volts * (1 + volts * 0.978466e-6))


def interaction_constant(voltage: float) -> float:
    """Phase in radians for a projected potential of 1 V Å at `voltage` kV (300 kV: 6.526e-4; Kirkland, Advanced Computing in EM)."""
    volts = voltage * 1e3
    wave = _HC / math.sqrt(volts * (2 * _REST_ENERGY + volts))
    return 2 * math.pi / (wave * volts) * (_REST_ENERGY + volts) / (2 * _REST_ENERGY + volts)
