"""What the CTF of each particle depends on, gathered from its row and its optics group."""

from __future__ import annotations

import numpy as np
import torch

from verglas.errors import InputError
from verglas.particles.tables import ParticleSet

_ROW_DEFAULTS = {"phase_shift": 0.0, "ctf_bfactor": 0.0, "ctf_scale": 1.0}
_OPTICS = ("voltage", "spherical_aberration", "amplitude_contrast")


def ctf_parameters(particles: ParticleSet, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """One float32 value a particle [n] for each argument of `optics.ctf.ctf`: Å, degrees, kV, mm.

    Raises InputError when a defocus column is missing or holds something that is not a number: RELION would take it as 0.
    """
    values = {name: _defocus(particles, name) for name in ("defocus_u", "defocus_v", "defocus_angle")}
    values |= {name: particles.column(name, default).astype(np.float64) for name, default in _ROW_DEFAULTS.items()}
    values |= {name: particles.optics_value(name) for name in _OPTICS}
    return {name: torch.as_tensor(array, dtype=torch.float32, device=device) for name, array in values.items()}


def magnification(particles: ParticleSet) -> torch.Tensor | None:
    """Anisotropic magnification matrices of the optics groups, float32 [groups, 2, 2], or None where no group has one."""
    if "mag_00" not in particles.optics.table:
        return None
    entries = [particles.optics.value(f"mag_{index}") for index in ("00", "01", "10", "11")]
    return torch.as_tensor(np.stack(entries, axis=1).reshape(-1, 2, 2), dtype=torch.float32)


def beam_tilt(particles: ParticleSet) -> torch.Tensor | None:
    """Beam tilt (x, y) of the optics groups in mrad, float32 [groups, 2], or None where no group has one."""
    table = particles.optics.table
    if "beam_tilt_x" not in table:
        return None
    return torch.as_tensor(np.stack([particles.optics.value(f"beam_tilt_{axis}") for axis in "xy"], axis=1), dtype=torch.float32)


def _defocus(particles: ParticleSet, name: str) -> np.ndarray:
    if name not in particles:
        raise InputError(
            "particles", f"no column {name}: the CTF cannot be computed", "Run CtfFind and Extract, or switch CTF correction off"
        )
    values = particles.column(name).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError("particles", f"{name} of row {bad[0] + 1} is {values[bad[0]]}", "Mend or remove the row")
    return values
