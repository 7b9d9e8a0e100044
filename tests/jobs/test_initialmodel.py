"""InitialModel: from particle stacks on disk to a map near the truth, stopped and gone on, with bad images among them."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import make_job, run_job
from refine.particles_for_tests import simulated
from refine.test_initial_model import BOX, PIXEL, truth
from verglas.errors import InputError, JobAborted
from verglas.io.mrc import read_map, write_stack
from verglas.io.star import read_star
from verglas.jobs.declaration import Job
from verglas.jobs.initialmodel import JOB
from verglas.particles import read_particles, write_particles
from verglas.refine.initial_model import InitialModel, State
from verglas.refine.relion_tables import NO_RESOLUTION
from verglas.scores.maps import map_fsc_to_truth
from verglas.volume.atoms import density_from_atoms
from verglas.volume.filters import lowpass
from verglas.volume.fsc import fsc, resolution_shell
from verglas.volume.masks import soft_sphere
from verglas.volume.symmetry import normaliser, symmetrise_map, symmetry_misfit, symmetry_operators

PARAMS = {
    "mask_diameter": 120,
    "symmetry": "D2",
    "starts": 2,
    "iterations": 12,
    "sgd_ini_subset": 80,
    "sgd_fin_subset": 160,
    "sgd_fin_resol": 21.0,
    "angle": 15.0,
    "offset_step": 7.0,
    "write_every": 4,
    "threads": 1,
}
LAST_OF_START, LAST = "run_it012", "run_it016"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 240 particles, three of them poison: constant, not a number, far too strong."""
    folder = tmp_path_factory.mktemp("project")
    particles, images, _, _ = simulated(truth(), PIXEL, 240)
    stack = images.read(np.arange(240)).numpy()
    stack[10], stack[20, 3, 3], stack[30] = 0.5, np.nan, 1000 * stack[30]
    write_stack(folder / "particles.mrcs", stack, PIXEL)
    names = [f"{i + 1:06d}@{folder}/particles.mrcs" for i in range(240)]
    write_particles(folder / "particles.star", particles.with_columns(image_name=names))
    return folder


