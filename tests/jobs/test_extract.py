"""Extract: RELION's images from RELION's coordinates, nothing lost on the second cut, odd inputs, going on."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import make_job, run_job
from verglas.errors import InputError, JobAborted
from verglas.io.coordinates import write_coordinates
from verglas.io.mrc import read_header, read_stack, write_image
from verglas.jobs.extract import JOB
from verglas.particles import Micrographs, OpticsGroups, StackImages, read_particles, write_micrographs, write_particles

PIXEL = 1.5
SUFFIX = "coords_suffix_autopick.star"


def optics_of(**changes):
    values = {
        "name": ["opticsGroup1"], "optics_group": [1], "movie_pixel_size": [PIXEL], "micrograph_pixel_size": [PIXEL],
        "voltage": [300.0], "spherical_aberration": [2.7], "amplitude_contrast": [0.1],
    }  # fmt: skip
    return OpticsGroups(pd.DataFrame(values | changes))


def write_list(names, path="micrographs.star", **changes):
    defocus = {"defocus_u": 11000.0 + np.arange(len(names)), "defocus_v": 10500.0, "defocus_angle": 30.0}
    write_micrographs(path, Micrographs(optics_of(**changes), pd.DataFrame({"micrograph_name": names, "optics_group": 1, **defocus})))


def write_picks(stem, xy, folder="AutoPick/job003", **more):
    x, y = np.asarray(xy, float).reshape(-1, 2).T
    write_coordinates(f"{folder}/{stem}_autopick.star", pd.DataFrame({"coordinate_x": x, "coordinate_y": y, **more}))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Three micrographs with five picks each, some over the edge."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(7)
    names = [f"MotionCorr/job002/mics/{number}.mrc" for number in range(3)]
    for number, name in enumerate(names):
        write_image(name, (random.normal(100, 8, (200, 240)) + 0.05 * np.arange(240)).astype(np.float32), PIXEL)
        xy = np.concatenate([random.uniform(50, 150, (3, 2)), [[3.7, 100.2], [230.6, 190.9]]])
        write_picks(f"mics/{number}", xy, pick_score=[5.0, 4, 3, 2, 1], class_number=1, psi=0.0)
    write_list(names)
    Path("AutoPick/job003", SUFFIX).write_text("micrographs.star\n")
    return tmp_path


def inputs(**more):
    return {"micrographs": Path("micrographs.star"), "coordinates": Path("AutoPick/job003", SUFFIX), **more}


def images(out):
    particles = read_particles(f"{out}/particles.star")
    return StackImages(particles).read(np.arange(len(particles))).numpy(), particles


@pytest.mark.relion
@pytest.mark.parametrize("rescale", [0, 32])
def test_images_are_relion_s(here, rescale):
    scale = ["--scale", str(rescale)] if rescale else []
    radius = 24 * (rescale or 64) / 64
    command = [
        "relion_preprocess", "--i", "micrographs.star", "--coord_dir", "AutoPick/job003/", "--coord_suffix", "_autopick.star",
        "--part_star", "relion/particles.star", "--part_dir", "relion/", "--extract", "--extract_size", "64", *scale, "--norm",
        "--bg_radius", str(int(radius)), "--white_dust", "-1", "--black_dust", "-1", "--invert_contrast",
    ]  # fmt: skip
    Path("relion").mkdir()
    subprocess.run(command, check=True, capture_output=True)
    params = {"box_size": 64, "rescale": rescale, "bg_diameter": 48, "threads": 1}
    run_job(JOB, params, inputs(), Path("Extract/job004"))
    ours, ours_table = images("Extract/job004")
    theirs, theirs_table = images("relion")
    assert ours.shape == theirs.shape == (15, rescale or 64, rescale or 64)
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(ours, theirs)]
    assert min(correlation) > 0.9999 and np.abs(ours - theirs).max() < 1e-3
    for name in ("coordinate_x", "coordinate_y", "defocus_u", "defocus_angle", "pick_score"):
        assert ours_table.column(name).astype(float) == pytest.approx(theirs_table.column(name).astype(float), rel=1e-5)
    assert ours_table.optics.pixel_size == pytest.approx(theirs_table.optics.pixel_size)
    assert ours_table.optics.box_size == theirs_table.optics.box_size
    assert not set(theirs_table.table) - set(ours_table.table)


@pytest.mark.relion
def test_relion_reads_all_particles(here):
    run_job(JOB, {"box_size": 64, "rescale": 32, "threads": 1}, inputs(), Path("Extract/job004"))
    select = ["--select", "rlnCoordinateX", "--minval", "-1"]
    command = ["relion_star_handler", "--i", "Extract/job004/particles.star", "--o", "back.star", *select]
    subprocess.run(command, check=True, capture_output=True)
    assert len(read_particles("back.star")) == 15


def test_outputs_lie_in_the_job_one_stack_a_micrograph(here):
    items = run_job(JOB, {"box_size": 64, "rescale": 32, "threads": 1}, inputs(), Path("Extract/job004"))
    assert items.done == 3 and items.notes["particles"] == 15
    _, particles = images("Extract/job004")
    assert particles.column("image_name")[0] == "000001@Extract/job004/mics/0.mrcs"
    assert read_header("Extract/job004/mics/0.mrcs").shape == (5, 32, 32)
    assert particles.optics.pixel_size == 3.0 and "micrograph_pixel_size" in particles.optics.table
    assert particles.column("defocus_u")[-1] == 11002.0 and particles.column("phase_shift")[0] == 0
    params = JOB.params(box_size=64, rescale=32)
    metrics = JOB.measure(Path("Extract/job004"), params)
    for check in JOB.checks(params):
        assert check.low <= metrics[check.metric] and (check.high is None or metrics[check.metric] <= check.high)


def test_score_duplicates_and_edges(here):
    write_picks("mics/0", [[100, 100], [104, 100], [150, 60], [3, 100]], pick_score=[2.0, 3.0, 1.0, 9.0])
    for number in (1, 2):
        Path(f"AutoPick/job003/mics/{number}_autopick.star").unlink()
    params = {"box_size": 64, "threads": 1, "minimum_pick_score": 1.5, "min_distance": 12, "edge": "drop"}
    items = run_job(JOB, params, inputs(), Path("out"))
    assert items.done == 1 and items.skipped == 2 and items.notes["picks_left_out"] == 3
    assert [problem.reason for problem in items.problems] == ["no coordinate file"] * 2
    assert images("out")[1].column("coordinate_x").tolist() == [104]


def test_nothing_picked_garbled_and_outside(here):
    """CASES.md, 16."""
    write_list([f"MotionCorr/job002/mics/{n}.mrc" for n in range(3)] + ["MotionCorr/job002/mics/3.mrc"])
    shutil.copy("MotionCorr/job002/mics/0.mrc", "MotionCorr/job002/mics/3.mrc")
    write_picks("mics/1", np.zeros((0, 2)))
    Path("AutoPick/job003/mics/2_autopick.star").write_text("data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n 1 2\n oops 4\n")
    write_picks("mics/3", [[-40, 20], [1000, 20]])
    items = run_job(JOB, {"box_size": 64, "threads": 1}, inputs(), Path("out"))
    assert (items.done, items.skipped, items.failed) == (1, 2, 1)
    reasons = {problem.item[-5]: problem.reason for problem in items.problems}
    assert reasons["1"] == "nothing picked" and "oops" in reasons["2"] and "outside" in reasons["3"]
    for number in (0, 2):
        write_picks(f"mics/{number}", np.zeros((0, 2)))
    job = make_job(JOB, {"box_size": 64, "threads": 1}, inputs(), Path("none"))
    items = JOB.run(job)
    assert items.done == 0 and not Path("none/particles.star").exists()


def test_blank_and_broken_micrographs(here):
    write_image("MotionCorr/job002/mics/1.mrc", np.full((200, 240), 5, np.float32), PIXEL)
    image = np.random.default_rng(0).normal(size=(200, 240)).astype(np.float32)
    image[5, 5] = np.nan
    write_image("MotionCorr/job002/mics/2.mrc", image, PIXEL)
    items = run_job(JOB, {"box_size": 64, "threads": 1}, inputs(), Path("out"))
    assert items.done == 1 and items.failed == 2
    assert "constant" in items.problems[0].reason and "NaN" in items.problems[1].reason


def test_blank_image_is_left_out_and_named(here):
    image = np.random.default_rng(0).normal(size=(200, 240)).astype(np.float32)
    image[20:90, 20:90] = 1.0
    write_image("MotionCorr/job002/mics/0.mrc", image, PIXEL)
    write_picks("mics/0", [[55, 55], [170, 140]])
    job = make_job(JOB, {"box_size": 64, "threads": 1}, inputs(), Path("out"))
    items = JOB.run(job)
    assert items.notes["picks_left_out"] == 1 and "55, 55" in job.warned[0]
    assert len(read_particles("out/particles.star")) == 11


def test_half_precision(here):
    run_job(JOB, {"box_size": 64, "threads": 1}, inputs(), Path("full"))
    run_job(JOB, {"box_size": 64, "threads": 1, "float16": True}, inputs(), Path("half"))
    assert read_header("half/mics/0.mrcs").dtype.itemsize == 2
    assert np.abs(images("half")[0] - images("full")[0]).max() < 5e-3


def test_second_cut_centres_the_particles(here):
    """A bright spot where the alignment says that the particle is: after the second cut it is at the centre, less the new origin."""
    spot = np.array([117.0, 83.0])
    image = np.random.default_rng(0).normal(0, 1, (200, 240)).astype(np.float32)
    image[int(spot[1]), int(spot[0])] = -500
    write_image("MotionCorr/job002/mics/0.mrc", image, PIXEL)
    write_picks("mics/0", [[112.8, 88.3]])
    run_job(JOB, {"box_size": 64, "threads": 1}, inputs(), Path("first"))
    first, particles = images("first")
    assert np.unravel_index(first[0].argmax(), (64, 64)) == (32 - 5, 32 + 5)
    rows = len(particles)
    origins = {"origin_x": np.full(rows, -5 * PIXEL + 0.4), "origin_y": np.full(rows, 5 * PIXEL - 0.3)}
    aligned = particles.with_columns(**origins, rot=0.0, tilt=0.0, psi=0.0)
    write_particles("aligned.star", aligned)
    more = {"micrographs": Path("micrographs.star"), "particles": Path("aligned.star")}
    run_job(JOB, {"box_size": 48, "threads": 1}, more, Path("second"))
    second, after = images("second")
    assert np.unravel_index(second[0].argmax(), (48, 48)) == (24, 24)
    assert after.column("coordinate_x")[0] == 117 and after.origins()[0] == pytest.approx([0.4, -0.3])
    assert after.optics.box_size == 48 and len(after) == len(particles)
    run_job(JOB, {"box_size": 48, "threads": 1, "recenter": False}, more, Path("kept"))
    assert images("kept")[1].column("coordinate_x")[0] == pytest.approx(112.8)
    run_job(JOB, {"box_size": 48, "threads": 1, "recenter_x": 4.0}, more, Path("moved"))
    assert images("moved")[1].column("coordinate_x")[0] == 121


def test_particles_and_micrographs_that_disagree(here):
    """CASES.md, 8: found at the start."""
    run_job(JOB, {"box_size": 64, "threads": 1}, inputs(), Path("first"))
    write_list([f"MotionCorr/job002/mics/{n}.mrc" for n in range(3)], "other.star", voltage=[200.0])
    more = {"micrographs": Path("other.star"), "particles": Path("first/particles.star")}
    with pytest.raises(InputError, match="voltage is 200"):
        JOB.validate(make_job(JOB, {"box_size": 64}, more, Path("out")))
    write_list(["MotionCorr/job002/mics/0.mrc"], "one.star")
    items = run_job(JOB, {"box_size": 64, "threads": 1}, {**more, "micrographs": Path("one.star")}, Path("part"))
    assert items.notes["particles"] == 5 and items.notes["particles_of_other_micrographs"] == 10
    write_list(["elsewhere.mrc"], "none.star")
    with pytest.raises(InputError, match="no particle lies in a listed micrograph"):
        JOB.validate(make_job(JOB, {"box_size": 64}, {**more, "micrographs": Path("none.star")}, Path("out")))


def test_what_cannot_work_is_refused_before_the_start(here):
    for params, named in (
        ({"box_size": 256}, "do not fit"),
        ({"box_size": 63}, "even"),
        ({"box_size": 64, "rescale": 96}, "smaller"),
        ({"box_size": 64, "bg_diameter": 64}, "no background"),
    ):
        with pytest.raises(InputError, match=named):
            JOB.validate(make_job(JOB, params, inputs(), Path("out")))
    with pytest.raises(InputError, match="neither"):
        JOB.validate(make_job(JOB, {"box_size": 64}, inputs(coordinates=None), Path("out")))
    with pytest.raises(InputError, match="coords_suffix"):
        JOB.validate(make_job(JOB, {"box_size": 64}, inputs(coordinates=Path("micrographs.star")), Path("out")))


def test_going_on(here):
    """CASES.md, 19."""
    params = {"box_size": 64, "rescale": 32, "threads": 1}
    run_job(JOB, params, inputs(), Path("whole"))
    with pytest.raises(JobAborted):
        JOB.run(make_job(JOB, params, inputs(), Path("out"), stop_after=2))
    assert sorted(path.name for path in Path("out/mics").iterdir()) == ["0.mrcs", "0_extract.star", "1.mrcs", "1_extract.star"]
    stack = Path("out/mics/0.mrcs")
    stack.write_bytes(stack.read_bytes()[:3000])
    times = {path: path.stat().st_mtime_ns for path in Path("out/mics").glob("1*")}
    run_job(JOB, params, inputs(), Path("out"))
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    ours, particles = images("out")
    whole, undisturbed = images("whole")
    assert np.array_equal(ours, whole)
    same = particles.table.drop(columns="image_name").equals(undisturbed.table.drop(columns="image_name"))
    assert same and read_stack("out/mics/2.mrcs").shape == (5, 32, 32)
