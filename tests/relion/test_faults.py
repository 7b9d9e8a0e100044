"""Whatever goes wrong with RELION is a FAIL with the reason, or an error before anything starts; and what was killed goes on."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from command_line import Ran, job
from relion.conftest import COUNT, DIAMETER
from relion.test_files import iteration
from verglas.errors import InputError
from verglas.particles import read_particles, write_particles
from verglas.project.project import Project
from verglas.records.lock import is_running
from verglas.records.record import read_record

StandIn = Callable[[str, str], None]
CLASS2D = ("Class2D", "--particles", "particles.star", "--mask-diameter", DIAMETER, "--threads", 1, "--classes", 2, "--iterations", 2)
REFINE3D = (
    *("Refine3D", "--particles", "particles.star", "--reference", "truth.mrc", "--mask-diameter", DIAMETER, "--threads", 1),
    *("--symmetry", "D2", "--ini-high", 40, "--healpix-order", 1, "--local-search-order", 2),
)


def by_relion(*words: object, out: str | None = "J") -> Ran:
    return job(*words, "--engine", "relion", out=out)  # type: ignore[arg-type]


def failed(ran: Ran, reason: str) -> None:
    assert ran.code == 1 and ran.record is not None and ran.record.verdict == "FAIL", ran.said
    assert reason in ran.reasons and ran.record.metrics == {} and ran.record.note == ""
    assert Path("J/RELION_JOB_EXIT_FAILURE").exists() and not Path("J/RELION_JOB_EXIT_SUCCESS").exists()


ENDS: list[tuple[str, str]] = [
    (
        'echo "WARNING: Option --nonsense\tis not a valid RELION argument" >&2; touch ${folder}RELION_JOB_EXIT_SUCCESS',
        "does not know the option --nonsense",
    ),
    (
        'echo "WARNING: Option --nonsense\tis not a valid RELION argument"; sleep 60',
        "does not know the option --nonsense",
    ),
    ('printf "ERROR: \\nFFTW plans cannot be created\\n=== Backtrace ===\\n" >&2; exit 1', "RELION: FFTW plans cannot be created"),
    ("exit 3", "RELION: exit code 3"),
    ("kill -SEGV $$", "RELION: killed by SIGSEGV"),
    ("exit 0", "RELION ended without leaving RELION_JOB_EXIT_SUCCESS"),
    ("touch ${folder}RELION_JOB_EXIT_FAILURE", "RELION ended without leaving RELION_JOB_EXIT_SUCCESS"),
    ("touch ${folder}RELION_JOB_EXIT_SUCCESS", "RELION ended well and left no run_it002_data.star"),
    ("cp particles.star ${folder}run_it002_data.star; touch ${folder}RELION_JOB_EXIT_SUCCESS", "no column class_number"),
    ("cp sorted.star ${folder}run_it002_data.star; touch ${folder}RELION_JOB_EXIT_SUCCESS", "run_it002_model.star is missing"),
]


@pytest.mark.parametrize("body, reason", ENDS)
def test_a_bad_end_of_relion(body: str, reason: str, work: Path, stand_in: StandIn) -> None:
    stand_in("relion_refine", body)
    write_particles("sorted.star", read_particles("particles.star").with_columns(class_number=1))
    began = time.monotonic()
    failed(by_relion(*CLASS2D), reason)
    assert time.monotonic() - began < 30, "an option that RELION doesn't know ends it at once"


def test_errors_before_the_start_leave_nothing(work: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("relion_refine", "exit 1")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((*CLASS2D, "--coarse-precision", "float32", "--engine", "relion"), "--coarse-precision: cannot be given to RELION"),
        ((*CLASS2D, "--engine", "relion", "--relion-args", "--K 7"), "--K is set by the job"),
        ((*CLASS2D, "--engine", "eman"), "'eman' is not known"),
        ((*CLASS2D, "--ranks", 3), "Add --engine relion"),
        ((*CLASS2D, "--engine", "relion", "--ranks", "x"), "expected a whole number"),
        ((*REFINE3D, "--engine", "relion", "--ranks", 2), "too few"),
        (("Import", "--files", "truth.mrc", "--kind", "reference", "--engine", "relion"), "no program for Import"),
        (("Class2D", "--mask-diameter", 99, "--engine", "relion"), "--particles: is needed"),
    ]
    for words, reason in cases:
        ran = job(*words, out="J")  # type: ignore[arg-type]
        assert ran.code == 2 and reason in ran.said and not Path("J").exists(), (words, ran.said)
    monkeypatch.setenv("PATH", str(work))
    ran = by_relion(*CLASS2D)
    assert ran.code == 2 and "relion_refine is not on the PATH" in ran.said and not Path("J").exists()


def test_the_engine_is_part_of_the_work(work: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe runs a step again for the other engine, keeps ours where RELION has no program or no word, and says so."""
    from verglas.cli.run import run_command, to_engine_of_run

    stand_in("relion_refine", "exit 1")
    stand_in("relion_refine_mpi", "exit 1")
    stand_in("relion_mask_create", "exit 1")
    Project.create(work)
    Path("r.toml").write_text(
        '[steps.map]\njob = "Import"\nparams = { kind = "reference", files = "truth.mrc" }\n'
        '[steps.mask]\njob = "MaskCreate"\ninputs.map = "{map.reference}"\nparams.lowpass_filter = 30.0\n'
        '[steps.sort]\njob = "Class2D"\ninputs.particles = "particles.star"\n'
        'params = { mask_diameter = 140.0, classes = 1, iterations = 2, threads = 1 }\nrelion_args = "--maxsig 5"\n'
    )
    assert run_command("r.toml", [], plan=False, as_json=False) == 0
    assert read_record(Path("Class2D/job003")).engine == "verglas"  # type: ignore[union-attr]
    capsys.readouterr()
    by = to_engine_of_run("relion", None)
    assert run_command("r.toml", [], plan=False, as_json=False, engine=by) == 1, "the stand-in fails"
    said = capsys.readouterr().out
    assert "map: kept" in said and "mask: kept" in said and "by our engine, as RELION cannot: --inimask-threshold" in said
    record = read_record(Path("Class2D/job004"))
    assert record is not None and record.engine == "relion" and record.relion["extra"] == ["--maxsig", "5"]
    assert run_command("r.toml", [], plan=False, as_json=False) == 0
    assert "sort: kept, Class2D/job003" in capsys.readouterr().out
    assert run_command("r.toml", ["sort.engine=verglas"], plan=False, as_json=False, engine=by) == 0
    with pytest.raises(InputError, match=r"--device: cannot be given to RELION.*Give the step engine"):
        run_command("r.toml", ["sort.device=cpu"], plan=False, as_json=False, engine=by)