@pytest.fixture(scope="module")
def done(project: Path) -> tuple[Path, object]:
    out = project / "undisturbed"
    return out, run_job(JOB, PARAMS, {"particles": project / "particles.star"}, out)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the picture that takes longer than all the rest, but for the run of the whole module."""
    monkeypatch.setattr("verglas.pictures.maps.draw_surface", lambda *_, **__: None)


def test_map_is_near_the_truth_and_the_checks_pass(done: tuple) -> None:
    out, _ = done
    density, pixel_size = read_map(out / "initial_model.mrc")
    assert pixel_size == PIXEL
    score = map_fsc_to_truth(torch.from_numpy(density), truth(), PIXEL, radius=60.0, rotations=normaliser("D2"))
    assert score.resolution < 26.0
    params = JOB.params(**PARAMS)
    metrics = JOB.measure(out, params)
    for check in JOB.checks(params):
        value = metrics[check.metric]
        assert (check.low is None or value >= check.low) and (check.high is None or value <= check.high), check
    assert metrics["items_out"] == 237
    assert f"starts agree to {metrics['agreement']:.0f} Å" in JOB.describe(metrics)
    assert {path.name for path in out.glob("*.png")} == {f"picture_{name}.png" for name in ("starts", "slices", "surface")}


def test_poisoned_images_are_named_and_counted(done: tuple) -> None:
    _, items = done
    assert (items.total, items.done, items.failed) == (240, 237, 3)
    reasons = {problem.item[:6]: problem.reason for problem in items.problems}
    assert "constant" in reasons["000011"] and "not numbers" in reasons["000021"] and "strong" in reasons["000031"]


def same_map(one: Path, two: Path) -> bool:
    return np.array_equal(*(read_map(folder / "initial_model.mrc")[0] for folder in (one, two)))


def test_a_stopped_run_goes_on_to_the_same_bits(project: Path, done: tuple) -> None:
    out = project / "stopped"
    inputs = {"particles": project / "particles.star"}
    with pytest.raises(JobAborted):
        JOB.run(make_job(JOB, PARAMS, inputs, out, stop_after=6))
    assert sorted(path.name for path in (out / "start1").iterdir()) == ["run_it004_class001.mrc", "state.pt"]
    assert not (out / "initial_model.mrc").exists()
    job = make_job(JOB, PARAMS, inputs, out)
    JOB.run(job)
    assert "start 1: going on after iteration 6" in job.said
    assert same_map(out, done[0])


def test_a_run_that_was_stopped_after_its_starts_goes_on_from_there(project: Path, done: tuple) -> None:
    out, inputs = project / "stopped_late", {"particles": project / "particles.star"}
    shutil.copytree(done[0] / "start1", out / "start1")
    shutil.copytree(done[0] / "start2", out / "start2")
    with pytest.raises(JobAborted):
        JOB.run(make_job(JOB, PARAMS, inputs, out, stop_after=2))
    assert (out / "run_it014_optimiser.star").exists() and not (out / "run_it015_optimiser.star").exists()
    job = make_job(JOB, PARAMS, inputs, out)
    JOB.run(job)
    assert "going on after iteration 14" in job.said
    assert same_map(out, done[0])


def test_iterations_after_another_start_are_not_gone_on_with(project: Path, done: tuple) -> None:
    out = project / "longer"
    shutil.copytree(done[0], out)
    job = make_job(JOB, PARAMS | {"random_seed": 7, "starts": 1}, {"particles": project / "particles.star"}, out)
    JOB.run(job)
    assert not any("going on" in text for text in job.said)
    fresh = project / "fresh"
    run_job(JOB, PARAMS | {"random_seed": 7, "starts": 1}, {"particles": project / "particles.star"}, fresh)
    assert same_map(out, fresh)


def test_two_classes_are_refined_and_go_on(project: Path) -> None:
    out, params = project / "classes", PARAMS | {"starts": 1, "classes": 2, "refine_iterations": 2}
    inputs = {"particles": project / "particles.star"}
    with pytest.raises(JobAborted):
        JOB.run(make_job(JOB, params, inputs, out, stop_after=13))
    job = make_job(JOB, params, inputs, out)
    assert JOB.run(job).done == 237 and "going on after iteration 13" in job.said
    found = read_particles(out / "run_it014_data.star")
    assert set(found.column("class_number")) <= {1, 2} and (out / "run_it014_class002.mrc").exists()
    assert JOB.measure(out, JOB.params(**params))["shape_kept"] < 42.0


def test_the_iterations_after_the_starts_add_detail(done: tuple) -> None:
    def resolution(path: Path) -> float:
        density = torch.from_numpy(read_map(path)[0])
        return map_fsc_to_truth(density, truth(), PIXEL, radius=60.0, rotations=normaliser("D2")).resolution

    starts = [resolution(done[0] / f"start{number}/{LAST_OF_START}_class001.mrc") for number in (1, 2)]
    assert resolution(done[0] / "initial_model.mrc") < 16.0 < min(starts)  # Nyquist's is 14 Å


@pytest.mark.parametrize("good", [1, 2])
def test_the_likelier_start_is_kept_whichever_it_is(good: int, project: Path, done: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """One start ends in a map that was found, one in a lump of the same size and strength: the first is gone on with, and said to be."""
    found = torch.from_numpy(read_map(done[0] / f"start1/{LAST_OF_START}_class001.mrc")[0])
    noise = symmetrise_map(lowpass(torch.randn(found.shape, generator=torch.Generator().manual_seed(1)), PIXEL, 30.0), "D2")
    lump = noise * soft_sphere(BOX, 40.0 / PIXEL, 3.0)  # which has nothing in common with the other
    lump = lump * found.norm() / lump.norm()

    def ended(job: Job, model: InitialModel, state: State, last: int, name: str) -> State:
        return State(last, (found if name == f"start {good}" else lump)[None], state.shares)

    monkeypatch.setattr("verglas.jobs.initialmodel_starts._iterated", ended)
    for name in ("draw_maps_in_a_row", "draw_slices"):
        monkeypatch.setattr(f"verglas.pictures.maps.{name}", lambda *_, **__: None)
    out, params = project / f"good{good}", PARAMS | {"refine_iterations": 1}
    run_job(JOB, params, {"particles": project / "particles.star"}, out)
    density, metrics = torch.from_numpy(read_map(out / "initial_model.mrc")[0]), JOB.measure(out, JOB.params(**params))
    to_found, to_lump = (resolution_shell(fsc(density, each), 0.5) for each in (found, lump))
    assert to_found >= 6 > to_lump
    gains = read_star(out / "starts.star")["starts"]["gain"].astype(float)
    assert gains.argmax() == good - 1 and metrics["log_likelihood"] == gains.max() > gains.min()
    assert metrics["shape_kept"] == PARAMS["sgd_fin_resol"] and metrics["agreement"] == NO_RESOLUTION


def test_states_of_other_settings_are_not_taken(project: Path, done: tuple) -> None:
    out = project / "others"
    shutil.copytree(done[0] / "start1", out / "start1")
    inputs = {"particles": project / "particles.star"}
    for change in ({"random_seed": 5}, {"sgd_fin_resol": 22.0}, {"mask_diameter": 118}, {"do_ctf_correction": False}):
        job = make_job(JOB, PARAMS | {"starts": 1} | change, inputs, out, stop_after=0)
        with pytest.raises(JobAborted):
            JOB.run(job)
        assert not any("going on" in text for text in job.said)


def test_gentle_clean_leaves_the_last_iteration_and_what_is_gone_on_from(done: tuple) -> None:
    out, _ = done
    cleaned = list(JOB.clean(out))
    assert not any(path.name == "state.pt" for path in cleaned)
    assert cleaned and all(path.parent.name.startswith("start") or "run_it013" <= path.name < LAST for path in cleaned)
    assert not any(path.name.startswith(LAST) for path in cleaned)


@pytest.mark.relion
def test_relion_reconstructs_our_map_from_our_poses(project: Path, done: tuple) -> None:
    """`relion_reconstruct` from the written particles gives the map to its resolution: angles, origins and signs are RELION's."""
    out, _ = done
    command = f"relion_reconstruct --i {out}/{LAST}_data.star --o {project}/relion.mrc --ctf --sym D2"
    subprocess.run(command.split(), cwd=project, check=True, capture_output=True)
    theirs, ours = (torch.from_numpy(read_map(path)[0]) for path in (project / "relion.mrc", out / "initial_model.mrc"))
    assert resolution_shell(fsc(theirs, ours), 0.5) >= round(BOX * PIXEL / 28)
    assert len(read_particles(out / f"{LAST}_data.star")) == 237


