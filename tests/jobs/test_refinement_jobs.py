"""Class2D, Class3D and Refine3D as jobs: files, checks, faults, going on after a kill, RELION."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import make_job, run_job
from refine.sets import DIAMETER, particles
from verglas.errors import InputError
from verglas.io.mrc import read_map, read_stack, write_map, write_stack
from verglas.io.star import read_star, write_star
from verglas.jobs import class2d, class3d, refine3d, refinement
from verglas.jobs.declaration import JobType
from verglas.particles import ParticleSet, read_particles, write_particles
from verglas.particles.tables import OpticsGroups
from verglas.refine import comparison_native
from verglas.scores.classes import class_purity
from verglas.simulate.particles import noise_free_images
from verglas.simulate.potential import Projector
from verglas.volume.fsc import fsc
from verglas.volume.masks import soft_sphere

BOX, PIXEL, COUNT = 32, 6.0, 120
CLASS2D = {"mask_diameter": DIAMETER, "classes": 3, "iterations": 4, "threads": 1}
CLASS3D = {
    "mask_diameter": DIAMETER,
    "classes": 2,
    "iterations": 3,
    "symmetry": "D2",
    "ini_high": 40.0,
    "limit_resolution": 20.0,
    "threads": 1,
}
REFINE3D = {"mask_diameter": DIAMETER, "symmetry": "D2", "ini_high": 40.0, "local_search_order": 3, "iterations": 4, "threads": 1}


def write_set(folder: Path, rows: np.ndarray | None = None, images: torch.Tensor | None = None, snr: float = 0.2) -> ParticleSet:
    """Stack, particles without poses, and the true map, in `folder`, which becomes the working directory."""
    stack, table, truth = particles(COUNT, BOX, PIXEL, snr, 2)
    os.chdir(folder)
    write_stack(folder / "images.mrcs", (stack if images is None else images).numpy(), PIXEL)
    write_map(folder / "truth.mrc", truth.numpy(), PIXEL)
    bare = table.with_columns(rot=None, tilt=None, psi=None, origin_x=None, origin_y=None, class_number=None)
    write_particles(folder / "particles.star", bare if rows is None else bare.subset(rows))
    return bare


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path)
    return tmp_path


def inputs(**more: object) -> dict[str, object]:
    return {"particles": Path("particles.star"), "reference": Path("truth.mrc")} | more


def judged(declared: JobType, params: dict[str, object], out: Path) -> dict[str, object]:
    """The metrics, after each check was found to hold."""
    given = declared.params(**params)
    metrics = declared.measure(out, given)
    for check in declared.checks(given):
        value = metrics[check.metric]
        assert (check.low is None or value >= check.low) and (check.high is None or value <= check.high), (check, value)  # type: ignore[operator]
    return metrics


def test_class2d(project: Path) -> None:
    items = run_job(class2d.JOB, CLASS2D, inputs(), Path("job"))
    assert (items.total, items.done) == (COUNT, COUNT)
    judged(class2d.JOB, CLASS2D, Path("job"))
    found = read_particles("job/run_it004_data.star")
    assert found.table["image_name"].tolist() == read_particles("particles.star").table["image_name"].tolist()
    model = read_star("job/run_it004_model.star")
    assert {"model_general", "model_classes", "model_class_3", "model_groups", "model_group_1"} <= set(model)
    averages = [name.split("@") for name in model["model_classes"]["rlnReferenceImage"]]
    assert [int(number) for number, _ in averages] == [1, 2, 3] and read_stack(averages[0][1]).shape == (3, BOX, BOX)
    assert all(
        Path(f"job/run_it{i:03d}_{kind}").exists()
        for i in (1, 4)
        for kind in ("data.star", "optimiser.star", "sampling.star", "classes.mrcs")
    )
    cleaned = {path.name for path in class2d.clean(Path("job"))}
    assert "run_it001_data.star" in cleaned and not any(name.startswith("run_it004") for name in cleaned)


def test_class2d_without_alignment_keeps_poses_and_tells_two_views_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, table, truth = particles(COUNT, BOX, PIXEL, 0.2, 2)
    table = table.with_columns(rot=np.arange(COUNT) % 2 * 70.0, tilt=np.arange(COUNT) % 2 * 60.0)
    signal = noise_free_images(table, [Projector(truth)])
    noise = torch.randn(signal.shape, generator=torch.Generator().manual_seed(1)) * float(signal.std()) / 0.4
    write_stack(tmp_path / "images.mrcs", (signal + noise).numpy(), PIXEL)
    write_particles(tmp_path / "particles.star", table.with_columns(class_number=None))
    run_job(class2d.JOB, CLASS2D | {"classes": 2, "iterations": 8, "skip_align": True}, inputs(), Path("job"))
    found = read_particles("job/run_it008_data.star")
    assert class_purity(found.column("class_number"), np.arange(COUNT) % 2).purity > 0.95
    np.testing.assert_allclose(found.origins(), table.origins(), atol=1e-4)
    turned = (found.column("psi") - table.column("psi") + 180) % 360 - 180
    np.testing.assert_allclose(turned, 0, atol=1e-3)
    upright = table.subset(np.arange(2)).with_columns(psi=0.0, origin_x=0.0, origin_y=0.0, defocus_u=100.0, defocus_v=100.0)
    views = noise_free_images(upright, [Projector(truth)]).flatten(1).numpy()
    averages = read_stack("job/run_it008_classes.mrcs").reshape(2, -1)
    assert np.abs(np.corrcoef(views, averages)[:2, 2:]).max(axis=1).min() > 0.8


def test_class3d(project: Path) -> None:
    items = run_job(class3d.JOB, CLASS3D, inputs(reference=[Path("truth.mrc")]), Path("job"))
    assert items.done == COUNT
    metrics = judged(class3d.JOB, CLASS3D, Path("job"))
    assert metrics["best_resolution"] >= 19.0  # type: ignore[operator]
    assert read_map("job/run_it003_class002.mrc")[1] == pytest.approx(PIXEL)
    assert Path("job/run_it003_class001_angdist.bild").read_text().startswith(".color")


def test_refine3d(project: Path) -> None:
    job = make_job(refine3d.JOB, REFINE3D, inputs(), Path("job"))
    refine3d.JOB.validate(job)
    assert refine3d.JOB.run(job).done == COUNT
    assert job.record["coarse_precision"] in ("bf16", "float32") and job.record["symmetry_misfit"] < 0.05
    assert job.record["slices"] == (f"torch ({why})" if (why := comparison_native.why_not()) else "compiled C++")
    metrics = judged(refine3d.JOB, REFINE3D, Path("job"))
    assert metrics["resolution"] < 16.0  # type: ignore[operator]
    assert all(Path("job", spec.path).exists() for spec in refine3d.JOB.outputs(job.params))
    half = read_star("job/run_it002_half1_model.star")["model_class_1"]
    ssnr, fsc = (pd.to_numeric(half[label]).to_numpy() for label in ("rlnSsnrMap", "rlnGoldStandardFsc"))
    inside = (fsc > 0.01) & (fsc < 0.99)
    assert np.allclose(ssnr[inside], fsc[inside] / (1 - fsc[inside]), rtol=1e-3)  # RELION.md §5
    joined = read_star("job/run_model.star")["model_class_1"]
    ssnr, fsc = (pd.to_numeric(joined[label]).to_numpy() for label in ("rlnSsnrMap", "rlnGoldStandardFsc"))
    inside = (fsc > 0.01) & (fsc < 0.99)
    together = np.sqrt(2 * fsc[inside] / (1 + fsc[inside]))
    assert np.allclose(ssnr[inside], together / (1 - together), rtol=1e-3)
    assert set(read_particles("job/run_data.star").column("half")) == {1, 2}
    shorter = REFINE3D | {"iterations": 2}
    run_job(refine3d.JOB, shorter, inputs(), Path("job"))  # what a longer run left is none of it
    assert judged(refine3d.JOB, shorter, Path("job"))["iterations"] == 3 < metrics["iterations"]
    assert Path("job/run_it002_optimiser.star").exists() and not list(Path("job").glob("run_it003*"))


def test_refine3d_judged_inside_a_mask_with_other_choices(project: Path) -> None:
    """The options reach the engine and RELION's tables: an FSC corrected for the mask, maps padded once, CTFs left alone at first."""
    sphere = soft_sphere(BOX, DIAMETER / PIXEL / 2, 3.0)
    write_map(project / "mask.mrc", sphere.numpy(), PIXEL)
    chosen = REFINE3D | {"solvent_correct_fsc": True, "pad": 1, "ctf_intact_first_peak": True}
    run_job(refine3d.JOB, chosen, inputs(mask=Path("mask.mrc")), Path("job"))
    judged(refine3d.JOB, chosen, Path("job"))
    optimiser = read_star("job/run_it002_optimiser.star")["optimiser_general"]
    assert optimiser["rlnSolventMaskName"] == "mask.mrc"
    assert [int(optimiser[f"rlnDo{what}"]) for what in ("SolventFscCorrection", "IgnoreCtfUntilFirstPeak")] == [1, 1]
    model = read_star("job/run_model.star")
    assert float(model["model_general"]["rlnPaddingFactor"]) == 1
    halves = [torch.from_numpy(read_map(f"job/run_half{half}_class001_unfil.mrc")[0]) for half in (1, 2)]
    found = pd.to_numeric(model["model_class_1"]["rlnGoldStandardFsc"])[8:15]
    assert found.mean() > float(fsc(*halves)[8:15].mean()) + 0.02
    assert not read_map("job/run_class001.mrc")[0][sphere.numpy() == 0].any()


