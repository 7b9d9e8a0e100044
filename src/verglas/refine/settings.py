"""How a refinement or classification is to run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Choices that hold for a whole run; lengths in Å and angles in degrees unless `_px` is in the name.

    iterations: of a classification; the most that automatic refinement may take. limit_resolution: nothing finer is compared or
    summed. local_sigma: prior about the given poses in a classification, None for global searches. align: False keeps poses and
    shifts. absolute_greyscale: False compares maps by cross-correlation in the first iteration. correct_ctf and ctf_intact_first_peak say
    what the observations were made with. fix_noise keeps the noise of the start.
    """

    dims: int
    mask_diameter: float
    classes: int = 1
    iterations: int = 25
    symmetry: str = "C1"
    tau2_fudge: float = 1.0
    ini_high: float | None = None
    limit_resolution: float | None = None
    healpix_order: int = 2
    psi_step: float = 12.0
    offset_range_px: float = 5.0
    offset_step_px: float = 2.0
    local_sigma: float | None = None
    local_order: int = 4
    align: bool = True
    absolute_greyscale: bool = False
    correct_ctf: bool = True
    ctf_intact_first_peak: bool = False
    correct_norm: bool = True
    correct_scale: bool = True
    fix_noise: bool = False
    low_resol_join: float = 40.0
    solvent_correct_fsc: bool = False
    padding: int = 2
    half_precision: bool = False
    seed: int = 1

    @property
    def begins_locally(self) -> bool:
        """Whether automatic refinement searches about the given poses from its first iteration on."""
        return self.healpix_order >= self.local_order

    def shell_limit(self, box: int, pixel_size: float) -> int:
        """The last shell that may be used: just below Nyquist, or that of `limit_resolution`."""
        nyquist = (box - 1) // 2
        if not self.limit_resolution:
            return nyquist
        return max(1, min(nyquist, int(box * pixel_size / self.limit_resolution + 0.5)))
