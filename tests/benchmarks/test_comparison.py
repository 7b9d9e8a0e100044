"""The comparison of engines: the same parameters for both, runs that are kept, and a table that says what the runs say."""

import json
from pathlib import Path

import pytest

from comparison import runs
from comparison.measures import COST, SCORES, wanted_speed, within_bar
from comparison.peak import product_peak
from comparison.plan import Task, own_parameters, parameters, settings_text, tasks, words
from comparison.runs import Run
from comparison.table import rows, table
from engines import main
from verglas.errors import InputError

BY_KEY = {measure.key: measure for measure in (*COST, *SCORES)}


def task(engine: str, job: str = "Refine3D", **changes: object) -> Task:
    given: dict = {"kind": "d2", "job": job, "engine": engine, "seed": 3, "n": 100, "box": 80, "pixel_size": 2.5, "threads": 2}
    return Task(**given | changes)


def run(engine: str, seed: int, *, verdict: str = "PASS", peak: float = 0.8, job: str = "Refine3D", **figures: float) -> Run:
    return Run(
        kind="d2",
        job=job,
        engine=engine,
        seed=seed,
        n=100,
        box=80,
        pixel_size=2.5,
        verdict=verdict,
        reasons=[] if verdict == "PASS" else ["broken"],
        figures=figures,
        path={"software": {"verglas": "0.1.0", "commit": "0123456789ab with changes", "relion": "3.1.3"}}
        | ({"coarse_precision": "bf16"} if engine == "verglas" else {"precision": "double"}),
        settings={},
        commands=[["job"]],
        peak={"float32": 0.2, "bf16": peak},
    )


def cells(runs: list[Run], name: str, engines: tuple[str, ...] = ("verglas", "relion")) -> tuple[str, ...]:
    return next(line[1:] for line in rows(runs, engines) if line[0] == name)


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's peak from small products, not from a second of large ones."""
    monkeypatch.setattr("engines.product_peak", lambda threads: product_peak(threads, size=256, seconds=0.01))


@pytest.mark.parametrize("job", ["Class2D", "Class3D", "Refine3D"])
def test_both_engines_get_the_same_parameters(job: str) -> None:
    kind = "two_states" if job == "Class3D" else "d2"
    ours, theirs = (parameters(task(engine, job, kind=kind)) for engine in ("verglas", "relion"))
    assert ours == theirs and ours["random_seed"] == 3
    command = " ".join(words(task("relion", job, kind=kind)))
    for part in ("--offset-range 5 ", "--offset-step 2 ", "--mask-diameter 150 ", "--random-seed 3 "):
        assert part in command
    if job != "Class2D":
        assert "--healpix-order 2 " in command and "--symmetry D2 " in command and "--ini-high 40 " in command


def test_words_are_those_of_the_products_command_line() -> None:
    ours, theirs = words(task("verglas")), words(task("relion"))
    assert ours[:4] == ["job", "Refine3D", "--particles", "particles.star"] and "--engine" not in ours
    assert ours[-2:] == ["--out", "Refine3D/verglas"] and ours[ours.index("--local-search-order") + 1] == "3"
    assert theirs[theirs.index("--engine") + 1] == "relion"
    assert theirs[theirs.index("--ranks") + 1] == "3" and theirs[theirs.index("--threads") + 1] == "1"
    changed = words(task("verglas", options=(("iterations", "4"), ("healpix_order", "3"))))
    assert changed[changed.index("--healpix-order") + 1] == "3" and changed[changed.index("--iterations") + 1] == "4"


def test_settings_that_differ_are_told_apart() -> None:
    text = settings_text([task("verglas", "InitialModel"), task("relion", "InitialModel"), task("relion")])
    assert any(line.startswith("InitialModel, verglas: starts 2") for line in text)
    assert any(line.startswith("InitialModel, relion: sgd_ini_resol 35") for line in text)
    assert "Refine3D, relion: ranks 3, threads 1" in text
    assert own_parameters("Refine3D", "relion") == {}


def test_what_cannot_be_compared_is_refused() -> None:
    common: dict = {"engines": ["verglas"], "seeds": [1], "n": 10, "box": 80, "pixel_size": 2.5, "threads": 1}
    with pytest.raises(InputError, match="Known: verglas, relion"):
        tasks([("d2", "Class2D")], **common | {"engines": ["cisTEM"]})
    with pytest.raises(InputError, match="--job"):
        tasks([("d2", "PostProcess")], **common)
    with pytest.raises(InputError, match="nothing to part"):
        tasks([("c1", "Class3D")], **common)
    order = tasks([("d2", "Class2D"), ("c1", "Refine3D")], **common | {"engines": ["verglas", "relion"], "seeds": [1, 2]})
    assert [(t.seed, t.kind, t.engine) for t in order[:3]] == [(1, "d2", "verglas"), (1, "d2", "relion"), (1, "c1", "verglas")]
    assert len(order) == 8


