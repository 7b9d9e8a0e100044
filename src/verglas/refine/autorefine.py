"""Automatic 3D refinement of two independent halves, with its own sampling and its own end (METHOD.md §5).

for state in refine(seen, first_state(...), settings):
    ...                                             # write it, show it
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from verglas.compute.ranks import ALONE, Ranks
from verglas.refine.accuracy import expected_errors
from verglas.refine.assignments import Assignments
from verglas.refine.iteration import (
    SHELLS_AHEAD,
    build_search,
    changes,
    compare,
    copied,
    new_statistics,
    settle_strengths,
    shared,
    strengths_known,
    take_in,
)
from verglas.refine.maximisation import flattened, half_map_fsc, joined_low, shell_weights, ssnr_of_fsc, tau2_of_ssnr
from verglas.refine.model import Model, Sums
from verglas.refine.observations import Observations
from verglas.refine.search import Found
from verglas.refine.settings import Settings
from verglas.refine.state import Progress, State
from verglas.volume.fsc import resolution_shell, solvent_corrected
from verglas.volume.reconstruct import reconstruct, symmetrise
from verglas.volume.sampling import angular_step
from verglas.volume.slices import pixel_list

_WITHOUT_GAIN, _WITHOUT_CHANGES = 1, 1  # iterations that end a sampling
_CHANGE_COUNTS = 1.03  # changes must shrink by this factor to count as smaller
_FINEST_ORDER = 7
_FIT_BELOW = 4.0  # fine steps below this many expected errors: from there on poses are fitted, not searched
_SETTLED = 0.25  # of the expected error: poses that change by less have settled
_MUCH_BEYOND = 0.25  # of Nyquist: added when the FSC at the limit is still this high
_HIGH_FSC, _SHARP = 0.2, 0.1
_LAST_BEYOND = 1.25  # the last iteration compares up to this many times the resolution's shell


def refine(seen: Observations, state: State, settings: Settings, mask: torch.Tensor | None = None, ranks: Ranks = ALONE) -> Iterator[State]:
    """Go on from `state` until it has converged; yields the state after each iteration, the last with `progress.finished`.

    Each of the `ranks` compares its share of the particles; `mask` is needed by the first alone.
    """
    while not state.progress.finished:
        state = one_iteration(seen, state, settings, mask, ranks)
        yield state


def one_iteration(seen: Observations, state: State, settings: Settings, mask: torch.Tensor | None = None, ranks: Ranks = ALONE) -> State:
    """The state after one more iteration; the last one, when nothing finer is left to do or enough are done, joins the halves and sums
    to Nyquist.
    """
    limit = settings.shell_limit(seen.box, seen.pixel_size)
    last = state.progress.fine_enough or state.iteration >= settings.iterations
    score_shell = _score_shell(state, limit, last)
    search = build_search(
        state,
        settings,
        seen,
        score_shell,
        sum_shell=limit if last else None,
        correlation=state.iteration == 0 and not settings.absolute_greyscale,
    )
    before, state = state.assignments, copied(state)
    rows = [torch.nonzero(before.half == half)[:, 0] for half in range(len(state.models))]
    parts = compare(ranks, seen, rows, before, state.models, search)
    if ranks.first:
        with ranks.waited_for():
            if state.sampling.fit:
                state.sampling.fit = "last"  # a search finds each pose once; from then on it is followed
            _maximise(state, rows, parts, before, seen, strengths_known(settings, search), mask, score_shell, last)
            state.iteration += 1
            _judge(state, before, seen, settings, search.symmetry, score_shell, last)
            state.history.append(_figures(state, seen, score_shell))
    return shared(ranks, state)


def _maximise(
    state: State,
    rows: list[torch.Tensor],
    parts: list[tuple[Sums, Found]],
    before: Assignments,
    seen: Observations,
    settings: Settings,
    mask: torch.Tensor | None,
    score_shell: int,
    last: bool,
) -> None:
    """Take in what was found, and make statistics and maps of it."""
    for own, model, (part, found) in zip(rows, state.models, parts):
        take_in(state, own, found, settings, before)
        new_statistics(model, part, seen, settings)
    sums = [part for part, _ in parts]
    settle_strengths(state.assignments, sums, seen, settings)
    _reconstruct_halves(state, sums, seen, settings, mask, score_shell)
    if last:
        _join(state, sums, settings, mask, settings.mask_diameter / seen.pixel_size)


def _score_shell(state: State, limit: int, last: bool) -> int:
    """How far images are compared: ten shells past the resolution, and further while the halves agree well at the limit."""
    progress = state.progress
    shell = progress.resolution_shell
    if last:
        return min(limit, math.ceil(_LAST_BEYOND * shell))
    ahead = SHELLS_AHEAD
    if progress.fsc_at_limit > _HIGH_FSC and float(state.assignments.max_probability.mean()) > _SHARP:
        ahead += round(_MUCH_BEYOND * limit)
    return min(limit, shell + ahead)


def _reconstruct_halves(
    state: State, sums: list[Sums], seen: Observations, settings: Settings, mask: torch.Tensor | None, score_shell: int
) -> None:
    """FSC of the halves, and each half's map under the prior that the FSC gives."""
    halves = [part.slices for part in sums]
    for half in halves:
        symmetrise(half, settings.symmetry)
    joined_shell = min(score_shell, math.floor(seen.box * seen.pixel_size / settings.low_resol_join)) if settings.low_resol_join else 0
    joined_low(halves[0], halves[1], joined_shell)
    state.unfiltered = [reconstruct(half)[0] for half in halves]
    state.fsc = _fsc(state.unfiltered, seen, settings, mask, joined_shell)
    state.progress.fsc_at_limit = float(state.fsc[min(score_shell, len(state.fsc) - 1)])
    ssnr = ssnr_of_fsc(state.fsc)
    state.weights = [shell_weights(half, len(ssnr)) for half in halves]
    for model, half in zip(state.models, halves):
        tau2 = tau2_of_ssnr(ssnr, half, settings.tau2_fudge)
        model.references = flattened(reconstruct(half, tau2), mask, settings.mask_diameter / seen.pixel_size)
        model.tau2, model.ssnr = tau2, ssnr[None]


