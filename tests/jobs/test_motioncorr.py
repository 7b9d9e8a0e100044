"""MotionCorr on folders of small movies: results against truth, RELION on the same movies, faults, going on."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter

from helpers import make_job, run_job
from micrograph.made_movies import MadeMovie, field_points, make_movie, motion_rms
from verglas.errors import InputError, JobAborted
from verglas.io.movie import write_movie
from verglas.io.mrc import read_header, read_image, write_image
from verglas.io.star import read_star, write_star
from verglas.jobs.motioncorr import JOB
from verglas.micrograph.motion_files import read_motion

SMALL = {"dose_per_frame": 2.0, "patch_x": 2, "patch_y": 2, "threads": 1, "ps_size": 128}


@pytest.fixture(scope="module")
def movie() -> MadeMovie:
    return make_movie(shape=(256, 320), frames=8, blobs=800)


def write_table(folder: Path, names: list[str]) -> Path:
    optics = {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnMicrographOriginalPixelSize": [2.5],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
    }
    movies = {"rlnMicrographMovieName": names, "rlnOpticsGroup": [1] * len(names)}
    write_star(folder / "movies.star", {"optics": pd.DataFrame(optics), "movies": pd.DataFrame(movies)})
    return Path("movies.star")


@pytest.fixture
def project(tmp_path: Path, movie: MadeMovie, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three movies of 8 frames in movies/; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "movies").mkdir()
    counts = movie.counts.numpy().astype(np.uint8)
    write_movie(tmp_path / "movies/a b.tif", counts, 2.5)
    for name in ("m.1.tif", "m.2.tif"):
        shutil.copy(tmp_path / "movies/a b.tif", tmp_path / "movies" / name)
    write_table(tmp_path, ["movies/a b.tif", "movies/m.1.tif", "movies/m.2.tif"])
    return tmp_path


def run(out: str = "MotionCorr/job002", movies: str = "movies.star", gain: str | None = None, **params: object):
    inputs = {"movies": Path(movies), "gain": Path(gain) if gain else None}
    return run_job(JOB, SMALL | params, inputs, Path(out))


def test_table_files_and_motion(project: Path, movie: MadeMovie) -> None:
    items = run(save_noDW=True)
    assert (items.done, items.failed) == (3, 0)
    tables = read_star("MotionCorr/job002/corrected_micrographs.star")
    rows = tables["micrographs"]
    assert list(rows.columns) == [
        "rlnMicrographNameNoDW",
        "rlnCtfPowerSpectrum",
        "rlnMicrographName",
        "rlnMicrographMetadata",
        "rlnOpticsGroup",
        "rlnAccumMotionTotal",
        "rlnAccumMotionEarly",
        "rlnAccumMotionLate",
    ]
    assert rows["rlnMicrographName"].tolist() == [f"MotionCorr/job002/movies/{name}.mrc" for name in ("a b", "m.1", "m.2")]
    assert tables["optics"]["rlnMicrographPixelSize"].astype(float).tolist() == [2.5]
    for row in rows.to_dict("records"):
        for label in ("rlnMicrographNameNoDW", "rlnMicrographName", "rlnCtfPowerSpectrum", "rlnMicrographMetadata"):
            assert Path(row[label]).exists()
        total, early, late = (float(row[f"rlnAccumMotion{part}"]) for part in ("Total", "Early", "Late"))
        assert total == pytest.approx(early + late, abs=1e-3) and total > 15
    motion = read_motion(rows["rlnMicrographMetadata"][0])
    points = field_points((256, 320))
    true = movie.undo(points)
    assert motion_rms(motion.shifts_at(points), true) < 0.14 * motion_rms(torch.zeros_like(true), true)
    metrics = JOB.measure(Path("MotionCorr/job002"), JOB.params(**SMALL))
    for check in JOB.checks(JOB.params(**SMALL)):
        value = metrics[check.metric]
        assert (check.low is None or value >= check.low) and (check.high is None or value <= check.high), check


def test_binned_half_precision(project: Path) -> None:
    run(bin_factor=2, float16=True, grouping_for_ps=0, movies=str(write_table(project, ["movies/m.1.tif"])))
    header = read_header("MotionCorr/job002/movies/m.1.mrc")
    assert header.shape[-2:] == (128, 160) and header.dtype.itemsize == 2
    tables = read_star("MotionCorr/job002/corrected_micrographs.star")
    assert float(tables["optics"]["rlnMicrographPixelSize"][0]) == pytest.approx(5.0)
    assert "rlnCtfPowerSpectrum" not in tables["micrographs"]


def test_same_result_for_any_number_of_threads(project: Path) -> None:
    run("one", threads=1)
    run("two", threads=2)
    for name in ("a b", "m.1", "m.2"):
        first, second = (read_image(f"{out}/movies/{name}.mrc") for out in ("one", "two"))
        assert np.abs(first - second).max() < 1e-3 * first.std()


def test_bad_movies_are_named_and_the_short_one_has_its_own_dose(project: Path, movie: MadeMovie) -> None:
    """CASES 13, and movies that are cut, empty, constant or missing."""
    folder = project / "movies"
    whole = (folder / "m.1.tif").read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 40] = b"\xff" * 40
    (folder / "damaged.tif").write_bytes(bytes(damaged))
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.tif").write_bytes(b"")
    write_movie(folder / "short.tif", movie.counts[:7].numpy().astype(np.uint8), 2.5)
    write_movie(folder / "flat.mrc", np.full((8, 256, 320), 3, np.float32), 2.5)
    spoiled = movie.counts.numpy().copy()
    spoiled[3, 10, 10] = np.nan
    write_movie(folder / "nan.mrc", np.nan_to_num(spoiled), 2.5)
    raw = bytearray((folder / "nan.mrc").read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    (folder / "nan.mrc").write_bytes(bytes(raw))
    good = ["a b.tif", "m.1.tif", "m.2.tif", "short.tif"]
    bad = ["damaged.tif", "cut.tif", "empty.tif", "flat.mrc", "nan.mrc", "missing.tif"]
    write_table(project, [f"movies/{name}" for name in good + bad])
    items = run()
    assert (items.total, items.done, items.failed) == (10, 4, 6)
    assert sorted(problem.item for problem in items.problems) == sorted(f"movies/{name}" for name in bad)
    assert items.notes["short_movies"] == ["movies/short.tif"]
    assert len(read_star("MotionCorr/job002/corrected_micrographs.star")["micrographs"]) == 4
    assert len(read_motion("MotionCorr/job002/movies/short.star").global_shifts) == 7


def test_nothing_but_bad_movies_is_an_error(project: Path) -> None:
    (project / "movies/cut.tif").write_bytes(b"II*\0")
    write_table(project, ["movies/cut.tif"])
    with pytest.raises(InputError, match="none of 1 movies"):
        run()


def test_gain_is_applied_and_a_wrong_size_is_refused_at_the_start(project: Path, movie: MadeMovie) -> None:
    """CASES 15."""
    gain = np.random.default_rng(1).uniform(0.7, 1.4, (256, 320)).astype(np.float32)
    raw = np.random.default_rng(2).poisson(movie.counts.numpy() / gain).astype(np.uint8)
    gain[:, 100] = 0
    raw[:, :, 100] = 0
    write_movie(project / "movies/g.tif", raw, 2.5)
    write_image(project / "gain.mrc", gain, 2.5)
    write_image(project / "turned.mrc", np.rot90(gain).copy(), 2.5)
    write_table(project, ["movies/g.tif"])
    run(gain="gain.mrc", dose_weighting=False)
    image = read_image("MotionCorr/job002/movies/g.mrc")
    assert np.isfinite(image).all()
    assert image.mean() == pytest.approx(float(movie.counts.sum(dim=0).mean()), rel=0.01)
    assert abs(image[:, 95:106].mean() / image.mean() - 1) < 0.05
    with pytest.raises(InputError, match="otation"):
        run("other", gain="turned.mrc")
    run("right", gain="turned.mrc", gain_rot=1, dose_weighting=False)
    assert np.abs(read_image("right/movies/g.mrc") - image).max() < 1e-3 * image.std()


def test_known_defects_are_filled_in(project: Path, movie: MadeMovie) -> None:
    """As a map and as MotionCor2's lines of x y width height: in both they lie where the frames as read have them."""
    raw = movie.counts.numpy().astype(np.uint8)
    raw[:, 30:60, 100:106] //= 2  # too much for a dead pixel
    write_movie(project / "movies/d.tif", raw, 2.5)
    write_table(project, ["movies/d.tif", "movies/m.1.tif"])
    bad = np.zeros((256, 320), np.float32)
    bad[30:60, 100:106] = 1
    write_image(project / "bad.mrc", bad, 2.5)
    (project / "bad.txt").write_text("# of the camera\n100 30 6 30\n")
    still = {"patch_x": 1, "patch_y": 1, "dose_weighting": False}
    run("left", **still)
    sound = _beside_the_defects("left/movies/m.1.mrc")
    assert _beside_the_defects("left/movies/d.mrc") < 0.93 * sound
    for name in ("bad.mrc", "bad.txt"):
        run_job(JOB, SMALL | still, {"movies": Path("movies.star"), "defects": Path(name)}, Path(name + "_out"))
        assert _beside_the_defects(f"{name}_out/movies/d.mrc") == pytest.approx(sound, rel=0.02)
    write_image(project / "small.mrc", bad[:100], 2.5)
    (project / "words.txt").write_text("100 30 six 30\n")
    (project / "turned.txt").write_text("30 100 30 6\n30 251 30 6\n")
    refused = {
        "small.mrc": "320 x 100 px, the movies are 320 x 256 px",
        "words.txt": "line 1 is '100 30 six 30'",
        "turned.txt": "line 2 reach",
    }
    for name, said in refused.items():
        with pytest.raises(InputError, match=said):
            run_job(JOB, SMALL | still, {"movies": Path("movies.star"), "defects": Path(name)}, Path(name + "_out"))


