"""Whole classifications and refinements of small simulated sets, against the truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from refine.particles_for_tests import simulated
from refine.sets import DIAMETER, errors, particles, seen, two_states, unknown
from verglas.particles import ParticleSet
from verglas.refine.assignments import from_particles, split_halves
from verglas.refine.autorefine import refine
from verglas.refine.classify import classify
from verglas.refine.settings import Settings
from verglas.refine.start import first_state, random_averages
from verglas.refine.state import State, load_state, save_state
from verglas.scores.classes import class_purity, orientation_spread
from verglas.scores.poses import pose_errors
from verglas.volume.filters import lowpass
from verglas.volume.fsc import fsc
from verglas.volume.rotations import euler_to_matrix, matrix_to_euler
from verglas.volume.symmetry import symmetrise_map, symmetry_operators
from volume.maps_for_tests import chain

BOX, PIXEL = 32, 6.0


def refined(images: torch.Tensor, table: ParticleSet, truth: torch.Tensor, **own: object) -> State:
    settings = Settings(
        **({"dims": 3, "mask_diameter": DIAMETER, "symmetry": "D2", "ini_high": 40.0, "local_order": 3, "iterations": 7} | own)
    )  # type: ignore[arg-type]
    view = seen(images, table)
    return list(refine(view, first_state(view, unknown(table, halves=True), truth[None], settings), settings))[-1]


@pytest.fixture(scope="module")
def finished() -> State:
    images, table, truth = particles(200, BOX, PIXEL, 0.2)
    return refined(images, table, truth)


def test_refinement_reaches_the_truth(finished: State) -> None:
    _, table, truth = particles(200, BOX, PIXEL, 0.2)
    score = errors(finished.assignments, table, "D2").summary()
    assert score["pose_median"] < 4.0 and score["pose_90"] < 9.0 and not score["mirrored"]
    assert score["shift_median"] < 1.2
    assert finished.joined is not None
    against_truth = fsc(finished.joined.references[0], truth)
    assert (against_truth[1:14] > 0.8).all()
    # what the halves say is what the truth says: √(2 FSC / (1 + FSC)) foretells the correlation of the joined map
    halves = finished.fsc[6:15]
    assert (against_truth[6:15] - torch.sqrt(2 * halves / (1 + halves))).abs().max() < 0.12


def test_halves_never_meet(finished: State) -> None:
    """Noise alone has no FSC beyond where the halves are joined, however long it is refined from one reference."""
    _, table, truth = particles(200, BOX, PIXEL, 0.2)
    noise = torch.randn(100, BOX, BOX, generator=torch.Generator().manual_seed(3))
    state = refined(noise, table.subset(np.arange(100)), truth, iterations=2)
    assert state.fsc[10:16].abs().max() < 0.35
    assert state.fsc[10:16].mean() < 0.1
    assert state.progress.resolution_shell <= 8


def test_same_seed_same_result(finished: State) -> None:
    images, table, truth = particles(200, BOX, PIXEL, 0.2)
    again = refined(images, table, truth)
    assert torch.equal(again.assignments.matrices, finished.assignments.matrices)
    assert torch.equal(again.unfiltered[0], finished.unfiltered[0])


def test_a_state_from_disk_goes_on_to_the_same_result(finished: State, tmp_path) -> None:  # type: ignore[no-untyped-def]
    images, table, truth = particles(200, BOX, PIXEL, 0.2)
    settings = Settings(dims=3, mask_diameter=DIAMETER, symmetry="D2", ini_high=40.0, local_order=3, iterations=7)
    view = seen(images, table)
    run = refine(view, first_state(view, unknown(table, halves=True), truth[None], settings), settings)
    next(run)
    save_state(tmp_path / "state.pt", next(run))
    last = list(refine(view, load_state(tmp_path / "state.pt"), settings))[-1]
    assert torch.equal(last.assignments.matrices, finished.assignments.matrices)
    assert torch.equal(last.unfiltered[1], finished.unfiltered[1])


def test_2d_classes_show_one_view_each() -> None:
    images, table, _ = particles(300, BOX, PIXEL, 0.3)
    view, own = seen(images, table), unknown(table)
    settings = Settings(dims=2, mask_diameter=DIAMETER, classes=6, iterations=12, tau2_fudge=2.0)
    averages = random_averages(view, torch.arange(300), own, 6, 1)
    state = list(classify(view, first_state(view, own, averages, settings), settings))[-1]
    found = state.assignments.classes.numpy()
    views = euler_to_matrix(torch.as_tensor(table.angles()))[:, 2].numpy()
    spread = orientation_spread(found, views, symmetry_operators("D2").numpy())
    chance = orientation_spread(np.random.default_rng(1).permutation(found), views, symmetry_operators("D2").numpy())
    assert len(np.unique(found)) == 6
    assert np.median(spread) < 0.6 * np.median(chance)
    # an average is the particle as it stands in the middle: bright, and nothing outside
    assert (state.models[0].references[:, 14:18, 14:18].mean((1, 2)) > 5 * state.models[0].references[:, :3].abs().mean((1, 2))).all()


@pytest.mark.parametrize("align", [True, False])
def test_3d_classes_tell_two_states_apart(align: bool) -> None:
    images, table, truth = two_states(240, BOX, PIXEL, 0.3)
    view = seen(images, table)
    own = unknown(table) if align else from_particles(table, len(view.micrographs))
    settings = Settings(dims=3, mask_diameter=DIAMETER, classes=2, iterations=8, tau2_fudge=4.0, symmetry="D2", ini_high=30.0, align=align)
    before = own.copy()
    start = first_state(view, own, lowpass(truth[0], PIXEL, 30.0).expand(2, -1, -1, -1), settings)
    state = list(classify(view, start, settings))[-1]
    purity = class_purity(state.assignments.classes.numpy(), table.column("class_number")).purity
    assert purity > (0.85 if align else 0.9)
    if not align:
        assert torch.equal(state.assignments.matrices, before.matrices)
        assert torch.equal(state.assignments.origins, before.origins)


@pytest.mark.parametrize("group", ["C3", "T", "O"])
def test_symmetry_that_is_no_permutation_of_axes(group: str) -> None:
    """From the map itself, and a search everywhere, to fits of each pose about the nearest copy of the last: few copies and many."""
    truth = symmetrise_map(torch.roll(chain(BOX, PIXEL, seed=2, atoms=300, radius=30.0), (3, 2, 4), (0, 1, 2)), group)
    table, source, rotations, _ = simulated(truth, PIXEL, 60, snr=5.0, shift=3.0)
    view = seen(source.read(np.arange(60)), table)
    settings = Settings(dims=3, mask_diameter=DIAMETER, symmetry=group, ini_high=20.0, local_order=3, iterations=12)
    states = list(refine(view, first_state(view, unknown(table, halves=True), truth[None], settings), settings))
    assert "found" in [state.sampling.fit for state in states[:-1]]
    true = matrix_to_euler(rotations.double())
    score = pose_errors(states[-1].assignments.angles(), true, group, common_rotation=False).summary()
    assert score["pose_median"] < 3.0 and score["within_10_degrees"] > 0.85
    assert states[-1].joined is not None
    assert (fsc(states[-1].joined.references[0], truth)[1:10] > 0.9).all()


def test_half_sets_are_kept_or_split_by_name() -> None:
    _, table, _ = particles(200, BOX, PIXEL, 0.2)
    given = table.with_columns(half=np.where(np.arange(200) % 3 == 0, 1, 2))
    assert (split_halves(given, 1)[0] == np.where(np.arange(200) % 3 == 0, 0, 1)).all()
    for bad in (np.ones(200, int), np.arange(200) % 3, np.where(np.arange(200) < 2, 1, 2)):
        half, note = split_halves(table.with_columns(half=bad), 1)
        assert half.mean() == 0.5 and "cannot be used" in note
    order = np.random.default_rng(1).permutation(200)
    assert (split_halves(table.subset(order), 1)[0] == split_halves(table, 1)[0][order]).all()
    assert (split_halves(table, 2)[0] != split_halves(table, 1)[0]).any()


@pytest.mark.gpu
def test_a_card_finds_what_the_cpu_finds(finished: State) -> None:
    """To summation order: the halves agree as well, and nearly all poses are the same to a grid's step."""
    from verglas.particles import ArrayImages
    from verglas.refine.observations import Observations

    images, table, truth = particles(200, BOX, PIXEL, 0.2)
    settings = Settings(dims=3, mask_diameter=DIAMETER, symmetry="D2", ini_high=40.0, local_order=3, iterations=7)
    view = Observations(table, ArrayImages(images, PIXEL), mask_diameter=DIAMETER, device="cuda")
    own = from_particles(table, len(view.micrographs), split_halves(table, 1)[0], "cuda")
    own.matrices[:], own.origins[:] = torch.eye(3, device="cuda"), 0.0
    state = list(refine(view, first_state(view, own, truth[None], settings), settings))[-1]
    assert (state.fsc.cpu() - finished.fsc).abs().max() < 0.05
    assert (state.assignments.matrices.cpu() - finished.assignments.matrices).abs().amax((1, 2)).median() < 0.02


def test_a_refinement_that_its_number_of_iterations_ended_goes_on_searching() -> None:
    """Its last iteration but one may be gone on from with more of them, and ends as one that was given them at once; or with fewer."""
    images, table, truth = particles(60, BOX, PIXEL, 0.5)
    view = seen(images, table)
    settings = Settings(dims=3, mask_diameter=DIAMETER, symmetry="D2", ini_high=30.0, iterations=2)
    start = first_state(view, unknown(table, halves=True), lowpass(truth, PIXEL, 30.0)[None], settings)
    short = list(refine(view, start, settings))
    assert [state.joined is not None for state in short] == [False, False, True] and not short[-1].progress.fine_enough
    longer = replace(settings, iterations=4)
    at_once, gone_on = list(refine(view, start, longer)), list(refine(view, short[1], longer))
    assert len(at_once) == 5 and len(gone_on) == 3
    assert torch.equal(at_once[-1].assignments.matrices, gone_on[-1].assignments.matrices)
    assert [len(list(refine(view, at_once[number], settings))) for number in (1, 2)] == [1, 1]
