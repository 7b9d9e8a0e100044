"""Iterations written by a process of its own: the same files, its errors told, its end."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from refine.sets import DIAMETER, particles, seen, without_poses
from verglas.errors import InputError, JobAborted, VerglasError
from verglas.refine import writing
from verglas.refine.assignments import from_particles
from verglas.refine.classify import classify
from verglas.refine.output import Output
from verglas.refine.settings import Settings
from verglas.refine.start import first_state, random_averages
from verglas.refine.state import State
from verglas.refine.writing import Writer, written_aside

COUNT = 60


@pytest.fixture(scope="module")
def states() -> list[State]:
    return list(_run()[1])


def _run() -> tuple[Output, Iterator[State]]:
    images, table, _ = particles(COUNT, 16, 12.0, 0.3)
    view = seen(images, table)
    settings = Settings(dims=2, mask_diameter=DIAMETER, classes=3, iterations=2)
    own = from_particles(without_poses(table), len(view.micrographs))
    averages = random_averages(view, torch.arange(COUNT), own, 3, 1)
    output = Output(Path("run"), table, np.arange(COUNT)[::-1].copy(), view, settings)
    return output, classify(view, first_state(view, own, averages, settings), settings)


@pytest.fixture
def aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where even few particles are written aside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writing, "_MANY", 0)
    Path("run").mkdir()
    return tmp_path


def test_the_files_are_those_written_at_once(aside: Path, states: list[State]) -> None:
    with written_aside(_run()[0]) as write:
        for state in states:
            write(state)
    found = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    Path("run").rename("aside")
    Path("run").mkdir()
    for state in states:
        _run()[0].write_iteration(state)
    assert set(found) == {path.name for path in Path("run").iterdir()} and "run_it002_optimiser.star" in found
    for name, content in found.items():
        head = 1024 if name.endswith(".mrcs") else 0  # it tells the time
        assert name.endswith(".pt") or content[head:] == Path("run", name).read_bytes()[head:], name
    last = _run()[0].last_state()
    assert last is not None and torch.equal(last.assignments.origins, states[-1].assignments.origins)


def test_few_particles_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: list[State]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    with written_aside(_run()[0]) as write:
        write(states[0])
        assert Path("run", "run_it001_optimiser.star").exists() and not _writers(tmp_path, 0)
        write(states[0], _where)
    assert Path("run", "written_by").read_text() == str(os.getpid())


def test_a_process_begun_earlier_writes_few_and_does_what_else_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: list[State]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    tests = Path(__file__).resolve().parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{tests.parent}")  # where the process finds `_where`
    writer = Writer()
    with written_aside(_run()[0], writer) as write:
        write(states[0])
        write(replace(states[1], unfiltered=[torch.ones(3)]), _where)
    assert Path("run", "run_it001_optimiser.star").exists()
    assert Path("run", "written_by").read_text() == str(writer.process.pid)


def test_nobody_waits_for_a_process_that_is_still_starting(aside: Path, states: list[State]) -> None:
    output, writer = _run()[0], Writer()
    goes_on = partial(os.kill, writer.process.pid, signal.SIGCONT)
    os.kill(writer.process.pid, signal.SIGSTOP)  # it takes nothing; a pipe holds far less than the table
    late = threading.Timer(5.0, goes_on)
    late.start()
    output.particles = output.particles.with_columns(micrograph_name=np.array(["m" * 5000] * COUNT))
    with written_aside(output, writer) as write:
        assert late.is_alive(), "the block began when the process did"
        late.cancel()
        goes_on()
        write(states[0])
    assert Path("run", "run_it001_optimiser.star").exists()


def test_a_process_that_cannot_be_started_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while the half-made writer is thrown away would fail the test."""

    def none_left(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", none_left)
    with pytest.raises(OSError, match="no more processes"):
        Writer()
    gc.collect()


def test_a_process_that_was_begun_for_nothing_ends_with_who_began_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = Writer()
    assert _writers(tmp_path, 1) == [writer.process.pid]
    del writer
    assert not _writers(tmp_path, 0)


def _where(output: Output, state: State) -> None:
    """What a job would draw: all of the state is there."""
    assert output.folder == Path("run") and len(state.unfiltered) == state.iteration - 1
    Path("run", "written_by").write_text(str(os.getpid()))


def test_what_goes_wrong_is_raised_by_the_next_call_or_at_the_end(aside: Path, states: list[State]) -> None:
    broken = Path("run", "run_it001_data.star")
    broken.mkdir()  # nothing can be renamed to it
    with pytest.raises(OSError, match=r"run_it001_data\.star"), written_aside(_run()[0]) as write:
        write(states[0])
        write(states[1])
        pytest.fail("the second call raises what the first met")
    with pytest.raises(OSError, match=r"run_it001_data\.star"), written_aside(_run()[0]) as write:
        write(states[0])
    with pytest.raises(ZeroDivisionError), written_aside(_run()[0]) as write:
        write(states[0])
        raise ZeroDivisionError
    state = states[0]
    state = _changed(state, norm=state.assignments.norm * torch.nan)
    broken.rmdir()
    with pytest.raises(InputError, match="finite"), written_aside(_run()[0]) as write:
        write(state)


def _changed(state: State, **assignments: torch.Tensor) -> State:
    return replace(state, assignments=replace(state.assignments, **assignments))


def test_who_stops_a_job_is_told_what_was_not_written(aside: Path, states: list[State]) -> None:
    Path("run", "run_it001_data.star").mkdir()
    with pytest.raises(OSError, match="run_it001_data"), written_aside(_run()[0]) as write:
        write(states[0])
        raise JobAborted
    Path("run", "run_it001_data.star").rmdir()
    with pytest.raises(JobAborted), written_aside(_run()[0]) as write:
        write(states[0])
        raise JobAborted


def test_a_writer_that_is_killed_is_told(aside: Path, states: list[State]) -> None:
    with pytest.raises(VerglasError, match="code -9: start the job again"), written_aside(_run()[0]) as write:
        write(states[0])
        (writer,) = _writers(aside, 1)
        os.kill(writer, signal.SIGKILL)
        write(states[1])
        write(states[1])


_KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from refine import test_writing
from verglas.refine import writing
writing._MANY = 0
output, states = test_writing._run()
state = next(states)
with writing.written_aside(output) as write:
    write(state)
    write(state)
    os.kill(os.getpid(), 9)
"""


def test_a_killed_job_leaves_whole_files_and_no_process(aside: Path) -> None:
    tests = str(Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, "-c", _KILLED.format(tests=tests)], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    assert not _writers(aside, 0)
    last = _run()[0].last_state()
    assert last is not None and last.iteration == 1


def _writers(folder: Path, count: int) -> list[int]:
    """The processes that write in a folder, as soon as there are so many, or after ten seconds."""
    found = []
    for _ in range(100):
        found = [int(process.name) for process in Path("/proc").glob("[0-9]*") if _writes_in(process, folder)]
        if len(found) == count:
            break
        time.sleep(0.1)
    return found


def _writes_in(process: Path, folder: Path) -> bool:
    try:
        return b"verglas.refine.writing" in (process / "cmdline").read_bytes() and (process / "cwd").resolve() == folder.resolve()
    except OSError:
        return False