def test_symmetry_found_afterwards_and_stopped_before_it_was_settled(project: Path) -> None:
    params, inputs = PARAMS | {"do_run_C1": True, "starts": 1, "angle": 18.0}, {"particles": project / "particles.star"}
    out, again = project / "afterwards", project / "afterwards_stopped"
    run_job(JOB, params, inputs, out)
    density = torch.from_numpy(read_map(out / "initial_model.mrc")[0])
    assert symmetry_misfit(density, "D2") < 0.05
    score = map_fsc_to_truth(density, truth(), PIXEL, radius=60.0, rotations=normaliser("D2"))
    assert score.resolution < 35.0
    metrics = JOB.measure(out, JOB.params(**params))
    assert JOB.describe(metrics).endswith("one start, compared with no other")
    assert not any(check.metric not in metrics for check in JOB.checks(JOB.params(**params)))
    shutil.copytree(out / "start1", again / "start1")
    with pytest.raises(JobAborted):
        JOB.run(make_job(JOB, params, inputs, again, stop_after=2))
    job = make_job(JOB, params, inputs, again)
    JOB.run(job)
    assert "symmetrised: going on after iteration 14" in job.said
    assert same_map(again, out)


def test_a_cyclic_group(tmp_path: Path) -> None:
    """Three chains about the z axis, found from nothing, wherever on the axis the map comes to lie."""
    density = three_chains()
    particles, images, _, _ = simulated(density, PIXEL, 200, snr=0.5)
    write_stack(tmp_path / "particles.mrcs", images.read(np.arange(200)).numpy(), PIXEL)
    names = [f"{i + 1:06d}@{tmp_path}/particles.mrcs" for i in range(200)]
    write_particles(tmp_path / "particles.star", particles.with_columns(image_name=names))
    params = PARAMS | {"symmetry": "C3", "starts": 1, "refine_iterations": 1, "angle": 18.0}
    assert run_job(JOB, params, {"particles": tmp_path / "particles.star"}, tmp_path / "out").done == 200
    found = torch.from_numpy(read_map(tmp_path / "out/initial_model.mrc")[0])
    assert symmetry_misfit(found, "C3") < 0.05
    assert map_fsc_to_truth(found, density, PIXEL, radius=60.0).resolution < 30.0


def three_chains() -> torch.Tensor:
    """A random chain of atoms beside the z axis and its copies about it, [N, N, N]."""
    one = torch.randn(300, 3, generator=torch.Generator().manual_seed(4)).double().cumsum(0)
    one = 14.0 * (one - one.mean(0)) / one.std() + torch.tensor([22.0, 0.0, 0.0])
    place = torch.cat([one @ operator.T for operator in symmetry_operators("C3")])
    return density_from_atoms(place - place.mean(0), torch.full((len(place),), 7.0), BOX, PIXEL, 200.0)


def test_faults_are_found_before_work(project: Path, tmp_path: Path) -> None:
    inputs = {"particles": project / "particles.star"}
    for change, message in (
        ({"symmetry": "D2x"}, "point group"),
        ({"mask_diameter": 300}, "--mask-diameter"),
        ({"sgd_fin_resol": 50}, "not finer"),
        ({"symmetry": "C1", "do_run_C1": True}, "no symmetry"),
        ({"classes": 100}, "240 particles, 300 are needed"),
    ):
        with pytest.raises(InputError, match=message):
            JOB.validate(make_job(JOB, PARAMS | change, inputs, tmp_path))
