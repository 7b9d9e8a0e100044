"""The same work twice, on the CPU and on a card, with all of the memory and beside others: the same bits."""

from dataclasses import fields

import pytest
import torch

from refine.sets import DIAMETER, particles, seen, without_poses
from verglas.compute.memory import total_bytes
from verglas.refine.assignments import from_particles, split_halves
from verglas.refine.autorefine import one_iteration
from verglas.refine.classify import classify
from verglas.refine.settings import Settings
from verglas.refine.start import first_state, random_averages
from verglas.refine.state import State

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BOX, PIXEL = 32, 6.0


def refined(device: str) -> State:
    """Four iterations of a refinement: by correlation, everywhere, near each pose, and by fits."""
    images, table, truth = particles(200, BOX, PIXEL, 0.2)
    settings = Settings(dims=3, mask_diameter=DIAMETER, symmetry="D2", ini_high=40.0)
    view = seen(images, table, device)
    own = from_particles(without_poses(table), len(view.micrographs), split_halves(table, 1)[0], device)
    state = first_state(view, own, truth[None], settings)
    for local_sigma, fit in ((None, ""), (None, ""), (7.5, ""), (3.75, "found")):
        state.sampling.local_sigma, state.sampling.fit = local_sigma, fit
        state = one_iteration(view, state, settings)
    return state


def classified(device: str) -> State:
    """Two iterations of a classification into averages."""
    images, table, _ = particles(200, BOX, PIXEL, 0.2)
    settings = Settings(dims=2, mask_diameter=DIAMETER, classes=5, iterations=2, tau2_fudge=2.0)
    view = seen(images, table, device)
    own = from_particles(without_poses(table), len(view.micrographs), device=device)
    averages = random_averages(view, torch.arange(200, device=device), own, 5, 1)
    return list(classify(view, first_state(view, own, averages, settings), settings))[-1]


def differing(first: State, second: State) -> list[str]:
    """Names of what is not equal to the bit."""
    names = ["fsc"] if not torch.equal(first.fsc, second.fsc) else []
    records = [(first.assignments, second.assignments), *zip(first.models, second.models)]
    for one, other in records:
        for each in fields(one):
            mine, theirs = getattr(one, each.name), getattr(other, each.name)
            equal = torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
            names += [] if equal else [f"{type(one).__name__}.{each.name}"]
    return names + [f"unfiltered {place}" for place, pair in enumerate(zip(first.unfiltered, second.unfiltered)) if not torch.equal(*pair)]


@pytest.mark.parametrize("work", [refined, classified])
@pytest.mark.parametrize("device", DEVICES)
def test_twice_the_same(work, device: str) -> None:  # type: ignore[no-untyped-def]
    assert differing(work(device), work(device)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("work", [refined, classified])
def test_beside_another_that_holds_memory(work) -> None:  # type: ignore[no-untyped-def]
    alone = work("cuda")
    held = torch.empty(total_bytes(torch.device("cuda")) // 5, dtype=torch.uint8, device="cuda")
    assert differing(alone, work("cuda")) == [] and len(held)
