"""One job on many ranks, as a user starts it: one folder, one verdict, the same map; ranks killed for real, and the job gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import command_line  # noqa: F401  everything is imported before the ranks are forked
from command_line import job
from ranks_for_tests import Launched, launch
from refine.sets import DIAMETER, particles
from verglas.io.mrc import read_map, read_stack, write_map, write_stack
from verglas.particles import read_particles, write_particles
from verglas.records.record import Record, read_record
from verglas.records.render import as_text
from verglas.records.table import collect

COMMON = ("--particles", "particles.star", "--mask-diameter", DIAMETER, "--threads", 1, "--offset-range", 3)
REFINE = ("Refine3D", *COMMON, "--reference", "map.mrc", "--symmetry", "D2", "--healpix-order", 1, "--iterations", 3)
CLASSIFY = ("Class2D", *COMMON, "--classes", 2, "--iterations", 3, "--psi-step", 24)
FINAL = ("run_class001.mrc", "run_half1_class001_unfil.mrc")


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small set, and its refinement by one process."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        images, table, truth = particles(80, 24, 8.0, 0.3)
        write_stack("images.mrcs", images.numpy(), 8.0)
        bare = table.with_columns(rot=None, tilt=None, psi=None, origin_x=None, origin_y=None, class_number=None)
        write_particles("particles.star", bare)
        write_map("map.mrc", (truth / truth.max()).numpy(), 8.0)
        patch.setattr("verglas.pictures.maps.draw_surface", lambda *_, **__: None)
        assert job(*map(str, REFINE), out="alone").code == 0
    return folder


def record_of(folder: str) -> Record:
    record = read_record(Path(folder))
    assert record is not None
    return record


def wait_for(path: str, ranks: Launched) -> None:
    for _ in range(3000):
        if Path(path).exists():
            return
        time.sleep(0.01)
    ranks.wait(0)
    raise AssertionError(f"{path} never came: {ranks.said()}")


def assert_same_maps(one: str, other: str, tolerance: float) -> None:
    for name in FINAL:
        first, second = read_map(f"{one}/{name}")[0], read_map(f"{other}/{name}")[0]
        assert np.abs(first - second).max() <= tolerance * first.std(), name


def test_two_ranks_are_one_job() -> None:
    ranks = launch(2, *REFINE, "--out", "two")
    assert ranks.wait() == [0, 0], ranks.said()
    assert ranks.logs[1].read_text() == "", "rank 0 speaks for all"
    assert ranks.logs[0].read_text().count("PASS") == 1
    assert_same_maps("alone", "two", 5e-3)
    record = record_of("two")
    assert record.verdict == "PASS" and record.items is not None and record.items["done"] == 80
    assert record.resources["ranks"] == 2 and list(record.resources["ranks_per_host"].values()) == [2]
    assert record.resources["backend"] == "gloo" and record.resources["threads"] == 1
    assert record.phases["communicate"] > 0 and record.phases["wait"] > 0
    assert {"ranks", "backend"}.isdisjoint(record_of("alone").resources.keys() - {"ranks"})
    assert record_of("alone").resources["ranks"] == 1 and "communicate" not in record_of("alone").phases
    files, alone = ({path.name for path in Path(folder).iterdir()} for folder in ("two", "alone"))
    assert files == alone


def test_what_all_ranks_use_is_in_the_record_and_the_table() -> None:
    assert launch(2, *CLASSIFY, "--out", "used").wait() == [0, 0]
    assert job(*map(str, CLASSIFY), out="used_alone").code == 0
    two, one = record_of("used"), record_of("used_alone")
    assert two.usage["peak_memory_bytes"] > 1.5 * one.usage["peak_memory_bytes"]
    assert two.usage["bytes_read"] > one.usage["bytes_read"]
    rows = {row.job: row.resources for row in collect(Path())}
    assert rows["used"] == "2/1/0" and rows["used_alone"] == "1/1/0"
    assert "2/1/0" in as_text(collect(Path()))
    assert np.allclose(*(read_stack(f"{folder}/run_it003_classes.mrcs") for folder in ("used", "used_alone")), atol=1e-4)


def test_a_first_map_by_two_ranks() -> None:
    words = ("InitialModel", *COMMON[:6], "--symmetry", "D2", "--starts", 1, "--iterations", 4, "--write-every", 2, "--sgd-fin-resol", 25)
    ranks = launch(2, *words, "--out", "first")
    assert ranks.wait() == [0, 0], ranks.said()
    assert job(*map(str, words), out="first_alone").code == 0
    one, two = (read_map(f"{folder}/initial_model.mrc")[0] for folder in ("first_alone", "first"))
    assert np.abs(one - two).max() < 1e-3 * one.std()
    assert {path.name for path in Path("first").rglob("*")} == {path.name for path in Path("first_alone").rglob("*")}


def descendants(ranks: Launched) -> list[int]:
    return [*ranks.pids, *(ranks.working(rank) for rank in range(len(ranks.pids)))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("rank,watcher", [(1, False), (1, True), (0, False)], ids=["rank 1", "rank 1's watcher", "rank 0"])
def test_case_19_a_rank_that_is_killed_ends_the_job_and_the_same_command_goes_on(rank: int, watcher: bool) -> None:
    """SIGKILL to what computes, or to what watches over it: one error that names the rank, nothing left running, and the same end."""
    out = f"killed_{rank}{watcher}"
    command = (*REFINE, "--out", out)
    ranks = launch(3, *command)
    wait_for(f"{out}/run_it001_optimiser.star", ranks)
    everyone = descendants(ranks)
    os.kill(ranks.pids[rank] if watcher else ranks.working(rank), signal.SIGKILL)
    began = time.monotonic()
    codes = ranks.wait(30)
    assert time.monotonic() - began < 20
    assert codes == [1, -signal.SIGKILL if watcher else 1, 1]
    time.sleep(0.2)
    assert not [pid for pid in everyone if alive(pid)], "orphans"
    record = record_of(out)
    assert record.verdict == "FAIL" and record.state == "finished" and record.metrics == {}
    assert len(record.reasons) == 1 and f"rank {rank} on " in record.reasons[0]
    assert ("is gone" if watcher else "was killed by SIGKILL") in record.reasons[0] and "goes on" in record.reasons[0]
    assert Path(out, "RELION_JOB_EXIT_FAILURE").exists()

    done = Path(out, "run_it001_data.star").stat().st_mtime_ns
    ranks = launch(3, *command)
    assert ranks.wait() == [0, 0, 0], ranks.said()
    assert Path(out, "run_it001_data.star").stat().st_mtime_ns == done, "a finished iteration was done again"
    assert "going on after iteration" in ranks.said()
    if not Path("undisturbed").exists():
        assert launch(3, *REFINE, "--out", "undisturbed").wait() == [0, 0, 0]
    assert_same_maps("undisturbed", out, 0.0)


def test_case_19_rank_0_s_runner_is_killed() -> None:
    """Nobody is left to judge: the record says that it runs, its lock is free, which reads as FAIL; the others end by themselves."""
    ranks = launch(2, *REFINE, "--out", "headless")
    wait_for("headless/run_it001_optimiser.star", ranks)
    everyone = descendants(ranks)
    os.kill(ranks.pids[0], signal.SIGKILL)
    assert ranks.wait(30) == [-signal.SIGKILL, 1]
    assert "rank 0 is gone" in ranks.logs[1].read_text()
    time.sleep(0.2)
    assert not [pid for pid in everyone if alive(pid)]
    assert next(row.verdict for row in collect(Path()) if row.job == "headless") == "FAIL"
    assert job(*map(str, REFINE), out="headless").code == 0, "another number of ranks may go on"


def test_a_rank_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGLAS_RANKS_TIMEOUT", "5")
    ranks = launch(2, *REFINE, "--out", "hung")
    wait_for("hung/run_it001_optimiser.star", ranks)
    everyone = descendants(ranks)
    os.kill(ranks.working(1), signal.SIGSTOP)
    assert ranks.wait(30) == [1, 1]
    reasons = record_of("hung").reasons
    assert len(reasons) == 1 and reasons[0].startswith("rank 1 on "), reasons
    assert "did not answer within 5 s" in reasons[0] or "does not answer (" in reasons[0], reasons
    time.sleep(0.2)
    assert not [pid for pid in everyone if alive(pid)]


def test_a_rank_that_never_starts_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verglas.workflow.line._ALL_CALL_S", 2.0)
    ranks = launch(2, *REFINE, "--out", "waiting", only=1)
    assert ranks.wait(30) == [1]
    assert record_of("waiting").reasons[0].startswith("rank 1: did not come within 2 s")


def test_a_wish_to_stop_is_rank_0_s_to_heed() -> None:
    """A launcher sends it to all; they stop together after an iteration, and go on later."""
    ranks = launch(2, *REFINE, "--out", "stopped")
    wait_for("stopped/run_it001_optimiser.star", ranks)
    for pid in reversed(ranks.pids):
        os.kill(pid, signal.SIGTERM)
    assert ranks.wait(30) == [3, 3]
    record = record_of("stopped")
    assert record.reasons == ["stopped by SIGTERM"] and Path("stopped/RELION_JOB_EXIT_ABORTED").exists()
    assert launch(2, *REFINE, "--out", "stopped").wait() == [0, 0]


@pytest.mark.parametrize("size", [1, 2])
def test_every_memory_mode_and_every_order_of_rows_give_the_same_map(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images kept in memory, streamed from disk, and in a table whose rows were shuffled: the same bits."""
    shuffled = read_particles("particles.star").subset(np.random.default_rng(2).permutation(80))
    write_particles("shuffled.star", shuffled)
    assert launch(size, *REFINE, "--out", f"kept{size}").wait() == [0] * size
    assert launch(size, "Refine3D", "--particles", "shuffled.star", *REFINE[3:], "--out", f"shuffled{size}").wait() == [0] * size
    monkeypatch.setattr("verglas.jobs.refinement._PRELOAD_BYTES", 0)
    assert launch(size, *REFINE, "--out", f"streamed{size}").wait() == [0] * size
    assert record_of(f"kept{size}").facts["preloaded"] and not record_of(f"streamed{size}").facts["preloaded"]
    assert_same_maps(f"kept{size}", f"streamed{size}", 0.0)
    assert_same_maps(f"kept{size}", f"shuffled{size}", 0.0)
    kept, other = (read_particles(f"{name}{size}/run_data.star").table.set_index("image_name") for name in ("kept", "shuffled"))
    assert other.index.tolist() == shuffled.table["image_name"].tolist()
    assert kept.equals(other.loc[kept.index])


