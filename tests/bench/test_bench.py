"""Scores of a run against the truth: perfect results score perfectly, spoilt ones by what they were spoilt by."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
import pytest
import torch

from verglas.bench import api
from verglas.bench.api import run_bench, step_folders
from verglas.bench.measurement import HEADINGS, Measurement, table
from verglas.bench.repeats import spread_over_repeats
from verglas.bench.scoring import Truth, score_ctf, score_picks, score_run, score_structures, score_views
from verglas.bench.variables import TIERS, recipe_variables
from verglas.cli.show import stats_command
from verglas.errors import InputError
from verglas.io.coordinates import write_coordinates
from verglas.io.mrc import read_map, write_map
from verglas.particles import read_micrographs, read_particles, write_micrographs, write_particles
from verglas.records.outputs import inspect_output
from verglas.records.record import Record
from verglas.records.render import in_columns
from verglas.records.table import Row
from verglas.simulate.settings import SimulationSettings
from verglas.simulate.simulation import simulate
from verglas.volume.resample import rescale_map
from verglas.workflow.recipe import load_recipe


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated")
    settings = SimulationSettings(movies=1, width=512, height=512, frames=2, particles_per_movie=12, contaminated=0, aggregated=0, carbon=0)
    simulate(settings, out, workers=1)
    return out


def values(lines: list[Measurement]) -> dict[str, float]:
    return {line.name: line.value for line in lines}


def test_true_positions_score_1_and_false_ones_cost_precision(simulation: Path, tmp_path: Path) -> None:
    truth = Truth(simulation)
    xy = truth.positions / truth.pixel_size
    job = tmp_path / "AutoPick" / "job001"
    (job / "movies").mkdir(parents=True)
    file = job / "movies" / "mic_0001_autopick.star"
    write_coordinates(file, pd.DataFrame(xy, columns=["coordinate_x", "coordinate_y"]))
    perfect = values(score_picks(job, truth, "pick_template"))
    assert perfect["picks, F1"] == 1.0
    far = np.vstack([xy, [[256.0, 256.0], [180.0, 300.0]]])
    far = far[[*range(len(xy)), *[len(xy) + i for i in range(2) if np.linalg.norm(xy - far[len(xy) + i], axis=1).min() > 30]]]
    assert len(far) > len(xy), "the test's false picks lie on particles: choose other places"
    write_coordinates(file, pd.DataFrame(far, columns=["coordinate_x", "coordinate_y"]))
    spoilt = values(score_picks(job, truth, "pick_template"))
    assert spoilt["picks, recall"] == 1.0
    assert spoilt["picks, precision"] < 1.0


def test_the_error_of_the_defocus_is_what_was_added(simulation: Path, tmp_path: Path) -> None:
    found = read_micrographs(simulation / "truth" / "micrographs.star")
    off = found.with_columns(defocus_u=found.column("defocus_u") + 700.0, defocus_v=found.column("defocus_v") + 700.0)
    write_micrographs(tmp_path / "micrographs_ctf.star", off)
    lines = score_ctf(tmp_path, Truth(simulation), "ctf")
    assert values(lines)["defocus, median error"] == pytest.approx(700.0, abs=0.1)
    assert not any(line.passed for line in lines if line.high is not None)
    assert values(lines)["astigmatism's angle, median error"] == pytest.approx(0, abs=0.1)
    write_micrographs(tmp_path / "micrographs_ctf.star", found.with_columns(defocus_angle=found.column("defocus_angle") + 12.0))
    turned = values(score_ctf(tmp_path, Truth(simulation), "ctf"))
    assert turned["astigmatism's angle, median error"] == pytest.approx(12, abs=0.1)
    assert turned["defocus, largest error"] < 0.1 < turned["astigmatism as a vector, median error"]


def test_classes_are_scored_after_the_last_iteration(simulation: Path, tmp_path: Path) -> None:
    truth = Truth(simulation)
    particles = read_particles(simulation / "truth" / "particles.star")
    n = len(particles)
    write_particles(tmp_path / "run_it001_data.star", particles.with_columns(class_number=np.ones(n, int)))
    assert values(score_views(tmp_path, truth, "class2d"))["views within a class, median distance"] > 5
    write_particles(tmp_path / "run_it002_data.star", particles.with_columns(class_number=np.arange(n) + 1))
    assert values(score_views(tmp_path, truth, "class2d"))["views within a class, median distance"] == pytest.approx(0, abs=0.01)
    assert score_structures(tmp_path, truth, "class3d") == [], "there is one structure"
    true = np.where(np.arange(n) < n // 2, 1, 2)
    truth.particles = truth.particles.with_columns(class_number=true)
    found = 3 - true
    found[0] = 3 - found[0]
    write_particles(tmp_path / "run_it003_data.star", particles.with_columns(class_number=found))
    purity = values(score_structures(tmp_path, truth, "class3d"))
    assert purity["class purity"] == pytest.approx(100 * (n - 1) / n)
    assert purity["class purity of one class for all"] == pytest.approx(100 * (n - n // 2) / n)


def test_true_poses_and_the_true_map_score_as_such(simulation: Path, tmp_path: Path) -> None:
    truth = Truth(simulation)
    particles = read_particles(simulation / "truth" / "particles.star")
    # picked 3 px beside the particle: the origin says so, and the shift error must still be 0
    shifted = particles.with_columns(coordinate_x=particles.column("coordinate_x") + 3.0, origin_x=3.0 * truth.pixel_size)
    write_particles(tmp_path / "run_data.star", shifted)
    full, _ = read_map(simulation / "truth" / "map.mrc")
    pixel = 2 * truth.pixel_size
    density = rescale_map(torch.from_numpy(full), truth.pixel_size, pixel, 64).numpy()
    noise = torch.randn(2, *density.shape, generator=torch.Generator().manual_seed(1)).numpy() * density.std() * 0.05
    for half in (1, 2):
        write_map(tmp_path / f"run_half{half}_class001_unfil.mrc", density + noise[half - 1], pixel)
    found = values(score_run({"refine_2x": tmp_path}, simulation))
    assert found["pose, median error"] < 0.01
    assert found["shift, median error"] < 0.01
    assert found["particles that are true ones"] == 100.0
    assert found["mirror image (1) or not (0)"] == 0.0
    assert found["map against truth, FSC 0.5"] < 9.0


def test_tables_show_reference_spread_and_verdict() -> None:
    runs = [[Measurement("ctf", "defocus", value, "Å", high=150.0), Measurement("ctf", "free", 1.0, "")] for value in (90.0, 200.0, 110.0)]
    rows = table(runs)
    assert rows[0] == ("ctf", "defocus", "≤ 150 Å", "110 (90 to 200) Å", "FAIL")
    assert rows[1][-1] == ""
    assert rows[1][2:4] == ("–", "1 (1 to 1)")
    assert "110 (90 to 200)" in in_columns([HEADINGS, *rows])
    assert not Measurement("x", "y", float("nan"), "").passed


def test_runtimes_over_repeats() -> None:
    """The last job of a name that passed counts, of a run that did not pass whole no sum."""

    def job(name: str, seconds: float, verdict: str = "PASS") -> Row:
        return Row("job001", type="Class2D", description=name, runtime_s=seconds, bytes=2000, verdict=verdict)

    runs = [[job("a", 9.0), job("a", 1.0), job("b", 10.0)], [job("a", 3.0), job("b", 70.0)], [job("a", 2.0), job("b", 5.0, "FAIL")]]
    assert spread_over_repeats(runs) == [
        ("a", "2.0 s (1.0 s to 3.0 s)", "2.0 kB (2.0 kB to 2.0 kB)", "4 PASS"),
        ("b", "40.0 s (10.0 s to 1m10s)", "2.0 kB (2.0 kB to 2.0 kB)", "2 PASS, 1 FAIL"),
        ("Sum", "42.0 s (11.0 s to 1m13s)", "4.0 kB (4.0 kB to 4.0 kB)", "2 of 3 runs passed whole"),
    ]


def test_the_recipe_takes_every_variable_of_the_tiers(simulation: Path) -> None:
    for tier in TIERS:
        recipe = load_recipe("aldolase", recipe_variables(simulation, tier))
        assert recipe.variables["symmetry"] == "D2"


def test_unknown_tier_is_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tiny"):
        run_bench("aldolase", tier="huge", repeat=1, out=tmp_path / "bench", settings={})
    assert not (tmp_path / "bench").exists()


@pytest.mark.parametrize(("recipe", "settings"), [("no_such", {}), ("aldolase", {"clases_2d": "5"})])
def test_a_recipe_that_cannot_be_is_refused_before_work(recipe: str, settings: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no_such|clases_2d"):
        run_bench(recipe, tier="tiny", repeat=1, out=tmp_path / "bench", settings=settings)
    assert not (tmp_path / "bench").exists()


def test_repeats_of_a_recipe_of_ones_own(
    simulation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two repeats in projects of their own; both tables, the spread, and one page that needs nothing beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(simulation, "out/simulated")
    command = api._verglas

    def without_simulating(words: list[str], where: Path, say: TextIO) -> int:
        return 0 if words[0] == "simulate" else command(words, where, say)

    monkeypatch.setattr(api, "_verglas", without_simulating)
    variables = load_recipe("aldolase").variables
    lines = [f"{name} = {json.dumps(value)}" for name, value in variables.items()]
    Path("mine.toml").write_text("\n".join(['name = "mine"', "[variables]", *lines, _TWO_STEPS]))
    code = run_bench("mine.toml", tier="tiny", repeat=2, out=Path("out"), settings={"patches": "1"})
    said = capfd.readouterr().out
    assert said.count("MotionCorr (motion)") == 3 and "2 of 2 runs scored" in said
    spread = next(line for line in said.splitlines() if "motion, rms error" in line)
    assert re.search(r"[\d.]+ \([\d.]+ to [\d.]+\) Å", spread)
    jobs = next(line for line in said.splitlines() if line.startswith("MotionCorr (motion)"))
    assert re.search(r"[\d.]+ s \([\d.]+ s to [\d.]+ s\) .*2 PASS", jobs)
    assert (code == 0) == ("PASS: 2 of 2" in said)
    page = Path("out/report.html").read_text()
    assert "run2: Jobs" in page and "run2: Timeline" in page and "motion, rms error" in page and "data:image/png" in page
    assert "http" not in page and "2 of 2 runs passed whole" in page


_TWO_STEPS = """
[steps.movies]
job = "Import"
params.files = "{movies}"
params.pixel_size = "{pixel_size}"
[steps.motion]
job = "MotionCorr"
inputs.movies = "{movies.movies}"
inputs.gain = "{gain}"
params.dose_per_frame = "{dose_per_frame}"
params.patch_x = "{patches}"
params.patch_y = "{patches}"
params.random_seed = "{seed}"
"""


def test_a_failed_step_is_no_result(tmp_path: Path) -> None:
    job = tmp_path / "CtfFind" / "job003"
    job.mkdir(parents=True)
    record = {"type": "CtfFind", "name": "CtfFind/job003", "step": "aldolase/ctf", "state": "finished", "verdict": "FAIL"}
    (job / "record.json").write_text(json.dumps(record))
    assert step_folders(tmp_path) == {}
    (job / "record.json").write_text(json.dumps(record | {"verdict": "PASS"}))
    assert step_folders(tmp_path) == {"ctf": job}


def test_stats_compares_with_the_truth(simulation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second table in every form but CSV; nothing of a job whose output was changed since."""
    job = tmp_path / "CtfFind" / "job001"
    job.mkdir(parents=True)
    write_micrographs(job / "micrographs_ctf.star", read_micrographs(simulation / "truth" / "micrographs.star"))
    output = inspect_output(job, "micrographs_ctf.star")
    Record("CtfFind", "CtfFind/job001/", step="aldolase/ctf", state="finished", verdict="PASS", outputs=[output]).write(job)
    plain = {"as_json": False, "as_csv": False, "html": None}
    assert stats_command(tmp_path, **plain, truth=simulation) == 0
    jobs, measured = capsys.readouterr().out.split("\n\nStep ")
    assert "CtfFind" in jobs and "defocus, median error" in measured and "≤ 150 Å" in measured and "PASS" in measured
    assert stats_command(tmp_path, **(plain | {"as_json": True}), truth=simulation) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["job"] for row in found["jobs"]] == ["job001"] and found["measurements"][0]["passed"]
    assert stats_command(tmp_path, **(plain | {"html": tmp_path / "page.html"}), truth=simulation) == 0
    assert "Measured against the truth" in (tmp_path / "page.html").read_text()
    with pytest.raises(InputError, match=r"no simulation\.json"):
        stats_command(tmp_path, **plain, truth=tmp_path)
    with pytest.raises(InputError, match="--csv"):
        stats_command(tmp_path, **(plain | {"as_csv": True}), truth=simulation)
    capsys.readouterr()
    (job / "micrographs_ctf.star").write_text("data_\n")
    assert stats_command(tmp_path, **plain, truth=simulation) == 1
    assert "defocus" not in capsys.readouterr().out


