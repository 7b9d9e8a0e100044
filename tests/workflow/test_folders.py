"""Folders of jobs: going on, refusing other work, stopping and cleaning; what a job leaves besides its outputs."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from verglas.cli.job import run_command
from verglas.cli.tidy import clean_command, stop_command
from verglas.errors import InputError
from verglas.jobs import joinstar
from verglas.project.jobfiles import read_job_star
from verglas.project.pipeline import Status
from verglas.project.project import Project
from workflow.commands import start, wait_for

Job = Callable[..., int]


def record(folder: str = "J") -> dict[str, object]:
    found: dict[str, object] = json.loads((Path(folder) / "record.json").read_text())
    return found


def test_the_script_that_is_left_repeats_the_job(job: Job, work: Path) -> None:
    Project.create(work)
    assert job() == 0
    subprocess.run([work / "JoinStar/job001/run_submit.script"], check=True, capture_output=True)
    first, second = record("JoinStar/job001"), record("JoinStar/job002")
    assert second["verdict"] == "PASS"
    assert first["fingerprint"] == second["fingerprint"]
    assert first["outputs"][0]["sha256"] == second["outputs"][0]["sha256"]  # type: ignore[index]
    number, options = read_job_star(work / "JoinStar/job002")
    assert number == 13 and options["kind"] == "particles"


def test_edges_and_status_are_entered(job: Job, work: Path) -> None:
    project = Project.create(work)
    assert job() == 0
    assert job("exception", "--alias", "bad", files=("JoinStar/job001/join_particles.star", "b.star")) == 1
    found = project.pipeline()
    assert found.processes["JoinStar/job001/"].status is Status.SUCCEEDED
    assert found.processes["JoinStar/job002/"].status is Status.FAILED
    assert ("JoinStar/job001/join_particles.star", "JoinStar/job002/") in found.inputs
    assert ("b.star", "JoinStar/job002/") in found.inputs
    assert Path("JoinStar/bad").resolve().name == "job002"


def test_the_same_work_goes_on_in_the_folder_of_a_failed_run(job: Job, work: Path) -> None:
    Project.create(work)
    assert job("die_compute") == 1
    assert job() == 0
    assert [path.name for path in sorted((work / "JoinStar").iterdir())] == ["job001"]
    found = record("JoinStar/job001")
    assert len(found["previous"]) == 1  # type: ignore[arg-type]
    assert found["previous"][0]["verdict"] == "FAIL"  # type: ignore[index]
    assert job() == 0, "a finished job is repeated under the next number"
    assert record("JoinStar/job002")["verdict"] == "PASS"


def test_continue_takes_everything_from_the_record(job: Job, work: Path) -> None:
    from verglas.cli.job import run_command

    assert job("die_compute") == 1
    assert run_command("JoinStar", ["--continue", "J"]) == 1, "the fault is still in"
    assert run_command("JoinStar", ["--continue", "J", "--threads", "1"]) == 1
    with pytest.raises(InputError, match="begun with other parameters: random_seed 1 → 2"):
        run_command("JoinStar", ["--continue", "J", "--random-seed", "2"])


@pytest.mark.parametrize(
    "words, files, message",
    [
        (("--random-seed", "2"), ("a.star", "b.star"), "begun with other parameters: random_seed 1 → 2"),
        ((), ("b.star", "c.star"), "begun with other inputs"),
    ],
)
def test_other_work_is_refused(
    words: tuple[str, ...], files: tuple[str, ...], message: str, job: Job, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "c.star").write_text((work / "a.star").read_text())
    assert job() == 0
    assert job("none", *words, files=files) == 2
    assert message in capsys.readouterr().out
    assert record()["verdict"] == "PASS", "the first result stands"


def test_changed_inputs_are_refused_in_the_same_folder(
    job: Job, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where more is asked for, as of iterations."""
    assert job() == 0
    (work / "a.star").write_text((work / "a.star").read_text().replace("0.1", "0.07"))
    assert job() == 2
    assert "begun with inputs of other content" in capsys.readouterr().out
    monkeypatch.setattr(joinstar, "JOB", replace(joinstar.JOB, grows="kind"))
    with pytest.raises(InputError, match="begun with inputs of other content"):
        run_command("JoinStar", ["--files", "a.star", "b.star", "--kind", "micrographs", "--out", "J"])


def test_stop(work: Path) -> None:
    running = start("pause_compute")
    wait_for(work / "J/paused")
    assert stop_command("J") == 0
    assert running.wait(timeout=20) == 3
    with pytest.raises(InputError, match="is not running"):
        stop_command("J")


def test_clean_removes_intermediates_alone(job: Job, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verglas.jobs import joinstar

    assert job() == 0
    (work / "J/run_it001_data.star").write_text("x")
    monkeypatch.setattr(joinstar, "JOB", replace(joinstar.JOB, clean=lambda out: out.glob("*.star")))
    assert clean_command(["J"], dry_run=True) == 0
    assert (work / "J/run_it001_data.star").exists()
    assert clean_command(["J"], dry_run=False) == 0
    left = {path.name for path in (work / "J").glob("*.star")}
    assert left == {"join_particles.star", "job.star"}, left


def test_patterns_stand_for_files_and_names_for_themselves(work: Path) -> None:
    from verglas.cli.options import parse, to_request
    from verglas.jobs.registry import job_type

    declared = job_type("JoinStar")

    def files(*words: str) -> list[Path]:
        found: list[Path] = to_request(declared, parse(declared, ["--files", *words])).inputs["files"]
        return found

    assert files("*.star") == [Path("a.star"), Path("b.star")]
    (work / "p[ab].star").touch()
    assert files("p[ab].star") == [Path("p[ab].star")]
    assert files("c*.star") == [Path("c*.star")], "no match stays as it is, and is refused as missing"


def test_the_numerical_libraries_are_loaded_once_for_a_job_and_its_judge_but_for_light_ones(
    job: Job, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("verglas.workflow.runner.preload", lambda: loaded.append("here"))
    assert job() == 0 and joinstar.JOB.light and loaded == []
    monkeypatch.setattr(joinstar, "JOB", replace(joinstar.JOB, light=False))
    assert run_command("JoinStar", ["--files", "a.star", "b.star", "--out", "K"]) == 0 and loaded == ["here"]