def _beside_the_defects(path: str) -> float:
    """Mean around the place that the specimen's motion carries the defects over."""
    return float(read_image(path)[25:65, 95:111].mean())


def test_eer_positions_finer_than_a_pixel(project: Path, movie: MadeMovie) -> None:
    """Upsampled by 2, the frames are twice as wide and their pixel half as large; binned by 2 they are the micrograph of 1 again."""
    counts = np.random.default_rng(1).binomial(1, movie.counts.numpy() / 40).astype(np.uint8)
    write_movie(project / "movies/e.eer", counts, 2.5)
    write_table(project, ["movies/e.eer"])
    still = {"eer_grouping": 2, "patch_x": 1, "patch_y": 1, "dose_weighting": False}
    for upsampling, bin_factor in ((1, 1), (2, 1), (2, 2)):
        run(f"up{upsampling}{bin_factor}", eer_upsampling=upsampling, bin_factor=bin_factor, **still)
    headers = [read_header(f"{name}/movies/e.mrc") for name in ("up11", "up21", "up22")]
    assert [header.shape[1:] for header in headers] == [(256, 320), (512, 640), (256, 320)]
    assert [header.pixel_size for header in headers] == pytest.approx([2.5, 1.25, 2.5])
    coarse, again = (read_image(f"{name}/movies/e.mrc") for name in ("up11", "up22"))
    assert 4 * again.mean() == pytest.approx(coarse.mean(), rel=0.01)
    smooth = [gaussian_filter(image, 2).ravel() for image in (coarse, again)]  # the places within a pixel are random
    assert np.corrcoef(*smooth)[0, 1] > 0.95


