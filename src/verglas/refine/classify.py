"""2D and 3D classification: EM over a fixed number of iterations, all particles against all classes.

for state in classify(seen, first_state(...), settings):
    ...                                             # write it, show it
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from verglas.compute.ranks import ALONE, Ranks
from verglas.refine.accuracy import expected_errors
from verglas.refine.iteration import (
    SHELLS_AHEAD,
    build_search,
    changes,
    compare,
    copied,
    draw,
    new_statistics,
    settle_strengths,
    shared,
    strengths_known,
    take_in,
)
from verglas.refine.maximisation import class_maps, flattened, noise_free_power, shell_weights
from verglas.refine.model import Model, Sums
from verglas.refine.observations import Observations
from verglas.refine.settings import Settings
from verglas.refine.state import State
from verglas.volume.reconstruct import symmetrise
from verglas.volume.slices import pixel_list

_LEAST_CLASS = 1e-6  # share of the particles below which a class is empty
_EMPTY = 0.1  # share of a class, in even shares, below which it counts as empty
_SEED_SSNR = 0.5  # largest SSNR that a shell beyond the prior may be given to start from


def classify(
    seen: Observations, state: State, settings: Settings, mask: torch.Tensor | None = None, ranks: Ranks = ALONE
) -> Iterator[State]:
    """Go on from `state`; yields the state after each iteration, `settings.iterations` in all.

    mask: map (or image) that the references are multiplied by; a soft sphere of the particle's diameter where not given; needed by
    the first of the `ranks` alone, of which each compares its share of the particles.
    """
    while state.iteration < settings.iterations:
        state = one_iteration(seen, state, settings, mask, ranks)
        yield state


def one_iteration(seen: Observations, state: State, settings: Settings, mask: torch.Tensor | None = None, ranks: Ranks = ALONE) -> State:
    """The state after one more iteration; `state` itself is left as it is."""
    first = state.iteration == 0
    correlation = first and settings.dims == 3 and not settings.absolute_greyscale
    limit = settings.shell_limit(seen.box, seen.pixel_size)
    search = build_search(state, settings, seen, min(limit, state.progress.resolution_shell + SHELLS_AHEAD), correlation=correlation)
    before, state = state.assignments, copied(state)
    model, rows = state.models[0], torch.arange(len(before), device=seen.device)
    bound = _only_class(state, settings)
    if state.iteration < settings.iterations // 3:
        model.class_weight = torch.full_like(model.class_weight, 1 / settings.classes)  # no class is favoured before it shows something
    parts = compare(ranks, seen, [rows], before, [model], search, bound)
    if ranks.first:
        with ranks.waited_for():
            [(sums, found)], told = parts, strengths_known(settings, search)
            take_in(state, rows, found, told, before)
            settle_strengths(state.assignments, [sums], seen, told)
            _maximise(state, model, sums, seen, told, mask, fresh=correlation)
            progress = state.progress
            progress.rotation_change, progress.offset_change, progress.class_change = changes(before, state.assignments, search.symmetry)
            state.iteration += 1
            progress.finished = state.iteration >= settings.iterations
            if progress.finished:
                pixels = pixel_list(seen.box, min(limit, progress.resolution_shell + SHELLS_AHEAD), device=seen.device)
                errors = expected_errors(seen, rows, state.assignments, model, pixels, settings.padding)
                progress.accuracy_rotation, progress.accuracy_offset = errors
            state.history.append(_figures(state, seen, int(search.score.shell.max())))
    return shared(ranks, state)


def _maximise(
    state: State, model: Model, sums: Sums, seen: Observations, settings: Settings, mask: torch.Tensor | None, *, fresh: bool
) -> None:
    """New references and statistics; `fresh`: the references' scale says nothing, so tau2 is taken from the sums."""
    new_statistics(model, sums, seen, settings)
    symmetrise(sums.slices, settings.symmetry if settings.dims == 3 else "C1")
    weight, fudge = shell_weights(sums.slices, seen.shells), settings.tau2_fudge
    power = noise_free_power(sums.slices, weight)
    tau2 = power if fresh else torch.maximum(model.tau2, _seed(power, weight, fudge))
    volumes, ssnr, tau2 = class_maps(sums.slices, tau2, weight, fudge)
    empty = model.class_weight < _LEAST_CLASS
    for values in (volumes, ssnr, tau2, weight):
        values[empty] = 0.0
    model.references = flattened(volumes, mask, settings.mask_diameter / seen.pixel_size)
    model.tau2, model.ssnr = tau2, ssnr
    state.weights = [weight]
    limit = settings.shell_limit(seen.box, seen.pixel_size)
    state.progress.resolution_shell = max(1, min(limit, int(_shells_above_one(ssnr).max())))


def _seed(power: torch.Tensor, weight: torch.Tensor, fudge: float) -> torch.Tensor:
    """Prior variance to start from in shells where the last map had none: what the data show, up to an SSNR of a half.

    Without it a shell that the starting reference lacks would stay empty for ever, as the prior is the last map's power.
    """
    return torch.where(weight > 0, torch.minimum(power, _SEED_SSNR / (fudge * weight.clamp(min=1e-300))), 0.0)


def class_shell(ssnr: torch.Tensor) -> int:
    """The last shell before a class's SSNR [shells] first falls under 1."""
    return int(_shells_above_one(ssnr))


def _shells_above_one(ssnr: torch.Tensor) -> torch.Tensor:
    return (ssnr[..., 1:] >= 1).long().cumprod(-1).sum(-1)


def _only_class(state: State, settings: Settings) -> torch.Tensor | None:
    """The class that particles are bound to in the coming iteration, −1 for those that are free; None where all are.

    At the start classes that say nothing yet (averages of random shares in 2D, copies of one reference in 3D) are told apart by
    random shares of the particles. Later, in the first half of the iterations, an empty class takes half of the largest one.
    """
    model, own = state.models[0], state.assignments.classes
    if settings.classes == 1:
        return None
    order = torch.randperm(len(own), generator=draw(settings, state.iteration)).to(own.device)
    if state.iteration == 0:
        return order % settings.classes if settings.dims == 2 or _all_equal(model) else None
    counts = torch.bincount(own, minlength=settings.classes)
    empty = torch.nonzero(model.class_weight * settings.classes < _EMPTY)[:, 0].tolist()
    if not empty or settings.dims == 3 or state.iteration > settings.iterations // 2:
        return None
    bound = torch.full_like(own, -1)
    for number in empty:
        largest = int(counts.argmax())
        if counts[largest] < 2:
            break
        members = torch.nonzero((own == largest) & (bound < 0))[:, 0]
        members = members[torch.argsort(order[members])]
        model.references[number] = model.references[largest]
        model.tau2[number], model.ssnr[number] = model.tau2[largest], model.ssnr[largest]
        bound[members[::2]], bound[members[1::2]] = largest, number
        counts[largest] = 0
    return bound


def _all_equal(model: Model) -> bool:
    return bool((model.references == model.references[:1]).all())


def _figures(state: State, seen: Observations, score_shell: int) -> dict[str, float]:
    shares = state.models[0].class_weight
    return {
        "iteration": state.iteration,
        "resolution": seen.box * seen.pixel_size / state.progress.resolution_shell,
        "compared_to": seen.box * seen.pixel_size / score_shell,
        "max_probability": float(state.assignments.max_probability.mean()),
        "largest_class": float(shares.max()),
        "class_change": state.progress.class_change,
        "rotation_change": state.progress.rotation_change,
        "offset_change": state.progress.offset_change,
    }
