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

LARGEST_RMS = 3.0  # Å between a chain and its turned copy
LARGEST_MISFIT = 1.0  # degrees between a found axis and the group's


def rotation_into_setting(position: np.ndarray, chain: np.ndarray, symmetry: str, where: str) -> np.ndarray:
    """Rotation [3, 3] that turns a centred model (positions [n, 3] Å, chain names [n]) into RELION's setting of `symmetry`.

    Raises InputError where the chains don't repeat as that group asks, or their axes disagree with it by more than 1°.
    """
    group = np.asarray(torch.as_tensor(symmetry_operators(symmetry)).cpu(), np.float64)
    found = chain_rotations(position, chain, where)
    if len(found) != len(group):
        raise InputError(
            where,
            f"{len(found)} equal chains lie around the centre, symmetry {symmetry} needs {len(group)}",
            "Give the biological assembly (--assembly 1), or the symmetry that the model has",
        )
    rotation = _match(found, group)
    turned = rotation @ found @ rotation.T
    misfit = max(_angle(turned[:, None] @ group.transpose(0, 2, 1)[None]).min(axis=1))
    if misfit > LARGEST_MISFIT:
        raise InputError(
            where,
            f"the axes of its chains miss those of {symmetry} by {misfit:.1f}°",
            "Give the symmetry that the model has, or C1 to take it as it lies",
        )
    return rotation


def chain_rotations(position: np.ndarray, chain: np.ndarray, where: str) -> np.ndarray:
    """Rotations [copies, 3, 3] about the origin that carry the first chain onto its copies, itself first.

    Chains with as many atoms as the first count as copies. Raises InputError where one doesn't fit within 3 Å.
    """
    names = list(dict.fromkeys(chain.tolist()))
    first = position[chain == names[0]]
    rotations = []
    for name in names:
        other = position[chain == name]
        if len(other) != len(first):
            continue
        rotation = _kabsch(first, other)
        rms = float(np.sqrt(((first @ rotation.T - other) ** 2).sum(axis=1).mean()))
        if rms > LARGEST_RMS:
            problem = f"chain {name} lies {rms:.1f} Å (rms) from any rotation of chain {names[0]} about the centre"
            raise InputError(where, problem, "Give the whole assembly, or symmetry C1")
        rotations.append(rotation)
    return np.stack(rotations)


def symmetry_error(position: np.ndarray, chain: np.ndarray, symmetry: str) -> float:
    """Rms distance (Å) of the chains' centres from where the group's operators put them; 0 for a model in RELION's setting."""
    group = np.asarray(torch.as_tensor(symmetry_operators(symmetry)).cpu(), np.float64)
    names = list(dict.fromkeys(chain.tolist()))
    centres = np.stack([position[chain == name].mean(axis=0) for name in names])
    images = np.einsum("gij,cj->gci", group, centres)
    nearest = np.linalg.norm(images[:, :, None] - centres[None, None], axis=-1).min(axis=2)
    return float(np.sqrt((nearest**2).mean()))


def _match(found: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Rotation that brings the axes of `found` onto those of `group`, by trying pairs of axes, then by least squares over all."""
    axes, angles = _axes(found[1:])
    wanted, wanted_angles = _axes(group[_angle(group) > 1.0])
    candidates = list(_pair_rotations(axes, angles, wanted, wanted_angles))
    errors = [_angle((q @ found @ q.T)[:, None] @ group.transpose(0, 2, 1)[None]).min(axis=1).sum() for q in candidates]
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