def _fsc(maps: list[torch.Tensor], seen: Observations, settings: Settings, mask: torch.Tensor | None, joined_shell: int) -> torch.Tensor:
    """FSC of the half maps; inside the mask and corrected for it by phase randomisation, where that was asked for."""
    plain = half_map_fsc(maps[0], maps[1], seen.shells, joined_shell)
    if not settings.solvent_correct_fsc or mask is None:
        return plain
    _, _, corrected, _ = solvent_corrected(maps[0], maps[1], mask, plain, settings.seed)
    corrected[: joined_shell + 1] = 1.0
    return corrected


def _join(state: State, sums: list[Sums], settings: Settings, mask: torch.Tensor | None, diameter_px: float) -> None:
    """The map of all particles."""
    whole = sums[0].slices
    whole.data.add_(sums[1].slices.data)
    ssnr = ssnr_of_fsc(state.fsc, joined=True)
    tau2 = tau2_of_ssnr(ssnr, whole, settings.tau2_fudge)
    own, other = state.models
    state.joined = Model(
        flattened(reconstruct(whole, tau2), mask, diameter_px),
        (own.sigma2 + other.sigma2) / 2,
        tau2,
        ssnr[None],
        own.class_weight,
        (own.offset_sigma + other.offset_sigma) / 2,
    )
    state.weights.append(shell_weights(whole, len(ssnr)))


