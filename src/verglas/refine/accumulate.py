"""Weighted sums of images into slices, back-projected once a slice; noise, norm and scale from the same products (METHOD.md §1)."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch

from verglas.refine.groups import Groups, groups_of
from verglas.refine.kernels import comparison_kernels
from verglas.refine.model import Sums
from verglas.refine.observations import Batch, shift_factors
from verglas.refine.ragged import parts_within
from verglas.refine.score import power, reals
from verglas.refine.search import Pass
from verglas.volume.fourier import sum_by
from verglas.volume.reconstruct import add_symmetric

_REALS_AT_ONCE = {"cpu": 1 << 26, "cuda": 1 << 29}  # of shifted images, or of slices, held in one go
_LEAST_SHARE = 1e-3  # slices with less than this share of the mean weight are not back-projected
SCALE_SSNR = 3.0  # shells that tell the strength of a micrograph's particles


class Entries(NamedTuple):
    """Weighted triples of an image of the batch, a candidate and a shift; [m] each, sorted by image, then by falling weight."""

    image: torch.Tensor
    row: torch.Tensor
    shift: torch.Tensor
    weight: torch.Tensor


def accumulate(all_of: Pass, sums: Sums, batch: Batch, entries: Entries) -> torch.Tensor:
    """Add the weighted images to `sums`; returns Σ|X − CP|² of each masked image over what the noise model expects [b]."""
    search = all_of.search
    factors = shift_factors(search.full, search.shifts.fine)
    counts = torch.bincount(entries.image, minlength=len(batch))
    starts = torch.cumsum(counts, 0) - counts
    cross, energy = torch.zeros_like(batch.ctf), torch.zeros_like(batch.ctf)
    kernels = comparison_kernels(all_of.candidates.projector)
    for first, last in parts_within(counts * 2 * len(search.full), _REALS_AT_ONCE[factors.device.type]):
        part = Entries(*(values[int(starts[first]) : int(starts[last - 1] + counts[last - 1])] for values in entries))
        if kernels is None:
            _add_part(all_of, sums, batch, part, factors, cross, energy)
        else:
            _add_compiled(kernels, all_of, sums, batch, part, factors, cross, energy)
    weight = entries.weight.double()
    origins = all_of.origins(batch, search.shifts.fine)[entries.image, entries.shift]
    sums.offset2 += (origins.square().sum(1) * weight).sum()
    sums.class_weight += sum_by(all_of.candidates.class_of(entries.row // search.grid.fan), weight, len(sums.class_weight))
    return add_noise(all_of, sums, batch, cross, energy)


def _add_part(
    all_of: Pass, sums: Sums, batch: Batch, some: Entries, factors: torch.Tensor, cross: torch.Tensor, energy: torch.Tensor
) -> None:
    """Numerators and weights of the slices that these entries touch, and each image's products with them."""
    pairs, pair = torch.unique(some.image * len(factors) + some.shift, return_inverse=True)
    rows, row = torch.unique(some.row, return_inverse=True)
    slices, matrices, classes = all_of.candidates.fine(rows, all_of.search.full)
    image, moved_by = pairs // len(factors), factors[pairs % len(factors)]

    by_row = torch.argsort(row, stable=True)
    into, weight = row[by_row], some.weight[by_row]
    images = reals((batch.unmasked * batch.ctf)[image] * moved_by)
    numerators = _weighted_sums(images, pair[by_row], into, weight, len(rows))
    weights = _weighted_sums(batch.ctf.square(), some.image[by_row], into, weight, len(rows))
    share = sum_by(row, some.weight, len(rows))
    enough = _enough(share)
    values = torch.view_as_complex(numerators[enough].unflatten(1, (-1, 2)))
    _back_project(all_of, sums, matrices[enough], classes[enough], values, weights[enough])

    by_pair = torch.argsort(pair, stable=True)
    expected = _weighted_sums(slices, row[by_pair], pair[by_pair], some.weight[by_pair], len(pairs))
    masked = reals((batch.masked * batch.ctf)[image] * moved_by)
    cross.index_add_(0, image, (expected * masked).unflatten(1, (-1, 2)).sum(-1))
    energy += _weighted_sums(power(slices), row, some.image, some.weight, len(batch)) * batch.ctf.square()


def _add_compiled(
    kernels: ModuleType,
    all_of: Pass,
    sums: Sums,
    batch: Batch,
    some: Entries,
    factors: torch.Tensor,
    cross: torch.Tensor,
    energy: torch.Tensor,
) -> None:
    """`_add_part` by compiled code, which samples the slices of each image again instead of keeping those of all."""
    first, last = int(some.image[0]), int(some.image[-1]) + 1
    groups, row = groups_of(some.image - first, some.row, some.shift, some.weight)
    rows, of_group = torch.unique(row, return_inverse=True)
    matrices, classes = all_of.candidates.fine_poses(rows)
    operands = (batch.ctf[first:last], factors, groups)
    expected = (batch.masked[first:last], *operands, matrices[of_group], classes[of_group])
    found = kernels.sum_over_slices(all_of.candidates.projector, all_of.search.full, *expected)
    cross[first:last] += found[0]
    energy[first:last] += found[1]

    share = sum_by(torch.searchsorted(rows, some.row), some.weight, len(rows))
    enough = _enough(share)
    by_row = torch.argsort(of_group, stable=True)
    by_row = by_row[enough[of_group[by_row]]]
    counts = torch.bincount(of_group, minlength=len(rows))[enough]
    ends = torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0))
    numerators, weights = kernels.sum_into_slices(batch.unmasked[first:last], *operands, by_row, ends)
    _back_project(all_of, sums, matrices[enough], classes[enough], numerators, weights)


