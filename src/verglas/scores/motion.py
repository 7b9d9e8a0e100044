"""Estimated motion of movies against the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MotionScore:
    """Rms error of the estimated shifts, and rms of the motion itself (what no correction leaves), Å, mean over frames removed."""

    rms: float
    uncorrected: float

    @property
    def share(self) -> float:
        """Error over motion; infinite where nothing moved and something was found."""
        if self.uncorrected == 0:
            return 0.0 if self.rms == 0 else float("inf")
        return self.rms / self.uncorrected


def motion_rms(found: np.ndarray, true: np.ndarray) -> MotionScore:
    """Compare shifts [frames, places, 2] in Å, both with the same sign and at the same places of the field.

    A constant shift of a whole movie moves its particles, not its sharpness: each place's mean over the frames is removed.
    Rms of the length of the remaining vectors. Raises ValueError for shapes that differ.
    """
    found, true = np.asarray(found, np.float64), np.asarray(true, np.float64)
    if found.shape != true.shape or found.ndim != 3 or found.shape[-1] != 2:
        raise ValueError(f"shifts [frames, places, 2] of one shape expected, found {found.shape} and {true.shape}")
    return MotionScore(_rms(found - true), _rms(true))


def mean_score(scores: list[MotionScore]) -> MotionScore:
    """Rms over several movies of equal weight."""
    if not scores:
        raise ValueError("no movies to average over")
    values = np.array([[score.rms, score.uncorrected] for score in scores])
    rms, uncorrected = np.sqrt((values**2).mean(axis=0)).tolist()
    return MotionScore(rms, uncorrected)


def local_model_shift(coefficients: np.ndarray, x: np.ndarray, y: np.ndarray, frames: int) -> np.ndarray:
    """Local shift of RELION's motion model at fractions (x, y) of the field from its middle, [places] -> [frames, places, 2], px.

    coefficients: 36 numbers, x then y; 3 powers of time inside 6 spatial terms (1, x, x², y, y², xy); time is the frame from 0.
    """
    values = np.asarray(coefficients, np.float64).reshape(2, 6, 3)
    z = np.arange(frames, dtype=np.float64)
    time = np.stack([z, z**2, z**3], axis=1)
    space = np.stack([np.ones_like(x), x, x**2, y, y**2, x * y])
    return np.einsum("dst,ft,sn->fnd", values, time, space)


def _rms(shifts: np.ndarray) -> float:
    centred = shifts - shifts.mean(axis=0)
    return float(np.sqrt((centred**2).sum(axis=-1).mean()))