@pytest.mark.parametrize("words", [CLASS2D, REFINE3D], ids=["Class2D", "Refine3D"])
def test_an_iteration_to_go_on_after_is_given_to_relion(words: tuple[object, ...], work: Path, stand_in: StandIn) -> None:
    """An optimiser that is named, not the last one: what came after it is removed, and RELION is told to continue from it."""
    for program in ("relion_refine", "relion_refine_mpi", "mpirun"):
        stand_in(program, "exit 1")
    failed(by_relion(*words, "--iterations", 5), "RELION: exit code 1")
    for number in (1, 2, 3):
        iteration(work, number, halves=words is REFINE3D)
    ran = job(str(words[0]), "--continue", "J/run_it002_optimiser.star")
    record = read_record(Path("J"))
    assert ran.code == 1 and "going on after iteration 2" in ran.said, ran.said
    assert record is not None and record.engine == "relion"
    (command,) = record.facts["relion_commands"]
    assert "--continue J/run_it002_optimiser.star --o J/run " in command and " --i " not in command
    assert Path("J/run_it002_data.star").exists() and not list(Path("J").glob("run_it003_*"))
    gone = job(str(words[0]), "--continue", "J/run_it003_optimiser.star")
    assert gone.code == 2 and "run_it003_optimiser.star: is not there" in gone.said


