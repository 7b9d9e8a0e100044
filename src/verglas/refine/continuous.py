"""One pass over particles whose poses are refined without a grid, see `pose_fit`: what `expectation` is for grids."""

from __future__ import annotations

import math

import torch

from verglas.refine.accumulate import add_groups, add_noise, parts_of
from verglas.refine.groups import Groups
from verglas.refine.model import Sums
from verglas.refine.observations import Batch, shift_factors
from verglas.refine.pose_fit import NODES, Posterior, Prior, Start, fit_poses, nodes
from verglas.refine.search import Found, Pass
from verglas.volume.rotations import rotation_distance
from verglas.volume.slices import Pixels
from verglas.volume.symmetry import symmetry_operators

_REALS = 10  # a pixel of a node: phase, its cosine and sine, factors, numerators, weights


def last_poses(all_of: Pass, batch: Batch) -> Start:
    """The poses that the images came with, and the parts of their origins that were not applied to them."""
    return all_of.assignments.matrices[batch.rows], all_of.assignments.part_shifts(batch.rows, all_of.seen.pixel_size)


def fit_and_add(all_of: Pass, batch: Batch, start: Start, sums: Sums) -> Found:
    """Find each image's posterior from poses and shifts to `start` at, and add the image to `sums`.

    From poses of a grid the first steps go by the coarse pixels, whose likelihood is smooth over a cell of the grid.
    """
    search, seen, projector = all_of.search, all_of.seen, all_of.candidates.projector
    assert search.local_sigma is not None and not search.given and all_of.candidates.classes == 1
    whole = all_of.assignments.whole_shifts(batch.rows, seen.pixel_size)
    centre = _nearest_copy(last_poses(all_of, batch)[0], start[0], search.symmetry)
    prior = Prior(math.radians(search.local_sigma), centre, all_of.model.offset_sigma / seen.pixel_size, -whole.float())
    starts = [start]
    if search.fit == "found" and len(search.coarse) < len(search.score):
        by_coarse = fit_poses(projector, search.coarse, batch.masked, batch.ctf, starts, prior)
        starts.append((by_coarse.matrices, by_coarse.shifts))
    posterior = fit_poses(projector, search.score, batch.masked, batch.ctf, starts, prior)
    residual = _add(all_of, batch, sums, posterior)
    origins = (whole + posterior.shifts) * seen.pixel_size
    left = posterior.covariance[:, 3:, 3:].diagonal(dim1=1, dim2=2).sum(1) * seen.pixel_size**2
    sums.offset2 += (origins.double().square().sum(1) + left).sum()
    sums.class_weight += len(batch)
    return Found(
        posterior.matrices,
        origins,
        torch.zeros_like(batch.rows),
        posterior.log_total(search.cell).float(),
        posterior.largest_share(search.cell).float(),
        torch.full_like(batch.rows, NODES),
        residual,
    )


def _nearest_copy(poses: torch.Tensor, to: torch.Tensor, group: str) -> torch.Tensor:
    """Of the copies A g of each pose [n, 3, 3] under the group the one that is nearest to another pose [n, 3, 3]."""
    copies = poses[:, None] @ symmetry_operators(group).to(poses)
    nearest = rotation_distance(copies, to[:, None]).argmin(dim=1)
    return copies[torch.arange(len(poses), device=poses.device), nearest]


def _add(all_of: Pass, batch: Batch, sums: Sums, posterior: Posterior) -> torch.Tensor:
    """Add each image at the nodes of its posterior; returns what `accumulate.add_noise` does."""
    full = all_of.search.full
    matrices, shifts, variances = nodes(posterior)
    cross, energy = torch.zeros_like(batch.ctf), torch.zeros_like(batch.ctf)
    for first, last in parts_of(batch, _REALS * NODES * len(full)):
        poses, own = matrices[first:last].flatten(0, 1), slice(first, last)
        factors = shift_factors(full, shifts[own]) * _blur(full, variances[own])[:, None]
        groups = _groups(last - first, factors.device)
        add_groups(all_of, sums, batch, own, groups, factors.flatten(0, 1), poses, cross, energy)
    return add_noise(all_of, sums, batch, cross, energy)


def _blur(pixels: Pixels, variances: torch.Tensor) -> torch.Tensor:
    """What a shift that is known up to variances [n, 2] (px²) leaves of each pixel of an image [n, k]."""
    turn = 2 * math.pi / pixels.box
    return torch.exp(-0.5 * turn**2 * (variances @ torch.stack([pixels.kx**2, pixels.ky**2])))


def _groups(images: int, device: torch.device) -> Groups:
    """Each image at its nodes, a shift of its own at each."""
    every = torch.arange(images * NODES + 1, device=device)
    return Groups(every, every[:-1] // NODES, every[:-1], torch.full((len(every) - 1,), 1 / NODES, device=device))
