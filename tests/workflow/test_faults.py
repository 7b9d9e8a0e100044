"""Real faults in a real job: whatever goes wrong, the exit code isn't 0, the verdict is FAIL, and no quality figure is shown."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from verglas.project.project import Project
from workflow.commands import start, table, wait_for, wait_until_free

Job = Callable[..., int]
FIGURE = "4 rows, 2 optics groups"  # what a sound run of the job says of itself


def assert_failed(capsys: pytest.CaptureFixture[str], reason: str, root: Path = Path()) -> None:
    """The table says FAIL with the reason, and shows no figure in any form."""
    code, rows = table(capsys, root)
    failed = [row for row in rows if row["verdict"] == "FAIL"]
    assert code == 1
    assert failed, rows
    row = failed[-1]
    assert reason in row["notes"]
    assert row["metrics"] == {}
    assert FIGURE not in json.dumps(row)


def test_sound_job_passes(job: Job, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job() == 0
    code, rows = table(capsys)
    assert code == 0
    assert rows[0]["verdict"] == "PASS"
    assert FIGURE in rows[0]["notes"]
    assert (work / "J/RELION_JOB_EXIT_SUCCESS").exists()


@pytest.mark.parametrize(
    "fault, reason",
    [
        ("die_read", "killed by SIGKILL"),
        ("die_compute", "killed by SIGKILL"),
        ("die_write", "killed by SIGKILL"),
        ("die_judging", "outputs could not be checked"),
        ("segfault", "killed by SIGSEGV"),
        ("wrong_exit", "exit code 7"),
        ("exit_file_missing", "exit file missing"),
        ("exception", "ZeroDivisionError: division by zero"),
        ("out_of_memory", "out of memory"),
        ("output_missing", "join_particles.star is missing"),
        ("output_empty", "join_particles.star is empty"),
        ("output_cut", "join_particles.star cannot be read"),
        ("output_no_rows", "join_particles.star"),
        ("output_old", "older than the start"),
        ("nothing_done", "none of 0 rows done"),
        ("all_failed", "none of 4 rows done"),
        ("counts", "item counts don't add up"),
        ("counts_negative", "item counts are not whole numbers"),
        ("measure_raises", "could not be measured: ValueError: no such column"),
        ("metric_out_of_range", "rows is out of its range 2 to …"),
        ("metric_nan", "rows is not a number"),
        ("metric_none", "rows was not measured"),
        ("metric_gone", "resolution was not measured"),
        ("input_changed", "input a.star changed during the run"),
        ("input_gone", "input a.star vanished during the run"),
        ("file_too_large", "no space left"),
    ],
)
def test_fault_in_the_job(fault: str, reason: str, job: Job, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job(fault) == 1
    said = capsys.readouterr().out
    assert "FAIL" in said and FIGURE not in said
    assert_failed(capsys, reason)
    assert (work / "J/RELION_JOB_EXIT_FAILURE").exists()
    assert not (work / "J/RELION_JOB_EXIT_SUCCESS").exists()


def test_a_stale_output_that_is_touched_is_not_taken_for_this_run(job: Job, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job("measure_raises") == 1
    stale = work / "J/join_particles.star"
    assert stale.exists()
    os.utime(stale, (time.time() + 60, time.time() + 60))
    assert job("not_written_but_touched") == 1
    assert_failed(capsys, "join_particles.star is missing")


def test_an_output_of_a_sound_run_is_kept(job: Job, work: Path) -> None:
    assert job() == 0
    before = (work / "J/join_particles.star").stat().st_mtime_ns
    assert job("not_written_but_touched") == 0
    assert (work / "J/join_particles.star").stat().st_mtime_ns == before


@pytest.mark.parametrize("phase", ["read", "compute", "write"])
def test_kill_9_of_everything_in_a_phase(phase: str, work: Path, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    running = start(f"pause_{phase}")
    child = int(wait_for(work / "J/paused"))
    running.kill()
    assert running.wait() == -signal.SIGKILL
    for _ in range(200):
        if not Path(f"/proc/{child}").exists():
            break
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists(), "the job outlived its runner"
    wait_until_free(work / "J")
    assert_failed(capsys, f"died in phase {phase}")
    (work / "J/paused").unlink()
    assert job() == 0, "the same command goes on"


def test_kill_9_of_the_job_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = start("pause_compute")
    os.kill(int(wait_for(work / "J/paused")), signal.SIGKILL)
    assert running.wait() == 1
    assert_failed(capsys, "killed by SIGKILL")


@pytest.mark.parametrize("phase", ["staging", "judging"])
def test_kill_9_of_the_runner(phase: str, work: Path, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    running = start(f"pause_{phase}")
    wait_for(work / "J/paused")
    running.kill()
    running.wait()
    wait_until_free(work / "J")
    assert_failed(capsys, f"died in phase {phase}")
    assert job() == 0, "the same command goes on"


def test_abort_file(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = start("pause_compute")
    wait_for(work / "J/paused")
    (work / "J/RELION_JOB_ABORT_NOW").touch()
    assert running.wait(timeout=20) == 3
    assert_failed(capsys, "stopped by RELION_JOB_ABORT_NOW")
    assert (work / "J/RELION_JOB_EXIT_ABORTED").exists()
    assert not (work / "J/RELION_JOB_ABORT_NOW").exists()


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_stops_gently(number: int, name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = start("pause_compute")
    wait_for(work / "J/paused")
    running.send_signal(number)
    assert running.wait(timeout=20) == 3
    assert_failed(capsys, f"stopped by {name}")


def test_a_second_signal_ends_what_does_not_stop(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = start("ignores_stop")
    wait_for(work / "J/paused")
    running.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=20) == 3
    assert_failed(capsys, "ended at once by the user")


def test_time_limit(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job("pause_compute", "--time-limit", "0.5") == 3
    assert_failed(capsys, "timed out after 0.5 s")


def test_two_runs_in_one_folder(work: Path, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    running = start("pause_compute")
    wait_for(work / "J/paused")
    assert job() == 2
    assert "another run is working in this folder" in capsys.readouterr().out
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=20) == 3


def test_unknown_option_and_bad_value_never_start(job: Job, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job("none", "-auto_refine") == 2
    assert "-auto_refine: is not an option of verglas job JoinStar" in capsys.readouterr().out
    assert job("none", "--random_seed", "0,885") == 2
    assert "--random-seed: found '0,885', expected a whole number" in capsys.readouterr().out
    assert not (work / "J").exists()


def test_missing_input(job: Job, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job(files=("a.star", "gone.star")) == 2
    assert "--files: gone.star is not there" in capsys.readouterr().out
    assert not (work / "J").exists()


def test_input_that_the_job_refuses(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job(files=("a.star", "a.star")) == 2
    assert_failed(capsys, "2 files given, 1 of them different")


def test_unwritable_folder(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job("none", "--out", "/proc/verglas") == 2
    assert "cannot be made" in capsys.readouterr().out


def test_folder_with_files_of_something_else(job: Job, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "J").mkdir()
    (work / "J/join_particles.star").write_text((work / "a.star").read_text())
    assert job() == 2
    assert "holds files of something else" in capsys.readouterr().out


def test_full_disk(job: Job, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = work / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        filler = disk / "filler"
        filler.write_bytes(b"x" * (24 << 10))
        big = work / "a.star"
        big.write_text(big.read_text() + "".join(f"{i:06d}@a.mrcs m1.mrc 1\n" for i in range(3, 1500)))
        assert job("none", "--out", str(disk / "J")) == 1
        assert_failed(capsys, "no space left", disk)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_foreign_file_over_an_output_after_the_verdict(job: Job, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job() == 0
    shutil.copy(work / "a.star", work / "J/join_particles.star")
    assert_failed(capsys, "join_particles.star was changed after the job was judged")


def test_foreign_file_over_an_output_before_the_verdict(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from verglas.workflow import runner
    from workflow.faults import _foreign_output_before_judging

    monkeypatch.setattr(runner._Running, "judge", runner._Running.judge)
    _foreign_output_before_judging()
    assert job() == 1
    assert_failed(capsys, "join_particles.star was changed after the job ended")


def test_input_that_is_not_what_its_job_left(job: Job, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Project.create(work)
    assert job() == 0
    shutil.copy(work / "a.star", work / "JoinStar/job001/join_particles.star")
    assert job(files=("JoinStar/job001/join_particles.star", "b.star")) == 1
    assert_failed(capsys, "is not the file that JoinStar/job001 left")


def test_input_of_a_failed_job(job: Job, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Project.create(work)
    assert job("metric_nan") == 1
    assert job(files=("JoinStar/job001/join_particles.star", "b.star")) == 1
    assert_failed(capsys, "comes from JoinStar/job001, whose verdict is FAIL")


def test_damaged_record(job: Job, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job() == 0
    text = (work / "J/record.json").read_text()
    (work / "J/record.json").write_text(text[: len(text) // 2])
    _, rows = table(capsys)
    assert rows[0]["verdict"] != "PASS" and rows[0]["metrics"] == {}


def test_a_job_without_checks_is_never_pass(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job("unchecked") == 4
    assert table(capsys)[1][0]["verdict"] == "UNCHECKED"
