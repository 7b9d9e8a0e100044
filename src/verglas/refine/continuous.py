"""One pass over particles whose poses are refined without a grid, see `pose_fit`: what `expectation` is for grids."""

from __future__ import annotations

import math

import torch

from verglas.refine.accumulate import add_groups, add_noise, parts_of
from verglas.refine.groups import Groups
from verglas.refine.model import Sums
from verglas.refine.observations import Batch, shift_factors
from verglas.refine.pose_fit import NODES, Posterior, Prior, fit_poses, nodes
from verglas.refine.search import Found, Pass
from verglas.volume.slices import Pixels


def last_poses(all_of: Pass, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The poses [b, 3, 3] that the images came with, and the parts of their origins that were not applied to them [b, 2], pixels."""
    return all_of.assignments.matrices[batch.rows], all_of.assignments.part_shifts(batch.rows, all_of.seen.pixel_size)


def fit_and_add(all_of: Pass, batch: Batch, start: tuple[torch.Tensor, torch.Tensor], sums: Sums) -> Found:
    """Find each image's posterior from poses and shifts to `start` at, and add the image to `sums`.

    From poses of a grid the first steps go by the coarse pixels, whose likelihood is smooth over a cell of the grid.
    """
    search, seen, projector = all_of.search, all_of.seen, all_of.candidates.projector
    whole = all_of.assignments.whole_shifts(batch.rows, seen.pixel_size)
    assert search.local_sigma is not None and all_of.candidates.classes == 1
    prior = Prior(
        math.radians(search.local_sigma), last_poses(all_of, batch)[0], all_of.model.offset_sigma / seen.pixel_size, -whole.float()
    )
    for pixels in (search.coarse, search.score) if search.fit == "found" else (search.score,):
        posterior = fit_poses(projector, pixels, batch.masked, batch.ctf, start, prior)
        start = posterior.matrices, posterior.shifts
    residual = _add(all_of, batch, sums, posterior)
    origins = (whole + posterior.shifts) * seen.pixel_size
    left = posterior.covariance[:, 3:, 3:].diagonal(dim1=1, dim2=2).sum(1) * seen.pixel_size**2
    sums.offset2 += (origins.double().square().sum(1) + left).sum()
    sums.class_weight += len(batch)
    log_total = posterior.log_total(search.cell).float()
    return Found(
        posterior.matrices,
        origins,
        torch.zeros_like(batch.rows),
        log_total,
        torch.exp(posterior.log_top.float() - log_total).clamp(max=1.0),
        torch.full_like(batch.rows, NODES),
        residual,
    )


def _add(all_of: Pass, batch: Batch, sums: Sums, posterior: Posterior) -> torch.Tensor:
    """Add each image at the nodes of its posterior; returns what `accumulate.add_noise` does."""
    full = all_of.search.full
    matrices, shifts, variances = nodes(posterior)
    cross, energy = torch.zeros_like(batch.ctf), torch.zeros_like(batch.ctf)
    for first, last in parts_of(batch, 2 * NODES * len(full)):
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
