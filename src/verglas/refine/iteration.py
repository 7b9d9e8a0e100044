"""What classification and automatic refinement have in common: the search of an iteration, and taking in what it found."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace
from typing import TypeVar

import torch

from verglas.compute.ranks import Ranks
from verglas.refine.assignments import Assignments
from verglas.refine.expectation import expect
from verglas.refine.grids import GivenPoses, PlaneGrid, PoseGrid, SpaceGrid, no_shift, shifts_within
from verglas.refine.maximisation import new_noise, new_scale
from verglas.refine.model import Model, Sums
from verglas.refine.observations import Observations
from verglas.refine.search import Found, Search
from verglas.refine.settings import Settings
from verglas.refine.state import State
from verglas.volume.rotations import rotation_distance
from verglas.volume.slices import pixel_list
from verglas.volume.symmetry import symmetry_operators

SHELLS_AHEAD = 10  # compared beyond the current resolution
_MULTIPLE = 64  # a matrix product wants rows of a multiple of 128 bytes
_COARSE = {2: 1.5, 3: 1.2}  # METHOD.md §3
_LEAST_COARSE_SHELLS = 4
_NORM_RANGE = 3.0
_LEAST_OFFSET_SIGMA = 0.5  # Å: a prior this sharp is as good as no search
S = TypeVar("S", State, State | None)


def draw(settings: Settings, iteration: int) -> torch.Generator:
    """The random numbers of one iteration: they depend on the seed and its number alone, so a run may go on from anywhere."""
    return torch.Generator().manual_seed(settings.seed * 100_003 + iteration)


def build_search(
    state: State, settings: Settings, seen: Observations, score_shell: int, *, sum_shell: int | None = None, correlation: bool = False
) -> Search:
    """The next iteration's search: grids by the state's sampling, images compared up to `score_shell`, summed up to `sum_shell`."""
    generator = draw(settings, state.iteration + 1)
    sampling, dims = state.sampling, settings.dims
    if settings.align:
        grid: PoseGrid = SpaceGrid(sampling.order, settings.symmetry, generator) if dims == 3 else PlaneGrid(sampling.psi_step, generator)
        shifts = shifts_within(sampling.offset_range, sampling.offset_step, generator, seen.device)
        coarse_shell = min(score_shell, _coarse_shell(grid.step, sampling.offset_step, settings, seen))
    else:
        grid, shifts, coarse_shell = GivenPoses(state.assignments.matrices.cpu()), no_shift(seen.device), score_shell
    coarse, score, full = (
        pixel_list(seen.box, shell, multiple=_MULTIPLE, device=seen.device)
        for shell in (coarse_shell, score_shell, sum_shell or score_shell)
    )
    return Search(
        grid,
        shifts,
        coarse,
        score,
        full,
        symmetry=settings.symmetry if dims == 3 else "C1",
        padding=settings.padding,
        local_sigma=sampling.local_sigma if dims == 3 else None,
        correlation=correlation,
        half_precision=settings.half_precision,
        offset_step=sampling.offset_step,
        fit=sampling.fit,
    )


def _coarse_shell(step: float, offset_step: float, settings: Settings, seen: Observations) -> int:
    """The shell up to which poses `step` degrees apart can be told apart at the particle's rim, and shifts `offset_step` px apart."""
    resolution = step / 360.0 * math.pi * settings.mask_diameter / _COARSE[settings.dims]
    held_by_shifts = seen.box / (2 * offset_step)
    return max(_LEAST_COARSE_SHELLS, round(min(seen.box * seen.pixel_size / resolution, held_by_shifts)))


def compare(
    ranks: Ranks,
    seen: Observations,
    rows: list[torch.Tensor],
    assignments: Assignments,
    models: list[Model],
    search: Search,
    only_class: torch.Tensor | None = None,
) -> list[tuple[Sums, Found]]:
    """`expect` for the particles `rows` of each model, every rank with its share of them: all of it on the first, nothing on the others."""
    parts = [expect(seen, ranks.share(own), assignments, model, search, only_class) for own, model in zip(rows, models)]
    if ranks.size == 1:
        return parts
    ranks.sum_up([tensor for sums, _ in parts for tensor in sums.tensors()])
    found = ranks.collected([[getattr(each, field.name).cpu() for field in fields(Found)] for _, each in parts])
    if not ranks.first:
        return []
    joined = [Found(*(torch.cat(values).to(seen.device) for values in zip(*of_model))) for of_model in zip(*found)]
    return [(sums, whole) for (sums, _), whole in zip(parts, joined)]