def test_bad_input_is_said_once() -> None:
    ranks = launch(2, "Refine3D", *COMMON[:2], "--mask-diameter", 500, "--reference", "map.mrc", "--out", "bad")
    assert ranks.wait(30) == [2, 2]
    assert ranks.logs[1].read_text() == "" and "does not fit a box" in ranks.said()
    ranks = launch(2, "Refine3D", "--particles", "nowhere.star", "--mask-diameter", 100, "--reference", "map.mrc", "--out", "none")
    assert ranks.wait(30) == [2, 2]
    assert "nowhere.star is not there" in ranks.logs[0].read_text() and not Path("none").exists()


def test_more_ranks_than_particles_to_share() -> None:
    write_particles("few.star", read_particles("particles.star").subset(np.arange(25)))
    ranks = launch(3, "Refine3D", "--particles", "few.star", *REFINE[3:], "--out", "few")
    assert ranks.wait(30) == [2, 2, 2]
    assert "holds 25 particles for 3 ranks. Start at most 2 ranks" in record_of("few").reasons[0]


@pytest.mark.parametrize(
    "words", [("JoinStar", "--files", "particles.star"), (*CLASSIFY, "--submit", "script.sh"), (*CLASSIFY, "--engine", "relion")]
)
def test_what_works_in_one_process_refuses_ranks(words: tuple[object, ...]) -> None:
    if "relion" in words and not shutil.which("relion_refine"):
        pytest.skip("RELION is not on the PATH")
    Path("script.sh").write_text("XXXcommandXXX\n")
    ranks = launch(2, *words, "--out", "refused")
    assert ranks.wait(30) == [2, 2]
    assert "works in one process, and 2 were started" in ranks.said() and not Path("refused").exists()


