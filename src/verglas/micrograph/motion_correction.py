"""One movie from counts to micrograph: defects, motion, dose weights, sum, power spectrum."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from verglas.errors import ItemError
from verglas.micrograph.frames import Frames, frequencies, prepare_frames
from verglas.micrograph.motion import Motion, MotionSettings, estimate_motion
from verglas.micrograph.motion_sum import Sums, Weights, sum_frames
from verglas.optics.dose import critical_exposure

_PS_PIXEL = 1.4  # Å; power spectra reach at least to twice this


@dataclass(frozen=True)
class CorrectionSettings:
    """How to treat movies: pixel size in Å, exposure at the end of each frame in e/Å^2, kV; spectrum_group 0 for no power spectrum."""

    pixel_size: float
    voltage: float
    exposures: tuple[float, ...]
    motion: MotionSettings = field(default_factory=MotionSettings)
    bin_factor: float = 1.0
    dose_weighting: bool = True
    spectrum_group: int = 0
    spectrum_box: int = 512
    find_hot: bool = True
    seed: int = 1

    @property
    def spectrum_pixel(self) -> float:
        """Pixel size of the power spectrum's grid, Å."""
        return max(self.pixel_size, _PS_PIXEL)


@dataclass(frozen=True)
class CorrectedMovie:
    """The result: frames' defects, motion, and sums on the CPU."""

    frames: Frames
    motion: Motion
    sums: Sums


def correct_movie(
    counts: torch.Tensor, name: str, settings: CorrectionSettings, gain: torch.Tensor | None = None, defects: torch.Tensor | None = None
) -> CorrectedMovie:
    """Correct one movie, counts [frames, y, x]; gain and known defects [y, x]. Raises ItemError for a movie that holds no image."""
    if len(counts) != len(settings.exposures):
        raise ItemError(name, f"has {len(counts)} frames, {len(settings.exposures)} exposures are given")
    frames = prepare_frames(counts, name, gain, defects, find_hot=settings.find_hot, seed=settings.seed)
    motion = estimate_motion(frames.values, settings.pixel_size, settings.motion)
    shape = (int(counts.shape[1]), int(counts.shape[2]))
    sums = sum_frames(
        frames.values,
        motion,
        weights=_damage_weights(settings, frames.values.device) if settings.dose_weighting else None,
        out_shape=binned_shape(shape, settings.bin_factor),
        spectrum_group=settings.spectrum_group,
        spectrum_grid=(settings.spectrum_box, settings.spectrum_pixel / settings.pixel_size),
    )
    return CorrectedMovie(frames, motion, sums)


def binned_shape(shape: tuple[int, int], factor: float) -> tuple[int, int]:
    """Even shape (y, x) of a micrograph binned by `factor` (>= 1, need not be whole); unchanged for 1."""
    if factor == 1:
        return shape
    return int(round(shape[0] / factor / 2) * 2), int(round(shape[1] / factor / 2) * 2)


def _damage_weights(settings: CorrectionSettings, device: torch.device) -> Weights:
    """Weights of frames by what damage leaves of the signal; the exposure before the first frame cancels in the sum."""
    rates: dict[tuple[int, int], torch.Tensor] = {}

    def weights(index: int, shape: tuple[int, int], pixel: tuple[float, float]) -> torch.Tensor:
        if shape not in rates:
            kx, ky = frequencies(shape, device)
            radius = torch.sqrt((kx / pixel[1]) ** 2 + (ky / pixel[0]) ** 2) / settings.pixel_size
            rates[shape] = 1 / (2 * critical_exposure(radius, settings.voltage))
        return torch.exp(-(settings.exposures[index] - settings.exposures[0]) * rates[shape])

    return weights
