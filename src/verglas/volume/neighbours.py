"""Local searches: the poses of a grid near given poses, with a Gaussian prior, modulo symmetry."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from verglas.volume.rotations import euler_to_matrix, rotation_distance
from verglas.volume.sampling import RotationGrid, view_directions
from verglas.volume.symmetry import symmetry_operators

_CHUNK = {"cpu": 1 << 24, "cuda": 1 << 27}  # scores of (particle, operator, direction) held at once


class LocalPoses(NamedTuple):
    """Pairs of a particle and a pose of the grid, sorted by particle; [m] each.

    particle: row of the given poses; pose: place in the grid; log_prior: logarithm of the Gaussian prior, not normalised.
    """

    particle: torch.Tensor
    pose: torch.Tensor
    log_prior: torch.Tensor


def local_neighbours(
    grid: RotationGrid, matrices: torch.Tensor, cutoff: float, sigma: float | None = None, perturbation: torch.Tensor | None = None
) -> LocalPoses:
    """Poses of `grid` whose view direction and in-plane angle both lie within `cutoff` degrees of poses [n, 3, 3].

    The in-plane angle is compared after the shorter turn from one view direction to the other, so nothing happens at the poles.
    Copies under the grid's group count as the same pose. The nearest direction and angle are always given, however small the cutoff.
    sigma: of the Gaussian prior in each of direction and in-plane angle, degrees; a third of the cutoff where not given.
    perturbation: rotation that the grid's matrices are turned by, P @ matrices (see `sampling.random_perturbation`).
    """
    sigma = cutoff / 3 if sigma is None else sigma
    device = grid.pixels.device
    matrices = matrices.to(device).double()
    if perturbation is not None:
        matrices = perturbation.to(matrices).T @ matrices
    operators = symmetry_operators(grid.group).to(device)
    views = view_directions(grid.directions[:, 0], grid.directions[:, 1])
    frames = euler_to_matrix(torch.nn.functional.pad(grid.directions, (0, 1)))
    size = max(1, _CHUNK[device.type] // (len(operators) * len(views)))
    parts = []
    for start in range(0, len(matrices), size):
        copies = matrices[start : start + size, None] @ operators
        found = _near(grid, copies, views, frames, cutoff, sigma)
        parts.append(LocalPoses(found.particle + start, found.pose, found.log_prior))
    joined = LocalPoses(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    return _without_doubles(joined, len(grid)) if _copies_can_meet(operators, cutoff) else joined


def _near(grid: RotationGrid, copies: torch.Tensor, views: torch.Tensor, frames: torch.Tensor, cutoff: float, sigma: float) -> LocalPoses:
    """Pairs for the copies [c, g, 3, 3] of some particles; `views` [d, 3] and `frames` [d, 3, 3] belong to the grid's directions."""
    nearness = copies[:, :, 2] @ views.T
    best = nearness.amax(dim=(1, 2), keepdim=True)
    keep = nearness >= best.clamp(max=math.cos(math.radians(min(cutoff, 180.0))))
    particle, copy, direction = torch.nonzero(keep, as_tuple=True)
    tilt = torch.rad2deg(torch.acos(nearness[keep].clamp(-1, 1)))
    between = copies[particle, copy] @ frames[direction].mT
    # the in-plane angle at which the grid's pose comes nearest to the copy
    psi = torch.rad2deg(torch.atan2(between[:, 0, 1] - between[:, 1, 0], between[:, 0, 0] + between[:, 1, 1]))
    reach = min(math.ceil(cutoff / grid.psi_step + 0.5), (grid.n_psi - 1) // 2)
    offsets = torch.arange(-reach, reach + 1, device=psi.device)
    nearest = torch.round(psi / grid.psi_step - 0.5)
    numbers = nearest[:, None] + offsets
    turn = (numbers + 0.5) * grid.psi_step - psi[:, None]
    inside = (turn.abs() <= cutoff) | (offsets == 0)
    pose = direction[:, None] * grid.n_psi + numbers.long() % grid.n_psi
    log_prior = -(tilt[:, None] ** 2 + turn**2) / (2 * sigma**2)
    return LocalPoses(particle[:, None].expand_as(pose)[inside], pose[inside], log_prior[inside].float())


def _copies_can_meet(operators: torch.Tensor, cutoff: float) -> bool:
    """Whether a pose of the grid can be near two copies of one pose."""
    if len(operators) == 1:
        return False
    smallest = float(rotation_distance(operators[1:], operators[0]).min())
    return 2 * 2**0.5 * cutoff >= smallest  # direction and in-plane angle may both be off by the cutoff


def _without_doubles(found: LocalPoses, poses: int) -> LocalPoses:
    keys, place = torch.unique(found.particle * poses + found.pose, return_inverse=True)
    log_prior = found.log_prior.new_full((len(keys),), -math.inf).scatter_reduce_(0, place, found.log_prior, "amax")
    return LocalPoses(keys // poses, keys % poses, log_prior)