def start(*words: object) -> subprocess.Popen[bytes]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "verglas", "job", *map(str, words), "--engine", "relion", "--out", "J"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for(*paths: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not all(Path(path).exists() for path in paths):
        assert time.monotonic() < deadline, (paths, Path("J/run.out").read_text() if Path("J/run.out").exists() else "nothing began")
        time.sleep(0.02)


def programs(folder: Path) -> Iterator[int]:
    """RELION's processes that work in `folder`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            alive = (process / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
            if alive and (process / "cwd").readlink() == folder and b"relion_refine" in (process / "cmdline").read_bytes():
                yield int(process.name)
        except OSError:
            continue


def wait_until_gone(folder: Path, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while left := list(programs(folder)):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)


@pytest.mark.relion
def test_killed_with_all_its_ranks_and_gone_on_with(work: Path) -> None:
    """kill -9 of the runner ends mpirun and every rank; the same command goes on after the last whole iteration."""
    words = (*REFINE3D, "--iterations", 3)
    process = start(*words)
    wait_for("J/run_it001_optimiser.star", "J/run_it001_half2_model.star", "J/run_it001_data.star")
    assert len(list(programs(work))) >= 4, "mpirun and three ranks"
    process.kill()
    process.communicate()
    wait_until_gone(work)
    for _ in range(100):
        if not is_running(Path("J")):
            break
        time.sleep(0.05)
    # a later iteration that was cut off while it was written
    Path("J/run_it002_data.star").write_text(Path("J/run_it001_data.star").read_text()[:2000])
    ran = by_relion(*words)
    assert ran.code == 0 and "going on after iteration 1" in ran.said, ran.said
    assert ran.record is not None and len(ran.record.previous) == 1 and ran.record.metrics["items_out"] == COUNT
    assert "--continue J/run_it001_optimiser.star" in ran.record.facts["relion_commands"][0]


@pytest.mark.relion
def test_stopped_gently_and_started_over_where_nothing_is_whole(work: Path) -> None:
    """RELION ends by itself where it finds the abort file; exit code 3, no PASS."""
    words = (*CLASS2D, "--psi-step", 4)
    process = start(*words)
    wait_for("J/run_it000_optimiser.star")
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0].decode()
    record = read_record(Path("J"))
    assert process.returncode == 3 and record is not None and record.verdict == "FAIL", said
    assert record.reasons == ["stopped by SIGTERM"] and Path("J/RELION_JOB_EXIT_ABORTED").exists()
    assert not list(programs(work)) and not Path("J/RELION_JOB_ABORT_NOW").exists()
    for path in Path("J").glob("run_it00[1-9]*"):
        path.unlink()
    ran = by_relion(*words)
    assert ran.code == 0 and "starting over: RELION left no whole iteration" in ran.said, ran.said


@pytest.mark.relion
def test_a_rank_that_dies_ends_the_job(work: Path) -> None:
    process = start(*REFINE3D)
    wait_for("J/run_it000_optimiser.star")
    ranks = [pid for pid in programs(work) if b"mpirun" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(max(ranks), signal.SIGKILL)
    said = process.communicate(timeout=60)[0].decode()
    record = read_record(Path("J"))
    assert process.returncode == 1 and record is not None and record.verdict == "FAIL", said
    assert "signal 9 (Killed)" in record.reasons[0]
    wait_until_gone(work)


def test_what_the_programs_of_a_program_take_is_counted(work: Path, stand_in: StandIn) -> None:
    """Memory of all that lives at a time, and CPU seconds of children's children; of the Python that waits for them, no memory."""
    hog = "head -c 60000000 /dev/zero | tail | { sleep 1; cat > /dev/null; }"
    stand_in("relion_refine", f"( ( {hog} ) & ( {hog} ) & i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; wait ); exit 1")
    ran = by_relion(*CLASS2D)
    assert ran.record is not None
    assert 1.1e8 < ran.record.usage["peak_memory_bytes"] < 1.6e8, "two of 60 MB"
    before = ran.record.usage["cpu_s"]
    stand_in("relion_refine", "exit 1")
    idle = by_relion(*CLASS2D)
    assert idle.record is not None and before - idle.record.usage["cpu_s"] > 0.2 and idle.record.usage["peak_memory_bytes"] < 2e9


@pytest.mark.relion
def test_relions_own_words_for_an_unknown_option_and_a_crash(work: Path) -> None:
    failed(by_relion(*CLASS2D, "--relion-args", "--skip_everything"), "does not know the option --skip_everything")
    assert "not a valid RELION argument" in Path("J/run.err").read_text()
    shown = shlex.join(read_record(Path("J")).command)  # type: ignore[union-attr]
    assert "--relion-args=--skip_everything" in shown