def test_a_mask_of_nothing_is_refused(project: Path) -> None:
    write_map(project / "mask.mrc", np.zeros((BOX,) * 3, np.float32), PIXEL)
    with pytest.raises(InputError, match=r"mask\.mrc: holds values from 0 to 0"):
        run_job(refine3d.JOB, REFINE3D, inputs(mask=Path("mask.mrc")), Path("job"))


def test_the_order_of_rows_does_not_matter(project: Path) -> None:
    first = run_job(class2d.JOB, CLASS2D, inputs(), Path("one"))
    write_set(project, np.random.default_rng(3).permutation(COUNT))
    second = run_job(class2d.JOB, CLASS2D, inputs(), Path("two"))
    assert first.done == second.done
    assert np.allclose(read_stack("one/run_it004_classes.mrcs"), read_stack("two/run_it004_classes.mrcs"), atol=1e-5)
    one, two = (read_particles(f"{name}/run_it004_data.star").table.set_index("image_name") for name in ("one", "two"))
    assert (one["class_number"] == two["class_number"][one.index]).all()


def test_particles_that_poison_are_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 17."""
    monkeypatch.chdir(tmp_path)
    images = particles(COUNT, BOX, PIXEL, 0.2, 2)[0].clone()
    images[3], images[7, 4, 4], images[9] = 2.0, torch.nan, images[9] * 1000
    write_set(tmp_path, images=images)
    job = make_job(class2d.JOB, CLASS2D, inputs(), Path("job"))
    items = class2d.JOB.run(job)
    assert (items.total, items.done, items.failed) == (COUNT, COUNT - 3, 3)
    assert [problem.item for problem in items.problems] == ["000004@images.mrcs", "000008@images.mrcs", "000010@images.mrcs"]
    assert [word for word, problem in zip(("constant", "not numbers", "times"), items.problems) if word in problem.reason] == [
        "constant",
        "not numbers",
        "times",
    ]
    assert "3 of 120 particles are left out" in job.warned[0]
    assert np.isfinite(read_stack("job/run_it004_classes.mrcs")).all()
    assert len(read_particles("job/run_it004_data.star")) == COUNT - 3


@pytest.mark.parametrize("change,match", [({"mask_diameter": 1.2 * BOX * PIXEL}, "does not fit a box"), ({"classes": 100}, "are needed")])
def test_impossible_parameters_are_refused_before_work(project: Path, change: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        class2d.JOB.validate(make_job(class2d.JOB, CLASS2D | change, inputs(), Path("job")))


def test_a_group_nobody_knows(project: Path) -> None:
    with pytest.raises(InputError, match="D2x"):
        refine3d.JOB.validate(make_job(refine3d.JOB, REFINE3D | {"symmetry": "D2x"}, inputs(), Path("job")))


def test_local_searches_need_angles(project: Path) -> None:
    with pytest.raises(InputError, match=r"has no angles \(rot, tilt, psi\) to search about from order 3 on"):
        refine3d.JOB.validate(make_job(refine3d.JOB, REFINE3D | {"healpix_order": 3}, inputs(), Path("job")))
    for own in ({"local_search_sigma": 5.0}, {"skip_align": True}):
        with pytest.raises(InputError, match="has no angles"):
            class3d.JOB.validate(make_job(class3d.JOB, CLASS3D | own, inputs(reference=[Path("truth.mrc")]), Path("job")))
    with pytest.raises(InputError, match="no angles in the plane"):
        class2d.JOB.validate(make_job(class2d.JOB, CLASS2D | {"skip_align": True}, inputs(), Path("job")))


def test_no_ctf_is_refused_unless_it_is_not_wanted(project: Path) -> None:
    table = read_particles("particles.star")
    write_particles("particles.star", table.with_columns(defocus_u=None, defocus_v=None))
    with pytest.raises(InputError, match="defocus_u"):
        class2d.JOB.validate(make_job(class2d.JOB, CLASS2D, inputs(), Path("job")))
    class2d.JOB.validate(make_job(class2d.JOB, CLASS2D | {"do_ctf_correction": False}, inputs(), Path("job")))


def test_mixed_boxes_are_refused(project: Path) -> None:
    """CASES 8."""
    table = read_particles("particles.star")
    mixed = OpticsGroups(table.optics.table.assign(box_size=[BOX, 48], pixel_size=[PIXEL, 4.0]))
    write_particles("particles.star", ParticleSet(mixed, table.table))
    with pytest.raises(InputError, match="48 px"):
        refine3d.JOB.validate(make_job(refine3d.JOB, REFINE3D, inputs(), Path("job")))


def test_a_reference_off_its_axes_is_said_and_turned(project: Path) -> None:
    """Every one of them; the map that is left beside the result is on its axes, and a map of another symmetry is told as that."""
    from verglas.volume.fsc import fsc
    from verglas.volume.resample import rotate_map
    from verglas.volume.rotations import euler_to_matrix
    from verglas.volume.symmetry import symmetry_misfit
    from volume.maps_for_tests import chain

    truth = torch.from_numpy(read_map("truth.mrc")[0])
    write_map("turned.mrc", rotate_map(truth, euler_to_matrix(torch.tensor([20.0, 30.0, 10.0]))).numpy(), PIXEL)
    job = make_job(refine3d.JOB, REFINE3D | {"iterations": 2}, inputs(reference=Path("turned.mrc")), Path("job"))
    refine3d.JOB.run(job)
    [warning] = [warning for warning in job.warned if "not symmetric under D2" in warning]
    assert "begin again with job/reference1_on_axes.mrc" in warning
    mended = torch.from_numpy(read_map("job/reference1_on_axes.mrc")[0])
    assert symmetry_misfit(mended, "D2", 5) < 0.1
    assert (
        run_job(refine3d.JOB, REFINE3D | {"iterations": 2}, inputs(reference=Path("job/reference1_on_axes.mrc")), Path("again")).failed == 0
    )
    assert (fsc(torch.from_numpy(read_map("again/run_class001.mrc")[0]), mended)[1:6] > 0.9).all()

    write_map("lopsided.mrc", chain(BOX, PIXEL, seed=2, radius=50.0).numpy(), PIXEL)
    both = inputs(reference=[Path("truth.mrc"), Path("lopsided.mrc")])
    job = make_job(class3d.JOB, CLASS3D | {"iterations": 1}, both, Path("two"))
    class3d.JOB.run(job)
    [warning] = [warning for warning in job.warned if "not symmetric under D2" in warning]
    assert warning.startswith("reference 2 ") and "is that its symmetry?" in warning


def test_references_named_by_a_table(project: Path) -> None:
    """As RELION takes them, one a class; a table without maps, or with one that is not there, is said before work."""
    write_map("other.mrc", np.ascontiguousarray(read_map("truth.mrc")[0][::-1]), PIXEL)
    write_star("references.star", {"": pd.DataFrame({"rlnReferenceImage": ["truth.mrc", "other.mrc"]})})
    given = {"particles": Path("particles.star")}
    by_table = run_job(class3d.JOB, CLASS3D | {"iterations": 1}, given | {"reference": [Path("references.star")]}, Path("by_table"))
    named = run_job(class3d.JOB, CLASS3D | {"iterations": 1}, given | {"reference": [Path("truth.mrc"), Path("other.mrc")]}, Path("named"))
    assert by_table.done == named.done == COUNT
    for number in (1, 2):
        maps = [read_map(f"{folder}/run_it001_class{number:03d}.mrc")[0] for folder in ("by_table", "named")]
        assert np.array_equal(*maps)
    write_star("wrong.star", {"": pd.DataFrame({"rlnReferenceImage": ["truth.mrc", "nowhere.mrc"]})})
    for table, match in (("wrong.star", "nowhere.mrc is not there"), ("particles.star", "names no maps")):
        with pytest.raises(InputError, match=match):
            class3d.JOB.validate(make_job(class3d.JOB, CLASS3D, given | {"reference": [Path(table)]}, Path("job")))


def test_a_class_that_dies_is_said(project: Path) -> None:
    job = make_job(class3d.JOB, CLASS3D | {"classes": 4}, inputs(), Path("job"))
    refinement.say_empty_classes(job, torch.tensor([0, 2, 2, 0]), 4)
    assert job.warned == ["no particle is in class 2, 4: fewer classes would do"]
    refinement.say_empty_classes(job, torch.tensor([0, 2, 1, 3]), 4)
    assert len(job.warned) == 1


def test_a_class_of_nothing_dies_and_has_its_files(project: Path) -> None:
    """One of two maps shows what no particle does: after some iterations all are with the other, and it is said."""
    write_set(project, snr=5.0)
    place = np.arange(BOX) - BOX // 2
    shell = np.hypot(np.hypot(place[:, None, None], place[:, None]), place)
    write_map("wall.mrc", ((shell > 7) & (shell < 9)).astype(np.float32), PIXEL)
    given = {"particles": Path("particles.star"), "reference": [Path("truth.mrc"), Path("wall.mrc")]}
    job = make_job(class3d.JOB, CLASS3D | {"iterations": 4, "tau2_fudge": 1.0}, given, Path("job"))
    class3d.JOB.run(job)
    counts = np.bincount(read_particles("job/run_it004_data.star").column("class_number"), minlength=3)[1:]
    assert counts.tolist() == [COUNT, 0]
    assert any("no particle is in class 2" in warning for warning in job.warned)
    assert read_map("job/run_it004_class002.mrc")[0].shape == (BOX, BOX, BOX)


def test_the_reference_comes_onto_the_particles_grid(project: Path) -> None:
    """CASES 18: the output has the data's box and pixel whatever the reference had."""
    from verglas.volume.resample import rescale_map

    density = torch.from_numpy(read_map("truth.mrc")[0])
    write_map("other.mrc", rescale_map(density, PIXEL, 4.9, 44).numpy(), 4.9)
    run_job(refine3d.JOB, REFINE3D | {"iterations": 2}, inputs(reference=Path("other.mrc")), Path("job"))
    volume, pixel_size = read_map("job/run_class001.mrc")
    assert volume.shape == (BOX, BOX, BOX) and pixel_size == pytest.approx(PIXEL)
    assert np.corrcoef(volume.ravel(), density.numpy().ravel())[0, 1] > 0.8


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from helpers import make_job
from verglas.jobs import refine3d
params = {params}
job = make_job(refine3d.JOB, params, {{"particles": Path("particles.star"), "reference": Path("truth.mrc")}}, Path("killed"))
refine3d.JOB.run(job)
Path("killed/said").write_text("\\n".join(job.said))
"""


def test_goes_on_after_kill_9_to_an_equal_result(project: Path) -> None:
    """Killed once in the midst of an iteration's writing or computing, the same command ends as if nothing had happened."""
    run_job(refine3d.JOB, REFINE3D, inputs(), Path("whole"))
    command = [sys.executable, "-c", SCRIPT.format(params=repr(REFINE3D)), str(Path(__file__).parents[1])]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not Path("killed/run_it002_data.star").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("killed/run_class001.mrc").exists()
    subprocess.run(command, check=True)
    assert "going on after iteration" in Path("killed/said").read_text()
    for name in ("run_class001.mrc", "run_half1_class001_unfil.mrc"):
        assert np.array_equal(read_map(f"whole/{name}")[0], read_map(f"killed/{name}")[0])
    whole, killed = (read_particles(f"{name}/run_data.star").table for name in ("whole", "killed"))
    pd.testing.assert_frame_equal(whole, killed)


