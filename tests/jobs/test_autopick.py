"""AutoPick from micrographs to coordinate files: found against truth, odd micrographs, going on, files as RELION's."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import make_job, run_job
from synthetic_micrographs import CTF, PIXEL, lobes, micrograph
from verglas.errors import InputError, JobAborted
from verglas.io.coordinates import read_coordinates
from verglas.io.mrc import write_image, write_map, write_stack
from verglas.io.star import read_star
from verglas.jobs.autopick import JOB
from verglas.particles import Micrographs, write_micrographs
from verglas.particles.tables import OpticsGroups
from verglas.scores.picks import match_picks, total_score

LOG = {"log_diam_min": 90, "log_diam_max": 120, "threads": 1}


def write_list(names, path="micrographs.star", ctf=True):
    optics = {
        "name": ["opticsGroup1"], "optics_group": [1], "movie_pixel_size": [PIXEL], "micrograph_pixel_size": [PIXEL],
        "voltage": [200.0], "spherical_aberration": [2.7], "amplitude_contrast": [0.1],
    }  # fmt: skip
    defocus = {name: CTF[name] for name in ("defocus_u", "defocus_v", "defocus_angle")} if ctf else {}
    table = pd.DataFrame({"micrograph_name": names, "optics_group": 1, **defocus})
    write_micrographs(path, Micrographs(OpticsGroups(pd.DataFrame(optics)), table))


@pytest.fixture(scope="module")
def scenes():
    return [micrograph(seed, crystal=seed == 1) for seed in range(1, 4)]


@pytest.fixture
def here(tmp_path, monkeypatch, scenes):
    monkeypatch.chdir(tmp_path)
    names = [f"MotionCorr/job002/mics/{number}.mrc" for number in range(len(scenes))]
    for name, scene in zip(names, scenes):
        write_image(name, scene.image.numpy(), PIXEL)
    write_list(names)
    return tmp_path


def picks(out, number):
    return read_coordinates(f"{out}/mics/{number}_autopick.star")[["coordinate_x", "coordinate_y"]].to_numpy()


def score(out, scenes):
    size = (scenes[0].image.shape[1] * PIXEL, scenes[0].image.shape[0] * PIXEL)
    found = [match_picks(picks(out, number) * PIXEL, scene.xy * PIXEL, 25, size, 60) for number, scene in enumerate(scenes)]
    return total_score(found)


def test_blobs_end_to_end(here, scenes):
    out = Path("AutoPick/job003")
    items = run_job(JOB, LOG, {"micrographs": Path("micrographs.star")}, out)
    assert items.done == 3 and score(out, scenes).f1 > 0.85
    assert (out / "coords_suffix_autopick.star").read_text() == "micrographs.star\n"
    table = read_star(out / "mics/0_autopick.star")[""]
    assert list(table) == ["rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit", "rlnClassNumber", "rlnAnglePsi"]
    metrics = JOB.measure(out, JOB.params(**LOG))
    assert metrics["picks"] == sum(len(picks(out, n)) for n in range(3)) and metrics["micrographs_without_picks"] == 0
    assert metrics["separation"] > 2
    for check in JOB.checks(JOB.params(**LOG)):
        assert check.low <= metrics[check.metric] and (check.high is None or metrics[check.metric] <= check.high)
    assert {path.name for path in out.glob("*.png")} == {"picture_scores.png", *(f"picture_picks_{n}.png" for n in (1, 2, 3))}


@pytest.mark.parametrize("ctf", [True, False])
def test_templates_end_to_end(here, scenes, ctf):
    references = torch.cat([lobes(np.array([[64, 64]]), [angle], (128, 128))[None] for angle in (0.0, 77.0)])
    write_stack("averages.mrcs", references.numpy(), PIXEL)
    inputs = {"micrographs": Path("micrographs.star"), "references": Path("averages.mrcs")}
    params = {"particle_diameter": 140, "psi_sampling": 10, "threads": 1, "use_ctf": ctf}
    run_job(JOB, params, inputs, Path("out"))
    result = score("out", scenes)
    assert result.f1 > 0.93 and result.centre_error < 4


def test_map_as_reference(here, scenes):
    """A map whose projection along z is the particle; other directions are there too, and must not win often."""
    depth = torch.exp(-0.5 * ((torch.arange(64.0) - 32) / 4) ** 2)
    write_map("map.mrc", (depth[:, None, None] * lobes(np.array([[32, 32]]), [0.0], (64, 64))).numpy(), PIXEL)
    inputs = {"micrographs": Path("micrographs.star"), "reference": Path("map.mrc")}
    run_job(JOB, {"particle_diameter": 140, "psi_sampling": 15, "healpix_order": 1, "threads": 1}, inputs, Path("out"))
    assert score("out", scenes).f1 > 0.9


def test_threshold_min_distance_and_noise_limits(here):
    inputs = {"micrographs": Path("micrographs.star")}
    run_job(JOB, LOG, inputs, Path("auto"))
    run_job(JOB, {**LOG, "log_adjust_threshold": 2}, inputs, Path("higher"))
    run_job(JOB, {**LOG, "threshold": 0.0, "min_distance": 200}, inputs, Path("far"))
    run_job(JOB, {**LOG, "max_stddev_noise": 0.5}, inputs, Path("quiet"))
    run_job(JOB, {**LOG, "log_refine": False, "threshold": 5.0}, inputs, Path("plain"))
    assert len(picks("higher", 0)) < len(picks("auto", 0))
    distance = np.linalg.norm(picks("far", 0)[:, None] - picks("far", 0)[None], axis=2) * PIXEL
    assert distance[np.triu_indices(len(distance), 1)].min() >= 200
    assert sum(len(picks("quiet", n)) for n in range(3)) == 0
    assert not Path("plain/blob.mrcs").exists()


def test_odd_micrographs(here, scenes):
    """CASES.md, 16: one good, one that holds nothing but noise, one damaged, one constant: each is counted, the job goes on."""
    noise = torch.randn(scenes[0].image.shape, generator=torch.Generator().manual_seed(9)).numpy() + 50
    write_image("mics/noise.mrc", noise, PIXEL)
    write_image("mics/flat.mrc", np.full((200, 200), 3, np.float32), PIXEL)
    Path("mics/cut.mrc").write_bytes(Path("mics/noise.mrc").read_bytes()[:5000])
    write_list(["MotionCorr/job002/mics/0.mrc", "mics/noise.mrc", "mics/flat.mrc", "mics/cut.mrc", "mics/gone.mrc"])
    items = run_job(JOB, LOG, {"micrographs": Path("micrographs.star")}, Path("out"))
    assert (items.total, items.done, items.failed) == (5, 2, 3)
    assert {problem.item for problem in items.problems} == {"mics/flat.mrc", "mics/cut.mrc", "mics/gone.mrc"}
    assert len(picks("out", 0)) > 20
    assert len(read_coordinates("out/mics/noise_autopick.star")) <= 3


def test_nothing_usable_is_no_success(here):
    write_list(["mics/gone.mrc", "mics/lost.mrc"])
    job = make_job(JOB, {**LOG, "log_refine": False}, {"micrographs": Path("micrographs.star")}, Path("out"))
    items = JOB.run(job)
    assert items.done == 0 and items.failed == 2 and not Path("out/coords_suffix_autopick.star").exists()


def test_going_on(here):
    """CASES.md, 19: stopped after two; one result cut short, another deleted: only those are done again, the end is the same."""
    inputs = {"micrographs": Path("micrographs.star")}
    run_job(JOB, LOG, inputs, Path("whole"))
    with pytest.raises(JobAborted):
        JOB.run(make_job(JOB, LOG, inputs, Path("out"), stop_after=2))
    kept = sorted(Path("out/candidates").rglob("*.star"))
    assert len(kept) == 2
    kept[0].write_text(kept[0].read_text()[:300])
    times = {path: path.stat().st_mtime_ns for path in [kept[1], Path("out/blob.mrcs")]}
    run_job(JOB, LOG, inputs, Path("out"))
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    for number in range(3):
        assert Path(f"out/mics/{number}_autopick.star").read_bytes() == Path(f"whole/mics/{number}_autopick.star").read_bytes()
    again = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*_autopick.star") if path.parent.name == "mics"}
    Path("out/mics/1_autopick.star").unlink()
    run_job(JOB, LOG, inputs, Path("out"))
    assert Path("out/mics/1_autopick.star").read_bytes() == Path("whole/mics/1_autopick.star").read_bytes()
    assert all(path.stat().st_mtime_ns == time for path, time in again.items() if path.name != "1_autopick.star")


def test_what_cannot_work_is_refused_before_the_start(here):
    inputs = {"micrographs": Path("micrographs.star")}
    for params, more, named in (
        ({}, {}, "log-diam-min"),
        ({"log_diam_min": 100, "log_diam_max": 90}, {}, "log-diam-min"),
        ({}, {"references": Path("a.mrcs")}, "particle-diameter"),
        ({"particle_diameter": 100}, {"references": Path("a.mrcs"), "reference": Path("a.mrc")}, "reference"),
        ({"particle_diameter": 100, "symmetry": "D"}, {"reference": Path("a.mrc")}, "D"),
    ):
        with pytest.raises(InputError, match=named):
            JOB.validate(make_job(JOB, params, {**inputs, **more}, Path("out")))