def shared(ranks: Ranks, state: S) -> S:
    """The first rank's state, on all ranks; what only its files need stays with the first."""
    if ranks.size == 1:
        return state
    slim = state and replace(state, weights=[], unfiltered=[], joined=None, history=[])
    told = ranks.told(lambda: slim)
    return state if ranks.first else told


def strengths_known(settings: Settings, search: Search) -> Settings:
    """The settings by which an iteration's sums are taken in.

    By cross-correlation the references may have any grey values: they say nothing of the images' strengths and noise, which stay.
    """
    return replace(settings, correct_norm=False, correct_scale=False, fix_noise=True) if search.correlation else settings


def take_in(state: State, rows: torch.Tensor, found: Found, settings: Settings, before: Assignments) -> None:
    """Write what was found for the particles `rows` into the assignments (in place), and nothing else."""
    own = state.assignments
    own.matrices[rows], own.origins[rows], own.classes[rows] = found.matrices, found.origins, found.classes
    own.log_likelihood[rows], own.max_probability[rows] = found.log_likelihood, found.max_probability
    own.significant[rows] = found.significant
    if settings.correct_norm:
        own.norm[rows] = before.norm[rows] * found.residual.clamp(min=1e-6).sqrt()


def settle_strengths(assignments: Assignments, sums: list[Sums], seen: Observations, settings: Settings) -> None:
    """Bring norm corrections to mean 1 wherever one noise spectrum holds, and estimate the micrographs' scales, in place.

    How loud an optics group is in a half is its spectrum's to say: told by both, the two would overshoot in turns for ever.
    """
    if settings.correct_norm:
        place = assignments.half * seen.noise_groups + seen.noise_group
        for number in torch.unique(place):
            own = place == number
            norm = assignments.norm[own] / assignments.norm[own].median()
            norm = norm.clamp(min=1 / _NORM_RANGE, max=_NORM_RANGE)
            assignments.norm[own] = norm / norm.mean()
    if settings.correct_scale:
        total = sums[0]
        for other in sums[1:]:
            total.cross.add_(other.cross)
            total.energy.add_(other.energy)
        assignments.scale.copy_(new_scale(total, assignments.scale))


def new_statistics(model: Model, sums: Sums, seen: Observations, settings: Settings) -> None:
    """Noise, class weights and spread of offsets from the sums, in place."""
    if not settings.fix_noise:
        model.sigma2 = new_noise(sums, seen, model.sigma2)
    total = sums.class_weight.sum()
    model.class_weight = sums.class_weight / total
    if settings.align:
        model.offset_sigma = max(_LEAST_OFFSET_SIGMA, float((sums.offset2 / (2 * total)).sqrt()))


def changes(before: Assignments, after: Assignments, symmetry: str) -> tuple[float, float, float]:
    """Root mean square change of poses (degrees, modulo the group) and origins (Å), and the share of classes that changed."""
    operators = symmetry_operators(symmetry).float().to(after.matrices.device)
    turned = torch.stack([rotation_distance(after.matrices, before.matrices @ operator) for operator in operators]).amin(0)
    moved = (after.origins - before.origins).square().sum(1) / 2
    return float(turned.square().mean().sqrt()), float(moved.mean().sqrt()), float((after.classes != before.classes).double().mean())


def copied(state: State) -> State:
    """A copy whose assignments, models and counters may be changed."""
    new = copy.copy(state)
    new.assignments, new.progress, new.history = state.assignments.copy(), copy.copy(state.progress), list(state.history)
    new.sampling = copy.copy(state.sampling)
    new.models = [copy.copy(model) for model in state.models]
    for model in new.models:
        model.references, model.tau2, model.ssnr = model.references.clone(), model.tau2.clone(), model.ssnr.clone()
    return new