def _judge(state: State, before: Assignments, seen: Observations, settings: Settings, symmetry: str, score_shell: int, last: bool) -> None:
    """Resolution, changes, and what they mean for the sampling and the end."""
    progress = state.progress
    limit = settings.shell_limit(seen.box, seen.pixel_size)
    progress.resolution_shell = max(1, min(limit, resolution_shell(state.fsc)))
    progress.rotation_change, progress.offset_change, progress.class_change = changes(before, state.assignments, symmetry)
    if last:
        progress.finished = True
        return
    progress.without_gain = 0 if progress.resolution_shell > progress.best_shell else progress.without_gain + 1
    progress.best_shell = max(progress.best_shell, progress.resolution_shell)
    smaller = progress.rotation_change * _CHANGE_COUNTS < progress.smallest_rotation
    smaller |= progress.offset_change * _CHANGE_COUNTS < progress.smallest_offset
    # grids are turned at random, so poses go on changing by about a step for ever: that is no progress either
    settled = _SETTLED * progress.accuracy_rotation if state.sampling.fit else _fine_step(state)
    progress.without_changes = 0 if smaller and progress.rotation_change >= settled else progress.without_changes + 1
    progress.smallest_rotation = min(progress.smallest_rotation, progress.rotation_change)
    progress.smallest_offset = min(progress.smallest_offset, progress.offset_change)
    _expect_errors(state, seen, settings, score_shell)
    if progress.without_gain >= _WITHOUT_GAIN and progress.without_changes >= _WITHOUT_CHANGES:
        _sample_finer(state, seen, settings)


def _expect_errors(state: State, seen: Observations, settings: Settings, score_shell: int) -> None:
    pixels = pixel_list(seen.box, min(score_shell, state.progress.resolution_shell + SHELLS_AHEAD), device=seen.device)
    rows = torch.nonzero(state.assignments.half == 0)[:, 0]
    errors = expected_errors(seen, rows, state.assignments, state.models[0], pixels, settings.padding)
    state.progress.accuracy_rotation, state.progress.accuracy_offset = errors


def _sample_finer(state: State, seen: Observations, settings: Settings) -> None:
    """Halve the angles and adapt the shifts to what can be told apart; the end when the angles are fine enough already.

    Local searches that come near to what can be told apart give way to fits, after which nothing is finer.
    """
    progress, sampling = state.progress, state.sampling
    if not sampling.fit and _can_be_fitted(state):
        sampling.fit = "found"
        _forget(progress)
        return
    if sampling.fit or _fine_step(state) < 0.75 * progress.accuracy_rotation or sampling.order >= _FINEST_ORDER:
        progress.fine_enough = True
        return
    step = 2 * min(1.5, 0.75 * progress.accuracy_offset / seen.pixel_size)
    step = min(step, sampling.offset_step)
    reach = min(max(5 * progress.offset_change / seen.pixel_size, 1.5 * step), 4 * step, sampling.offset_range)
    sampling.offset_step, sampling.offset_range = step, max(reach, step)
    sampling.order += 1
    if sampling.order >= settings.local_order:
        sampling.local_sigma = angular_step(sampling.order)
        if _can_be_fitted(state):
            sampling.fit = "found"
    _forget(progress)


def _can_be_fitted(state: State) -> bool:
    """Whether the best candidates of a local search are near enough to the top of their posteriors."""
    return state.sampling.local_sigma is not None and _fine_step(state) < _FIT_BELOW * state.progress.accuracy_rotation


def _fine_step(state: State) -> float:
    """Degrees between the poses that are compared after oversampling."""
    return angular_step(state.sampling.order) / 2


def _forget(progress: Progress) -> None:
    """Start counting again under the new sampling."""
    progress.without_gain = progress.without_changes = 0
    progress.smallest_rotation = progress.smallest_offset = 999.0


def _figures(state: State, seen: Observations, score_shell: int) -> dict[str, float]:
    progress = state.progress
    return {
        "iteration": state.iteration,
        "resolution": seen.box * seen.pixel_size / progress.resolution_shell,
        "compared_to": seen.box * seen.pixel_size / score_shell,
        "max_probability": float(state.assignments.max_probability.mean()),
        "healpix_order": state.sampling.order,
        "offset_step": state.sampling.offset_step * seen.pixel_size,
        "offset_range": state.sampling.offset_range * seen.pixel_size,
        "local": float(state.sampling.local_sigma or 0),
        "fit": float(bool(state.sampling.fit)),
        "rotation_change": progress.rotation_change,
        "offset_change": progress.offset_change,
        "accuracy_rotation": progress.accuracy_rotation,
        "accuracy_offset": progress.accuracy_offset,
    }