def test_table_has_medians_ranges_ratios_and_bars() -> None:
    figures = {
        "verglas": [(10, 2.0, 30), (20, 2.1, 32), (12, 2.6, 31)],
        "relion": [(250, 2.0, 33), (420, 2.1, 32), (360, 2.2, 33)],
    }
    made = [
        run(engine, seed, wall_s=seconds, pose_median=pose, half_shell=shell)
        for engine, some in figures.items()
        for seed, (seconds, pose, shell) in enumerate(some, start=1)
    ]
    assert cells(made, "wall time") == ("12 s (10 to 20)", "360 s (250 to 420)", "25.0× less", "met (≥ 20×)")
    assert cells(made, "pose, median error") == ("2.1 ° (2 to 2.6)", "2.1 ° (2 to 2.2)", "1.000", "met")
    assert cells(made, "half maps, FSC 0.143") == ("6.45 Å, shell 31 (30 to 32)", "6.06 Å, shell 33 (32 to 33)", "-2 shells", "met")
    assert cells(made, "coarse precision")[:2] == ("bf16", "–") and cells(made, "precision")[:2] == ("–", "double")
    assert cells(made, "version")[:2] == ("0.1.0 012345678 with changes", "3.1.3")
    assert "d2   Refine3D" in table(made, ("verglas", "relion"))
    slow = [run("verglas", 1, wall_s=30.0), run("relion", 1, wall_s=10.0)]
    assert cells(slow, "wall time")[2:] == ("3.0× more", "NOT MET (≥ 20×)")
    # without the yardstick there is nothing to be compared
    assert cells(made[:3], "wall time", ("verglas",)) == ("12 s (10 to 20)", "", "")


def test_failed_runs_have_no_figures() -> None:
    some = [run("verglas", 1, wall_s=10.0), run("verglas", 2, verdict="FAIL", wall_s=1.0), run("relion", 1, verdict="FAIL", wall_s=99.0)]
    assert cells(some, "runs that passed") == ("1 of 2", "0 of 1", "", "")
    assert cells(some, "wall time") == ("10 s", "–", "", "")


def test_bars() -> None:
    def met(key: str, ours: list[float], theirs: list[float], job: str = "Refine3D", peak: float = 0.8) -> bool | None:
        return within_bar(BY_KEY[key], job, ours, theirs, list(zip(ours, theirs)), peak)

    assert met("pose_median", [2.2], [2.0, 2.1]) and not met("pose_median", [2.21], [2.0, 2.1])
    assert met("purity", [86.5], [91.0, 93.0]) and not met("purity", [86.0], [91.0, 93.0])
    assert met("half_shell", [31], [32, 33]) and not met("half_shell", [30], [32, 33])
    # the area is held seed by seed, and no good median mends one that is worse
    assert met("fsc_area", [0.80, 0.90], [0.80, 0.905]) and not met("fsc_area", [0.78, 0.90], [0.80, 0.80])
    assert not met("wall_s", [10.0], [150.0]) and met("wall_s", [10.0], [150.0], peak=0.4) and met("wall_s", [10.0], [150.0], job="Class3D")
    assert met("cpu_s", [1.0], [2.0]) is None and met("pose_median", [], [2.0]) is None
    assert (wanted_speed("Class2D", 0.5), wanted_speed("InitialModel", 0.5), wanted_speed("Refine3D", 0.49)) == (20, 10, 10)


def test_product_peak_counts_two_operations_a_multiplication() -> None:
    peak = product_peak(1, size=256, seconds=0.02)
    assert set(peak) == {"float32", "bf16"} and all(1e-4 < rate < 20 for rate in peak.values())


def test_one_command_makes_runs_scores_and_keeps(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--job", "Class2D", "--particles", "40", "--box", "28", "--pixel-size", "6", "--engines", "verglas", "--snr", "1"]
    command += ["--threads", "1", "--option", "classes=1", "--option", "iterations=4", "--option", "psi_step=30", "--out", str(tmp_path)]
    assert main(command) == 0
    said = capfd.readouterr().out
    assert "views within 20° of it" in said and "TFLOP/s in bf16" in said and "classes 1, iterations 4" in said
    kept = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len(kept) == 1 and kept[0]["figures"]["particles"] == 40 and kept[0]["figures"]["iterations"] == 4
    assert kept[0]["figures"]["wall_s"] >= kept[0]["figures"]["job_s"] > 1e-3 and kept[0]["figures"]["cpu_s"] > 0
    record = next(tmp_path.glob("*/Class2D/verglas/record.json"))
    before = record.stat().st_mtime_ns
    assert main(command) == 0
    assert record.stat().st_mtime_ns == before and json.loads((tmp_path / "results.json").read_text())["runs"] == kept
    # a run with other words that is cut off leaves nothing that could be taken for the one before
    monkeypatch.setattr(runs, "timed", cut_off)
    with pytest.raises(KeyboardInterrupt):
        main([*command, "--option", "iterations=1"])
    called: list[list[str]] = []
    monkeypatch.setattr(runs, "timed", lambda words, where: called.append(words) or ({"wall_s": 1.0, "memory_mb": 1.0}, 1))
    assert main(command) == 1
    assert len(called) == 1 and not record.exists()


def cut_off(words: list[str], where: Path) -> None:
    (where / words[-1]).mkdir()
    raise KeyboardInterrupt


def test_a_failed_job_is_told_and_done_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["--job", "Class2D", "--particles", "10", "--box", "28", "--pixel-size", "6", "--engines", "verglas", "--out", str(tmp_path)]
    for _ in range(2):  # ten classes of ten particles
        assert main(command) == 1
        said = capfd.readouterr().out
        assert "FAIL: d2, seed 1, Class2D by verglas" in said and "0 of 1" in said and "verglas job Class2D" in said
    assert main([*command, "--set", "d3"]) == 2


@pytest.mark.relion
def test_relion_classifies_the_same_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["--job", "Class2D", "--particles", "40", "--box", "28", "--pixel-size", "6", "--engines", "relion", "--snr", "1"]
    command += ["--option", "classes=2", "--option", "iterations=2", "--option", "psi_step=30", "--threads", "1", "--out", str(tmp_path)]
    assert main(command) == 0, capfd.readouterr().out
    kept = json.loads((tmp_path / "results.json").read_text())["runs"][0]
    assert kept["engine"] == "relion" and kept["commands"][1][0] == "relion_refine"
    assert kept["figures"]["particles"] == 40 and kept["figures"]["cpu_s"] > 0