@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_launchers(launcher: str) -> None:
    """The command as the help gives it."""
    start = {
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
        "mpirun": ["mpirun", "--oversubscribe", "-n", "2", sys.executable, "-m"],
    }[launcher]
    if launcher == "mpirun" and not shutil.which("mpirun"):
        pytest.skip("mpirun is not on the PATH")
    command = [*start, "verglas", "job", *map(str, CLASSIFY), "--out", launcher, "--json"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_"))}
    allow = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**clean, **allow}, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads(done.stdout)["resources"]["ranks"] == 2


def test_torchrun_starts_a_job_that_lost_a_rank_again_and_it_goes_on() -> None:
    """`--max-restarts`, as the README gives it: the worker is killed, the command ends well by itself."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "-m"]
    words = [*map(str, CLASSIFY), "--iterations", "12", "--out", "restarted"]
    with Path("said").open("w") as said:
        process = subprocess.Popen([*start, "verglas", "job", *words], stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 100
        while not Path("restarted/run_it001_optimiser.star").exists():
            assert process.poll() is None and time.monotonic() < deadline, Path("said").read_text()[-2000:]
            time.sleep(0.01)
        os.kill(_second_rank(), signal.SIGKILL)
        assert process.wait(100) == 0, Path("said").read_text()[-2000:]
    record = record_of("restarted")
    assert record.verdict == "PASS" and record.items is not None and record.items["done"] == 80
    assert "going on after iteration" in Path("restarted/run.out").read_text()


def _second_rank() -> int:
    """The process that torchrun started as rank 1 of the job in `restarted`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, given = ((process / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        if b"restarted" in words and b"RANK=1" in given and b"torch.distributed.run" not in words:
            return int(process.name)
    raise AssertionError("no second rank is running")
