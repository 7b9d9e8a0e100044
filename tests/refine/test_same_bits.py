"""The same work twice, on the CPU and on a card, with all of the memory and beside others: the same bits."""

from dataclasses import fields, is_dataclass

import pytest
import torch

from refine.sets import DIAMETER, particles, seen, two_states, without_poses
from verglas.compute.memory import total_bytes
from verglas.refine import initial_model
from verglas.refine.assignments import Assignments, from_particles, split_halves
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


def sorted_in_3d(device: str) -> State:
    """Three iterations of a classification into two maps, which begin as one: by correlation, then by all weights."""
    images, table, truth = particles(120, BOX, PIXEL, 0.3)
    settings = Settings(dims=3, mask_diameter=DIAMETER, classes=2, symmetry="D2", healpix_order=1, iterations=3, ini_high=40.0)
    view = seen(images, table, device)
    own = from_particles(without_poses(table), len(view.micrographs), device=device)
    return list(classify(view, first_state(view, own, truth.expand(2, -1, -1, -1), settings), settings))[-1]


def sorted_as_posed(device: str) -> State:
    """Two iterations of a classification of two states that keeps the poses."""
    images, table, truth = two_states(120, BOX, PIXEL, 0.3)
    settings = Settings(dims=3, mask_diameter=DIAMETER, classes=2, symmetry="D2", iterations=2, ini_high=20.0, align=False)
    view = seen(images, table, device)
    own = from_particles(table, len(view.micrographs), device=device)
    return list(classify(view, first_state(view, own, truth, settings), settings))[-1]


def begun(device: str, classes: int = 1) -> tuple[initial_model.State, Assignments]:
    """Three iterations of a first map, and the poses that go with it."""
    images, table, _ = particles(120, BOX, PIXEL, 0.3)
    settings = initial_model.Settings(mask_diameter=DIAMETER, symmetry="D2", classes=classes, iterations=3, angle=15.0)
    model = initial_model.InitialModel(seen(images, without_poses(table), device), settings)
    state = model.start()
    for _ in range(settings.iterations):
        state = model.step(state)
    return state, model.assign(state)


def begun_in_classes(device: str) -> tuple[initial_model.State, Assignments]:
    """The same with two maps."""
    return begun(device, 2)


WORKS = [refined, classified, sorted_in_3d, sorted_as_posed, begun, begun_in_classes]


def differing(first: object, second: object, name: str = "") -> list[str]:
    """Names of what is not equal to the bit in two results: in records, lists and tensors of the same kind."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [name]  # type: ignore[arg-type]
    if is_dataclass(first):
        inner = [(getattr(first, each.name), getattr(second, each.name), f"{name}.{each.name}") for each in fields(first)]
    elif isinstance(first, list | tuple):
        inner = [(one, other, f"{name}[{place}]") for place, (one, other) in enumerate(zip(first, second, strict=True))]  # type: ignore[call-overload]
    else:
        return [] if first == second else [name]
    return [found for one, other, path in inner for found in differing(one, other, path)]


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("device", DEVICES)
def test_twice_the_same(work, device: str) -> None:  # type: ignore[no-untyped-def]
    assert differing(work(device), work(device)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("work", WORKS)
def test_beside_another_that_holds_memory(work) -> None:  # type: ignore[no-untyped-def]
    alone = work("cuda")
    held = torch.empty(total_bytes(torch.device("cuda")) // 5, dtype=torch.uint8, device="cuda")
    assert differing(alone, work("cuda")) == [] and len(held)
