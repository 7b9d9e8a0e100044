"""Find the symmetry axes of an atomic model and turn it into RELION's setting.

The rotations that carry the first chain onto each of its copies are found by least squares (Kabsch 1976); the rotation
that brings their axes onto those of the group is then found the same way.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch

from verglas.errors import InputError
from verglas.volume.symmetry import symmetry_operators

LARGEST_MEDIAN = 2.0  # Å between atoms of a chain and of its turned copy
ROUNDS = 6  # of choosing the atoms that fit and fitting them
SHARED_SITES = 0.7
LARGEST_DISTANCE = 2.0  # Å between the centres about which the chains turn
LARGEST_MISFIT = 1.0  # degrees between a found axis and the group's


def setting_of_chains(
    position: np.ndarray, chain: np.ndarray, site: np.ndarray, symmetry: str, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rotation [3, 3] and centre [3]: rotation @ (position − centre) lies in RELION's setting of `symmetry`.

    Positions Å [n, 3], chain names [n]; `site` [n] names the same atom of every copy alike. Raises InputError where the
    chains don't repeat as that group asks, or their axes disagree with it by more than 1°.
    """
    group = group_rotations(symmetry)
    found, shifts = chain_rotations(position, chain, site)
    if len(found) != len(group):
        raise InputError(
            where,
            f"{len(found)} equal chains were found, symmetry {symmetry} needs {len(group)}",
            "Give the biological assembly (--assembly 1), or the symmetry that the model has",
        )
    centre, distance = _common_centre(found, shifts)
    rotation = _match(found, group)
    misfit = _misfit(rotation @ found @ rotation.T, group)
    if distance > LARGEST_DISTANCE or misfit > LARGEST_MISFIT:
        raise InputError(
            where,
            f"the axes of its chains miss those of {symmetry} by {misfit:.1f}°, and a common centre by {distance:.1f} Å",
            "Give the symmetry that the model has, or C1 to take it as it lies",
        )
    return rotation, centre


