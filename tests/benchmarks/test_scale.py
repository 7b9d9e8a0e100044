"""The engine at any size: particles that depend on seed and index alone, runs in pieces, phases that add up, scores of the truth."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from scale.__main__ import run
from scale.accuracy import score
from scale.growth import grown, growth_table
from scale.kept import in_files, in_memory
from scale.options import identity, options
from scale.phases import WRAPPED, Phases
from scale.rendered import NOISE_CHUNK, RenderedParticles, drawn
from scale.task import task_of
from scale.totals import Totals, load_totals, table
from scale.truth import true_maps
from verglas.errors import InputError
from verglas.particles import ArrayImages
from verglas.refine.assignments import from_particles
from verglas.refine.state import load_state

BOX, PIXEL = 32, 286.7 / 32


def given(*words: str) -> argparse.Namespace:
    return options([*words, "--box", str(BOX), "--device", "cpu", "--threads", "1"], "")


@pytest.fixture(scope="module")
def source() -> RenderedParticles:
    return RenderedParticles(true_maps(2, "D2", BOX, PIXEL), PIXEL, drawn(600, BOX, PIXEL, classes=2), seed=1)


def test_an_image_depends_on_seed_and_index_alone(source: RenderedParticles) -> None:
    whole = source.read(np.arange(600))
    assert torch.allclose(source.read(np.array([3, NOISE_CHUNK + 1, 2])), whole[[3, NOISE_CHUNK + 1, 2]], atol=1e-5)
    assert whole[:, 0].std() == pytest.approx(1.0, abs=0.02)  # at the edge there is nothing but noise
    assert not torch.equal(whole[0], whole[NOISE_CHUNK])


def test_large_boxes_hold_the_map_of_the_largest_that_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    small = true_maps(1, "C1", 32, 8.96)
    monkeypatch.setattr("scale.truth._LARGEST", 32)
    large = true_maps(1, "C1", 64, 4.48)
    assert large.shape == (1, 64, 64, 64)
    assert torch.allclose(large[:, ::2, ::2, ::2], small, atol=1e-5 * float(small.abs().max()))


def test_the_same_particles_in_any_box() -> None:
    small, large = drawn(50, 24, 12.0, classes=3), drawn(50, 48, 6.0, classes=3)
    assert np.array_equal(small.angles(), large.angles()) and np.array_equal(small.origins(), large.origins())
    for column in ("class_number", "defocus_u", "micrograph_name"):
        assert np.array_equal(small.column(column), large.column(column))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_kept_images_are_those_that_are_rendered(source: RenderedParticles, tmp_path: Path, dtype: str) -> None:
    rows = np.array([599, 0, 401, 400, 7])
    rendered = source.read(np.arange(600))[rows]
    files = in_files(source, drawn(600, BOX, PIXEL, classes=2), tmp_path, dtype)
    assert [path.stat().st_size for path in sorted(tmp_path.glob("*.mrcs"))] == [
        1024 + count * BOX**2 * np.dtype(dtype).itemsize for count in (400, 200)
    ]
    assert torch.allclose(files.read(rows).float(), rendered, atol=1e-5 if dtype == "float32" else 5e-3)
    memory = in_memory(source).read(rows)
    assert memory.dtype == torch.float16 and torch.allclose(memory.float(), rendered, atol=5e-3)


@pytest.mark.parametrize("words", [("Class2D", "--classes", "3"), ("Class3D", "--classes", "2", "--states", "2"), ("Refine3D",)])
def test_a_run_in_pieces_is_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    monkeypatch.setattr("scale.accuracy.score", lambda *_: {})
    common = (*words, "--particles", "120", "--iterations", "3", "--limit", "30", "--images", "memory")
    whole, pieces = given(*common, "--stop-after", "2", "--state", str(tmp_path / "a")), str(tmp_path / "b")
    one = run(whole)
    run(given(*common, "--stop-after", "1", "--state", pieces))
    two = run(given(*common, "--stop-after", "2", "--state", pieces))
    assert two.commands == 2 and len(two.rows) == 2 and two.before.keys() == one.before.keys()
    assert [row["resolution"] for row in two.rows] == [row["resolution"] for row in one.rows]
    states = [load_state(tmp_path / name) for name in ("a", "b")]
    for of_one, of_two in zip(states[0].models, states[1].models):
        assert torch.equal(of_one.references, of_two.references)
    assert torch.equal(states[0].assignments.matrices, states[1].assignments.matrices)
    known = sum(two.phases.values())
    assert 0.5 * two.iterations < known <= two.iterations
    assert "2 iterations in 2 commands" in table(two, "CPU", {"float32": 0.1})


def test_a_run_does_not_go_on_with_other_options(tmp_path: Path) -> None:
    words = ("Refine3D", "--particles", "60", "--limit", "40", "--stop-after", "1", "--state", str(tmp_path / "state"))
    run(given(*words))
    with pytest.raises(InputError, match="symmetry D2, not C1"):
        run(given(*words, "--symmetry", "C1"))
    assert load_totals(tmp_path / "state.json", identity(given(*words))).commands == 1


def test_time_that_is_up_stops_between_iterations(tmp_path: Path) -> None:
    words = ("Refine3D", "--particles", "60", "--limit", "40", "--state", str(tmp_path / "state"))
    assert not run(given(*words, "--seconds", "0.01")).rows
    assert load_state(tmp_path / "state").iteration == 0


def test_another_box_starts_from_the_poses_of_the_first(tmp_path: Path) -> None:
    words = ("Refine3D", "--particles", "150", "--limit", "25")
    run(given(*words, "--stop-after", "2", "--state", str(tmp_path / "first")))
    again = options([*words, "--box", "48", "--device", "cpu", "--start-from", str(tmp_path / "first"), "--stop-after", "1"], "")
    task = task_of(again, torch.device("cpu"))
    seen = task.observations()
    first, state = load_state(tmp_path / "first"), task.start(seen)
    for name in ("matrices", "half", "origins"):
        assert torch.equal(getattr(state.assignments, name), getattr(first.assignments, name))
    assert state.sampling.local_sigma == 60 / 2**state.sampling.order and state.sampling.order >= 4
    assert state.sampling.offset_step == pytest.approx(1.5 * first.sampling.offset_step)
    assert len(state.models) == 2 and not torch.equal(state.models[0].references, state.models[1].references)


def test_scores_know_the_truth_and_errors() -> None:
    task = task_of(given("Class3D", "--particles", "200", "--states", "2", "--classes", "2"), torch.device("cpu"))
    state = task.start(task.observations())
    state.history = [{"compared_to": 20.0}]
    state.assignments = from_particles(task.particles, 1)
    true = task.particles.column("class_number").astype(np.int64)
    state.assignments.classes = torch.from_numpy(2 - true)
    state.models[0].references = task.maps.flip(0)
    perfect = score(state, task.maps, task.particles, "D2")
    assert perfect["purity"] == 100 and perfect["pose_90"] < 0.1 and perfect["shift_90"] < 1e-3
    assert perfect["state1_fsc_area"] > 0.95 and perfect["state2_fsc_area"] > 0.95
    state.history = [{"compared_to": 30.0}]  # shell 9.6: what is beyond 13 of 16 shells is not looked at
    assert score(state, task.maps, task.particles, "D2")["state1_fsc_area"] == pytest.approx(13 / 16, abs=0.01)
    state.models[0].references = task.maps
    assert score(state, task.maps, task.particles, "D2")["state1_fsc_area"] < perfect["state1_fsc_area"]


def test_phases_wrap_what_there_is_and_leave_no_trace() -> None:
    from importlib import import_module

    def functions() -> list[object]:
        found = []
        for each in WRAPPED:
            owner = import_module(each.module)
            for part in each.path.split("."):
                owner = getattr(owner, part)
            found.append(owner)
        return found

    before = functions()
    with Phases(torch.device("cpu")) as phases:
        assert all(one is not other for one, other in zip(before, functions()))
        ArrayImages(torch.zeros(3, 4, 4), 1.0).read(np.array([0, 2]))
    assert functions() == before
    assert phases.amounts == {"read": 2 * 16 * 4.0} and set(phases.seconds) == {"read"} and not phases.beside


def test_a_bare_run_takes_the_time_of_rendering_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scale.accuracy.score", lambda *_: {})
    totals = run(given("Refine3D", "--particles", "60", "--limit", "40", "--stop-after", "1", "--bare"))
    assert set(totals.phases) == {"render"} and totals.job < totals.iterations + sum(totals.before.values())


def test_growth_takes_quarters_and_keeps_the_field_of_view() -> None:
    sizes = grown(given("Refine3D", "--grow", "box"))
    assert [each.box for each in sizes] == [8, 16, 32] and {round(each.box * each.pixel_size, 3) for each in sizes} == {286.7}
    totals = [Totals(rows=[{"seconds": each.box / 2.0}] * 2, phases={"fine": each.box / 2.0}) for each in sizes]
    lines = growth_table("box", sizes, totals).splitlines()
    assert next(line for line in lines if line.startswith("all")).split() == ["all", "4.000", "8.000", "16.000", "2.00"]
