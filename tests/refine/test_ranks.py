"""Refinement and classification on 1, 2 and 4 ranks: the same to summation order, the same twice to the last bit."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

from ranks_for_tests import on_ranks
from refine.sets import DIAMETER, particles, seen, two_states, unknown
from verglas.compute.ranks import ALONE, Ranks
from verglas.refine import initial_model
from verglas.refine.assignments import from_particles, split_halves
from verglas.refine.autorefine import refine
from verglas.refine.classify import classify
from verglas.refine.iteration import shared
from verglas.refine.settings import Settings
from verglas.refine.start import first_state, random_averages
from verglas.refine.state import State

COUNT, BOX, PIXEL = 80, 24, 8.0
REFINE = Settings(
    dims=3, mask_diameter=DIAMETER, symmetry="D2", ini_high=50.0, healpix_order=1, local_order=2, iterations=3, offset_range_px=3.0
)
CLASSIFY = Settings(dims=2, mask_diameter=DIAMETER, classes=3, iterations=3, tau2_fudge=2.0, psi_step=24.0, offset_range_px=3.0)
FIT = replace(REFINE, healpix_order=1, local_order=1, ini_high=30.0)  # near the last poses from the start, and soon by fits
SORT = Settings(dims=3, mask_diameter=DIAMETER, classes=2, symmetry="D2", healpix_order=1, iterations=2, tau2_fudge=4.0, ini_high=40.0)
FIRST = initial_model.Settings(mask_diameter=DIAMETER, symmetry="D2", classes=1, iterations=3, ini_batch=40, fin_batch=60, angle=15.0)


def summary(state: State) -> dict[str, Any]:
    """What a run came to, as arrays."""
    own = state.assignments
    found = {"poses": own.matrices, "origins": own.origins, "classes": own.classes, "norm": own.norm, "scale": own.scale}
    found["maps"] = torch.cat([model.references for model in state.models])
    found["noise"] = torch.cat([model.sigma2 for model in state.models])
    if state.joined is not None:
        found |= {"joined": state.joined.references, "fsc": state.fsc}
    return {name: values.numpy() for name, values in found.items()}


def refined(ranks: Ranks) -> dict[str, Any]:
    images, table, truth = particles(COUNT, BOX, PIXEL, 0.3)
    view = seen(images, table)
    start = first_state(view, unknown(table, halves=True), truth[None], REFINE)
    return summary(list(refine(view, shared(ranks, start), REFINE, ranks=ranks))[-1])


def fitted(ranks: Ranks) -> dict[str, Any]:
    """Near given poses, then by fits from the best of them, then from the last poses."""
    images, table, truth = particles(COUNT, BOX, PIXEL, 0.3)
    view = seen(images, table)
    start = first_state(view, from_particles(table, len(view.micrographs), split_halves(table, 1)[0]), truth[None], FIT)
    states = list(refine(view, shared(ranks, start), FIT, ranks=ranks))
    assert start.sampling.local_sigma and [state.sampling.fit for state in states[1:3]] == ["found", "last"]
    return summary(states[-1])


def classified(ranks: Ranks) -> dict[str, Any]:
    images, table, _ = particles(COUNT, BOX, PIXEL, 0.3)
    view, own = seen(images, table), unknown(table)
    averages = random_averages(view, torch.arange(COUNT), own, CLASSIFY.classes, 1, ranks)
    start = first_state(view, own, averages, CLASSIFY)
    return summary(list(classify(view, shared(ranks, start), CLASSIFY, ranks=ranks))[-1])


def sorted_in_3d(ranks: Ranks) -> dict[str, Any]:
    images, table, truth = particles(COUNT, BOX, PIXEL, 0.3)
    view = seen(images, table)
    start = first_state(view, unknown(table), truth.expand(2, -1, -1, -1), SORT)
    return summary(list(classify(view, shared(ranks, start), SORT, ranks=ranks))[-1])


def sorted_as_posed(ranks: Ranks) -> dict[str, Any]:
    images, table, truth = two_states(COUNT, BOX, PIXEL, 0.3)
    view, settings = seen(images, table), replace(SORT, align=False)
    start = first_state(view, from_particles(table, len(view.micrographs)), truth, settings)
    return summary(list(classify(view, shared(ranks, start), settings, ranks=ranks))[-1])


def begun(ranks: Ranks, classes: int = 1) -> dict[str, Any]:
    images, table, _ = particles(COUNT, BOX, PIXEL, 0.3)
    model = initial_model.InitialModel(seen(images, table), replace(FIRST, classes=classes), ranks)
    state = model.start()
    for _ in range(model.settings.iterations):
        state = model.step(state)
    found = model.assign(state)
    poses = {"poses": found.matrices, "origins": found.origins, "classes": found.classes}
    return {name: values.numpy() for name, values in {"maps": state.maps, "shares": state.shares, **poses}.items()}


def begun_in_classes(ranks: Ranks) -> dict[str, Any]:
    return begun(ranks, 2)


Work = Callable[[Ranks], dict[str, Any]]
WORKS: dict[str, Work] = {
    "refined": refined,
    "fitted": fitted,
    "classified": classified,
    "sorted in 3D": sorted_in_3d,
    "sorted as posed": sorted_as_posed,
    "begun": begun,
    "begun in classes": begun_in_classes,
}


@cache
def alone(work: str) -> dict[str, Any]:
    return WORKS[work](ALONE)


@cache
def together(work: str, size: int) -> dict[int, Any]:
    """What each of so many ranks found."""
    with TemporaryDirectory() as folder:
        return on_ranks(size, Path(folder), WORKS[work])


def assert_close(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    """Equal to summation order: nothing of a particle has changed but rounding, and maps differ by far less than their noise."""
    assert (one["classes"] == other["classes"]).all()
    for name in one.keys() - {"classes"}:
        assert np.abs(one[name] - other[name]).max() <= tolerance * np.abs(one[name]).std(), name


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("size", [2, 4])
def test_many_ranks_find_what_one_finds(work: str, size: int) -> None:
    found = together(work, size)
    assert not [error for error in found.values() if isinstance(error, Exception)]
    # a fit ends where a step promises too little, a tenth of the posterior's deviation: rounding decides which step is the last
    assert_close(alone(work), found[0], 5e-2 if work == "fitted" else 2e-3)
    for rank in range(1, size):  # the others know the particles and the maps as rank 0 does
        for name in found[rank]:
            assert np.array_equal(found[0][name], found[rank][name]), name


@pytest.mark.parametrize(("work", "size"), [*((work, 2) for work in WORKS), ("sorted in 3D", 4)])
def test_the_same_ranks_find_the_same_bits(work: str, size: int, tmp_path: Path) -> None:
    one, two = together(work, size)[0], on_ranks(size, tmp_path, WORKS[work])[0]
    for name in one:
        assert np.array_equal(one[name], two[name]), name
    again = WORKS[work](ALONE)
    assert all(np.array_equal(alone(work)[name], again[name]) for name in again)