def test_eer_fractions_of_uneven_size_have_their_own_dose(project: Path) -> None:
    """CASES 14: ten frames by four give fractions of 4, 4 and 2."""
    counts = make_movie(shape=(128, 128), frames=10, blobs=100, dose=0.5).counts.clamp(max=1).numpy().astype(np.uint8)
    write_movie(project / "movies/e.eer", counts, 2.5)
    write_table(project, ["movies/e.eer"])
    job = make_job(JOB, SMALL | {"eer_grouping": 4, "patch_x": 1, "patch_y": 1}, {"movies": Path("movies.star")}, Path("eer"))
    JOB.validate(job)
    assert JOB.run(job).done == 1
    assert len(read_motion("eer/movies/e.star").global_shifts) == 3
    assert any("last, shorter fraction of 2" in line for line in job.said)


def test_going_on_does_only_what_is_missing(project: Path) -> None:
    """CASES 19: stopped after some movies, then one output cut short and another's motion file removed."""
    run("undisturbed")
    out = Path("MotionCorr/job002")
    job = make_job(JOB, SMALL, {"movies": Path("movies.star")}, out, stop_after=2)
    with pytest.raises(JobAborted):
        JOB.run(job)
    assert 0 < len(list(out.rglob("*.star"))) < 3
    run()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("movies/*") if path.name.startswith("a b")}
    cut = out / "movies/m.1.mrc"
    cut.write_bytes(cut.read_bytes()[:5000])
    (out / "movies/m.2.star").unlink()
    run()
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    texts = [(folder / "corrected_micrographs.star").read_text().replace(str(folder), "X") for folder in (out, Path("undisturbed"))]
    assert texts[0] == texts[1]
    assert np.array_equal(read_image(cut), read_image("undisturbed/movies/m.1.mrc"))