def test_the_plan_of_the_shipped_recipe_is_understood(simulation: Path, tmp_path: Path) -> None:
    for words in (["new", "."], ["run", "aldolase", "--plan", "--set", f"movies={simulation}/movies/*.tif", "--json"]):
        done = subprocess.run([sys.executable, "-m", "verglas", *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    what = {step["step"]: step["what"] for step in json.loads(done.stdout)["steps"]}
    assert what.pop("import_micrographs") == "skipped"
    assert list(what.values()) == ["planned"] * 22


def test_apoferritin_is_the_same_recipe_from_micrographs_on(tmp_path: Path) -> None:
    (tmp_path / "micrographs").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "micrographs" / name).write_bytes(b"")
    words = ["run", "apoferritin", "--plan", "--until", "pick_log", "--json"]
    subprocess.run([sys.executable, "-m", "verglas", "new", "."], cwd=tmp_path, check=True)
    done = subprocess.run([sys.executable, "-m", "verglas", *words], cwd=tmp_path, capture_output=True, text=True, check=True)
    what = {step["step"]: step["what"] for step in json.loads(done.stdout)["steps"]}
    assert what == {
        "import_movies": "skipped",
        "motion": "skipped",
        "import_micrographs": "planned",
        "ctf": "planned",
        "good_micrographs": "planned",
        "pick_log": "planned",
    }
    theirs, ours = load_recipe("aldolase"), load_recipe("apoferritin")
    assert [step.name for step in ours.steps] == [step.name for step in theirs.steps]
    assert set(ours.variables) == set(theirs.variables)
