"""Classes found against the true ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassScore:
    """`confusion` [found classes, true classes] of counts, with the `found` and `true` labels of its rows and columns.

    `purity`: share of particles whose found class holds mostly their true class. It is 1 for classes of one particle each,
    so `chance`, the share of the commonest true class, and the number of classes belong beside it.
    """

    confusion: np.ndarray
    found: np.ndarray
    true: np.ndarray

    @property
    def purity(self) -> float:
        """Share of particles in the majority of their found class."""
        return float(self.confusion.max(axis=1).sum() / self.confusion.sum())

    @property
    def chance(self) -> float:
        """Purity of putting all particles into one class."""
        return float(self.confusion.sum(axis=0).max() / self.confusion.sum())

    @property
    def majority(self) -> dict[int, int]:
        """True class that each found class mostly holds."""
        return {int(found): int(self.true[row.argmax()]) for found, row in zip(self.found, self.confusion)}


def class_purity(found: np.ndarray, true: np.ndarray) -> ClassScore:
    """Compare class labels (integers) of the same particles, [n] each. Raises ValueError without particles or for lengths that differ."""
    found, true = np.asarray(found), np.asarray(true)
    if found.shape != true.shape or found.ndim != 1 or not len(found):
        raise ValueError(f"labels of the same particles expected, found shapes {found.shape} and {true.shape}")
    found_labels, rows = np.unique(found, return_inverse=True)
    true_labels, columns = np.unique(true, return_inverse=True)
    confusion = np.zeros((len(found_labels), len(true_labels)), np.int64)
    np.add.at(confusion, (rows, columns), 1)
    return ClassScore(confusion, found_labels, true_labels)


def orientation_spread(found: np.ndarray, directions: np.ndarray, operators: np.ndarray) -> np.ndarray:
    """Angle (degrees, [n]) between each particle's true view direction and the medoid of its 2D class, modulo the symmetry.

    directions: unit vectors in the map's frame [n, 3]; operators: the group [m, 3, 3]. Opposite views are mirror images, not equal.
    """
    spread = np.empty(len(found))
    for label in np.unique(found):
        members = np.flatnonzero(found == label)
        images = np.einsum("mij,nj->mni", operators, directions[members])
        cosine = np.einsum("mni,ki->mnk", images, directions[members]).max(axis=0)
        angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        spread[members] = angles[:, angles.sum(axis=0).argmin()]
    return spread


def class_shift_errors(found: np.ndarray, psi: np.ndarray, found_origins: np.ndarray, true_origins: np.ndarray) -> np.ndarray:
    """Length of found − true origins (Å, [n]) in 2D classes, after the offset of each class average is taken off.

    found: class labels [n]; psi: found in-plane angles [n], degrees; origins [n, 2], Å. An average whose particle sits at d shows it, in
    an image turned by psi, R(psi) d further on; d is the median over the class, which one particle alone always fits.
    """
    angle, (x, y) = np.radians(psi), (found_origins - true_origins).T
    in_class = np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y], axis=1)
    for label in np.unique(found):
        members = found == label
        in_class[members] -= np.median(in_class[members], axis=0)
    return np.linalg.norm(in_class, axis=1)
