"""Estimated defocus and astigmatism against the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CtfErrors:
    """Per micrograph, [n]: error of the mean defocus (Å, found − true), of the astigmatism (Å) and of its angle (0 to 90°).

    `astigmatism_vector` is the length of the difference of the two astigmatisms taken as vectors of doubled angle (Å): unlike
    the angle it stays meaningful where there is next to no astigmatism.
    """

    defocus: np.ndarray
    astigmatism: np.ndarray
    angle: np.ndarray
    astigmatism_vector: np.ndarray

    @property
    def median_defocus(self) -> float:
        """Median of |Δ defocus|, Å."""
        return float(np.median(np.abs(self.defocus)))

    @property
    def worst_defocus(self) -> float:
        """Largest |Δ defocus|, Å."""
        return float(np.abs(self.defocus).max())


def ctf_errors(found: np.ndarray, true: np.ndarray) -> CtfErrors:
    """Compare rows of (defocus U, defocus V, angle of U): Å, Å, degrees; [n, 3] each. U may be the smaller one in either."""
    mean_found, vector_found = _mean_and_vector(found)
    mean_true, vector_true = _mean_and_vector(true)
    turn = np.degrees(np.angle(vector_found * vector_true.conj())) / 2
    return CtfErrors(
        defocus=mean_found - mean_true,
        astigmatism=np.abs(vector_found) - np.abs(vector_true),
        angle=np.abs(turn),
        astigmatism_vector=np.abs(vector_found - vector_true),
    )


def _mean_and_vector(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or rows.shape[1] != 3 or not len(rows):
        raise ValueError(f"rows of (defocus U, defocus V, angle) expected, found shape {rows.shape}")
    u, v, angle = rows.T
    return (u + v) / 2, (u - v) * np.exp(2j * np.radians(angle))