def chain_rotations(position: np.ndarray, chain: np.ndarray, site: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations R [copies, 3, 3] and shifts t [copies, 3] with R p + t on the copies of the first chain, itself first.

    Chains that share seven tenths of the first one's sites and fit within 2 Å (median) count as copies.
    """
    names = list(dict.fromkeys(chain.tolist()))
    first, first_sites = position[chain == names[0]], site[chain == names[0]]
    rotations, shifts = [], []
    for name in names:
        other = position[chain == name]
        _, here, there = np.intersect1d(first_sites, site[chain == name], return_indices=True)
        if len(here) < SHARED_SITES * len(first):
            continue
        rotation, shift, median = _superpose(first[here], other[there])
        if median < LARGEST_MEDIAN:
            rotations.append(rotation)
            shifts.append(shift)
    return np.stack(rotations), np.stack(shifts)


def group_rotations(symmetry: str) -> np.ndarray:
    """Operators of a point group in RELION's setting, float64 [n, 3, 3]."""
    return np.asarray(torch.as_tensor(symmetry_operators(symmetry)), np.float64)


def axes_misfit(position: np.ndarray, chain: np.ndarray, site: np.ndarray, symmetry: str) -> float:
    """Largest angle (degrees) between a rotation that relates two chains and the nearest of the group's, as the model lies."""
    rotations, _ = chain_rotations(position, chain, site)
    return _misfit(rotations, group_rotations(symmetry))


def _superpose(moving: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Rotation, shift and median distance (Å) of the best fit to the half of the atoms that fit best: tails differ between chains."""
    best = np.ones(len(moving), bool)
    for _ in range(ROUNDS):
        centre, target = moving[best].mean(axis=0), fixed[best].mean(axis=0)
        rotation = _kabsch(moving[best] - centre, fixed[best] - target)
        shift = target - rotation @ centre
        distance = np.linalg.norm(moving @ rotation.T + shift - fixed, axis=1)
        best = distance <= np.median(distance)
    return rotation, shift, float(np.median(distance))


def _common_centre(rotations: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, float]:
    """The point that all rotations leave where it is (nearest to the origin where that is a line), and how far they move it, Å."""
    system = (np.eye(3) - rotations).reshape(-1, 3)
    centre = np.linalg.lstsq(system, shifts.ravel(), rcond=1e-3)[0]
    return centre, float(np.linalg.norm((system @ centre - shifts.ravel()).reshape(-1, 3), axis=1).max())


def _misfit(rotations: np.ndarray, group: np.ndarray) -> float:
    return float(_nearest(rotations, group).max())


def _nearest(rotations: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Angle of each rotation to the nearest operator of the group, degrees."""
    return _angle(rotations[:, None] @ group.transpose(0, 2, 1)[None]).min(axis=1)


def _match(found: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Rotation that brings the axes of `found` onto those of `group`, by trying pairs of axes, then by least squares over all."""
    axes, angles = _axes(found[1:])
    wanted, wanted_angles = _axes(group[_angle(group) > 1.0])
    candidates = list(_pair_rotations(axes, angles, wanted, wanted_angles))
    if not candidates:
        return np.eye(3)
    errors = [_nearest(q @ found @ q.T, group).sum() for q in candidates]
    best = candidates[int(np.argmin(errors))]
    aligned = axes @ best.T
    cosine = aligned @ wanted.T
    partner = np.argmax(np.abs(cosine) - 10 * (np.abs(angles[:, None] - wanted_angles) > 10), axis=1)
    signs = np.sign(cosine[np.arange(len(axes)), partner])
    target = wanted[partner] * signs[:, None]
    if len(axes) == 1 or np.linalg.matrix_rank(target, tol=0.1) < 2:
        return best
    return _kabsch(axes, target)


def _pair_rotations(axes: np.ndarray, angles: np.ndarray, wanted: np.ndarray, wanted_angles: np.ndarray):  # type: ignore[no-untyped-def]
    """Rotations that bring the two least parallel axes onto pairs of the group's axes of the same angles; one axis where there is one."""
    parallel = np.abs(axes @ axes.T)
    i, j = np.unravel_index(np.argmin(parallel), parallel.shape)
    if parallel[i, j] > 0.95:
        for target, angle in zip(wanted, wanted_angles):
            if abs(angle - angles[0]) < 10:
                yield _frame(target, _any_normal(target)) @ _frame(axes[0], _any_normal(axes[0])).T
        return
    for k, m in permutations(range(len(wanted)), 2):
        if abs(wanted_angles[k] - angles[i]) > 10 or abs(wanted_angles[m] - angles[j]) > 10:
            continue
        for sign in (1.0, -1.0):
            if abs(sign * wanted[k] @ wanted[m] - axes[i] @ axes[j]) < 0.2:
                yield _frame(wanted[k], sign * wanted[m]) @ _frame(axes[i], axes[j]).T


def _frame(z: np.ndarray, near_x: np.ndarray) -> np.ndarray:
    x = near_x - (near_x @ z) * z
    x = x / np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def _any_normal(axis: np.ndarray) -> np.ndarray:
    return np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])


def _axes(rotations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit axes [n, 3] and angles (degrees) of rotations that are not the identity."""
    angles = _angle(rotations)
    symmetric = (rotations + rotations.transpose(0, 2, 1)) / 2
    _, vectors = np.linalg.eigh(symmetric)
    return vectors[:, :, -1], angles


def _angle(rotations: np.ndarray) -> np.ndarray:
    """Angle of each rotation, degrees."""
    cosine = (np.trace(rotations, axis1=-2, axis2=-1) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def _kabsch(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Rotation R about the origin that minimises |moving Rᵀ − fixed|²; [n, 3] each."""
    u, _, vt = np.linalg.svd(moving.T @ fixed)
    turn = np.sign(np.linalg.det(u @ vt))
    return (u @ np.diag([1.0, 1.0, turn]) @ vt).T