@pytest.mark.relion
def test_relion_goes_on_from_our_particles(project: Path) -> None:
    """RELION reads all rows, keeps our halves, and refines from our poses: after one local iteration they have moved by a grid's step."""
    write_set(project, snr=2.0)
    run_job(refine3d.JOB, REFINE3D, inputs(), Path("job"))
    Path("relion").mkdir()
    command = (
        "relion_refine --i job/run_data.star --o relion/run --ref job/run_class001.mrc --firstiter_cc --ini_high 15 --iter 1 "
        "--tau2_fudge 1 --K 1 "
        f"--healpix_order 3 --sigma_ang 3 --offset_range 3 --offset_step 1 --sym D2 --ctf --pad 2 --particle_diameter {DIAMETER} "
        "--flatten_solvent --zero_mask --oversampling 1 --norm --scale --dont_combine_weights_via_disc --random_seed 1 --j 1"
    )
    done = subprocess.run(command.split(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "is not a valid RELION argument" not in done.stdout + done.stderr
    ours, theirs = read_particles("job/run_data.star"), read_particles("relion/run_it001_data.star")
    assert len(theirs) == len(ours) == COUNT
    theirs = theirs.subset(pd.Index(theirs.table["image_name"]).get_indexer(pd.Index(ours.table["image_name"])))
    assert (theirs.column("half") == ours.column("half")).all()
    from verglas.scores.poses import pose_errors

    moved = pose_errors(
        torch.as_tensor(theirs.angles()),
        torch.as_tensor(ours.angles()),
        "D2",
        found_origins=torch.as_tensor(theirs.origins()),
        true_origins=torch.as_tensor(ours.origins()),
        common_rotation=False,
    ).summary()
    # a grid of 3.75° and half a pixel; a wrong sign or axis would give some 60°
    assert moved["pose_median"] < 8.0 and moved["within_10_degrees"] > 0.85 and moved["shift_median"] < 0.6 * PIXEL, moved


@pytest.mark.relion
def test_relion_reconstructs_our_map_from_our_particles(project: Path) -> None:
    """FSC above 0.93 to the resolution of the refinement: we weight several poses of a particle, RELION's program takes the best."""
    from verglas.volume.fsc import fsc

    write_set(project, snr=2.0)
    run_job(refine3d.JOB, REFINE3D, inputs(), Path("job"))
    command = "relion_reconstruct --i job/run_data.star --o theirs.mrc --ctf --sym D2 --j 1"
    subprocess.run(command.split(), check=True, capture_output=True)
    halves = [torch.from_numpy(read_map(f"job/run_half{half}_class001_unfil.mrc")[0]) for half in (1, 2)]
    agreement = fsc(torch.from_numpy(read_map("theirs.mrc")[0]), (halves[0] + halves[1]) / 2)
    shell = int(BOX * PIXEL / float(judged(refine3d.JOB, REFINE3D, Path("job"))["resolution"]))  # type: ignore[arg-type]
    assert (agreement[1 : shell - 1] > 0.93).all(), agreement