def add_groups(
    all_of: Pass,
    sums: Sums,
    batch: Batch,
    own: slice,
    groups: Groups,
    factors: torch.Tensor,
    matrices: torch.Tensor,
    cross: torch.Tensor,
    energy: torch.Tensor,
) -> None:
    """Add the images `own` of the batch in poses of their own, those of the first class: one group [g] a pose `matrices` [g, 3, 3].

    The groups' images count from the first of `own`; their shifts are rows of `factors` [m, k]. `cross` and `energy` [b, k] gain each
    image's products with its slices.
    """
    classes = torch.zeros(len(matrices), dtype=torch.long, device=matrices.device)
    masked, unmasked, ctf = (values[own] for values in (batch.masked, batch.unmasked, batch.ctf))
    kernels, full = comparison_kernels(all_of.candidates.projector), all_of.search.full
    if kernels is not None:
        found = kernels.sum_over_slices(all_of.candidates.projector, full, masked, ctf, factors, groups, matrices, classes)
        every = torch.arange(len(matrices) + 1, device=matrices.device)
        numerators, weights = kernels.sum_into_slices(unmasked, ctf, factors, groups, every[:-1], every)
    else:
        phase = torch.complex(*(_weighted_by_group(part, groups) for part in (factors.real, factors.imag)))
        share = _weighted_by_group(factors.new_ones(len(factors), 1).real, groups)
        slices = all_of.candidates.projector.project(matrices, full)
        moved = (masked * ctf)[groups.image] * phase
        products = torch.stack([(moved.conj() * slices).real, share * slices.abs().square() * ctf.square()[groups.image]])
        found = torch.zeros(2, *ctf.shape, device=ctf.device).index_add_(1, groups.image, products).unbind(0)
        numerators, weights = (unmasked * ctf)[groups.image] * phase, share * ctf.square()[groups.image]
    cross[own] += found[0]
    energy[own] += found[1]
    _back_project(all_of, sums, matrices, classes, numerators, weights)


def parts_of(batch: Batch, reals: int) -> Iterator[tuple[int, int]]:
    """Runs first … last (exclusive) of the batch's images, each of which needs so many reals, that fit in memory together."""
    return parts_within(torch.full((len(batch),), reals), _REALS_AT_ONCE[batch.ctf.device.type])


def _weighted_by_group(values: torch.Tensor, groups: Groups) -> torch.Tensor:
    """Weighted sums of the rows of `values` [m, k] that are each group's shifts."""
    return torch.nn.functional.embedding_bag(groups.shift, values, groups.starts[:-1], mode="sum", per_sample_weights=groups.weight)


def _enough(share: torch.Tensor) -> torch.Tensor:
    """Which slices hold weight enough to be back-projected."""
    return share > _LEAST_SHARE * share.mean()


def _back_project(
    all_of: Pass, sums: Sums, matrices: torch.Tensor, classes: torch.Tensor, numerators: torch.Tensor, weights: torch.Tensor
) -> None:
    """Slices into their classes' maps; operators that permute the axes wait for `symmetrise`."""
    add_symmetric(sums.slices, all_of.search.symmetry, matrices, all_of.search.full, numerators, weights, classes)


def _weighted_sums(values: torch.Tensor, which: torch.Tensor, into: torch.Tensor, weight: torch.Tensor, count: int) -> torch.Tensor:
    """out[j] = Σ weight · values[which] over the entries with into = j; `into` ascending."""
    starts = torch.searchsorted(into, torch.arange(count, device=into.device))
    return torch.nn.functional.embedding_bag(which, values, starts, mode="sum", per_sample_weights=weight)


def add_noise(all_of: Pass, sums: Sums, batch: Batch, cross: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    """Residual power of each shell, strengths of micrographs, and each image's residual over what is expected."""
    seen, model = all_of.seen, all_of.model
    group, micrograph = seen.noise_group[batch.rows], seen.scale_group[batch.rows]
    sigma2 = model.sigma2[group]
    cross_shell, energy_shell = (seen.shell_sum(values, all_of.search.full) for values in (cross, energy))
    residual = batch.power + sigma2 * (energy_shell - 2 * cross_shell)
    sums.residual += sum_by(group, residual.T, len(sums.residual)).T
    sums.images.index_add_(0, group, torch.ones(len(batch), dtype=torch.float64, device=group.device))
    strong = (model.ssnr.amax(0) > SCALE_SSNR).double()
    sums.cross += sum_by(micrograph, cross_shell @ strong, len(sums.cross))
    sums.energy += sum_by(micrograph, energy_shell @ strong, len(sums.energy))
    expected = (2 * sigma2 * seen.pixels_of_shell)[:, 1:].sum(1)
    return (residual[:, 1:].sum(1) / expected).float()