def test_micrographs_and_impossible_ranges_are_refused(project: Path) -> None:
    with pytest.raises(InputError, match="before the first"):
        run(first_frame_sum=5, last_frame_sum=2)
    run()
    with pytest.raises(InputError, match="not movies"):
        run("again", movies="MotionCorr/job002/corrected_micrographs.star")


@pytest.mark.relion
def test_relion_finds_the_same_motion_and_reads_our_table(project: Path, movie: MadeMovie) -> None:
    shutil.copy("movies/m.1.tif", "movies/m.tif")
    write_table(project, ["movies/m.tif"])
    run(save_noDW=True, patch_x=3, patch_y=3)
    program = ["relion_run_motioncorr", "--i", "movies.star", "--o", "relion/", "--use_own", "--bfactor", "24", "--dose_per_frame", "2"]
    subprocess.run([*program, "--patch_x", "3", "--patch_y", "3", "--dose_weighting", "--save_noDW"], check=True, capture_output=True)
    ours, theirs = read_motion("MotionCorr/job002/movies/m.star"), read_motion("relion/movies/m.star")
    points = field_points((256, 320))
    true = movie.undo(points)
    errors = [motion_rms(each.shifts_at(points), true) * 2.5 for each in (ours, theirs)]
    assert errors[0] < 1.5 and errors[0] <= errors[1]
    assert motion_rms(ours.global_shifts[None], theirs.global_shifts[None]) * 2.5 < 1.0
    for name in ("m.mrc", "m_noDW.mrc"):
        pair = [read_image(f"{folder}/movies/{name}")[16:-16, 16:-16] for folder in ("MotionCorr/job002", "relion")]
        pair = [torch.nn.functional.avg_pool2d(torch.from_numpy(image.copy())[None, None], 4).flatten() for image in pair]
        assert float(torch.corrcoef(torch.stack(pair))[0, 1]) > 0.95
        assert float(pair[0].mean()) == pytest.approx(float(pair[1].mean()), rel=0.02)
    table = "MotionCorr/job002/corrected_micrographs.star"
    handled = ["relion_star_handler", "--i", table, "--o", "copy.star", "--select", "rlnAccumMotionTotal", "--minval", "0"]
    subprocess.run(handled, check=True, capture_output=True)
    copied = read_star("copy.star")["micrographs"]
    assert copied["rlnMicrographName"].tolist() == read_star(table)["micrographs"]["rlnMicrographName"].tolist()
