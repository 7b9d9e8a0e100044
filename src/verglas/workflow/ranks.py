"""One job on many ranks: rank 0 is the runner, each of the others keeps a child that computes as it is told.

    torchrun --nproc-per-node 4 -m verglas job Refine3D …

Rank 0 alone takes the folder, its lock and number, writes the record and judges. The others know nothing but their rank until rank 0
has a folder; they end with rank 0's exit code. Ctrl-C and a launcher's SIGTERM are rank 0's to heed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.compute.world import World, world_here
from verglas.errors import InputError, RankLost
from verglas.jobs.declaration import JobType, no_validation
from verglas.records.meters import IoMeter
from verglas.workflow.context import RunningJob
from verglas.workflow.engine import EXIT_LOST, attempt
from verglas.workflow.line import Line, Report, Wire, call
from verglas.workflow.process import Child, Send, in_new_thread

if TYPE_CHECKING:
    from verglas.compute.ranks import Ranks

_TICK = 0.05
_LOST_CODE = 1


def on_ranks(declared: JobType, lead: Callable[[Line | None], int]) -> int:
    """`lead` on rank 0, or on the only one; its exit code, on all ranks.

    Raises InputError where a job that works in one process was started as many.
    """
    world = world_here()
    if world.size == 1:
        return lead(None)
    if not declared.on_ranks:
        refuse_many(declared.name)
    if not world.first:
        return attend(world, declared)
    line, code = Line(world), _LOST_CODE
    try:
        code = lead(line)
    except InputError:
        code = 2
        raise
    finally:
        line.end(code)
    return code


def refuse_many(what: str) -> None:
    """Raise InputError where `what`, which works in one process, was started as many."""
    if (size := world_here().size) > 1:
        raise InputError(what, f"works in one process, and {size} were started", "Start it without torchrun, srun or mpirun")


def attend(world: World, declared: JobType) -> int:
    """Do rank 0's bidding until it ends; returns its exit code."""
    try:
        wire = call(world)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        order = _wait(wire, "order", "end")
        if "end" in order:
            return int(order["end"])
        return _Attendant(world, declared, wire, order["order"]).follow()
    except RankLost as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return _LOST_CODE


def _wait(wire: Wire, *names: str) -> dict[str, Any]:
    while True:
        for message in wire.read():
            if any(name in message for name in names):
                return message
        if wire.closed:
            raise RankLost("rank 0 is gone")
        time.sleep(_TICK)


class _Attendant:
    """Follows the child of one rank: keeps what it prints, reports how it ended, ends it when rank 0 says so or is gone."""

    def __init__(self, world: World, declared: JobType, wire: Wire, order: dict[str, Any]) -> None:
        os.chdir(order["directory"])
        self._wire, self._events = wire, dict[str, Any]()
        self._log = Path(order["folder"]) / f"run_rank{world.rank:03d}.out"
        self._child = Child(lambda send: _work(world, declared, order, send))

    def follow(self) -> int:
        io, ended, code = IoMeter(self._child.pid), False, None
        try:
            while not ended and code is None:
                ended = self._child.look()
                io.sample()
                self._take(self._child.poll(0 if ended else _TICK))
                code = next((int(message["end"]) for message in self._wire.read() if "end" in message), None)
                if self._wire.closed and code is None:
                    raise RankLost("rank 0 is gone")
        finally:
            if not ended:
                self._child.kill()
            self._child.reap()
        if code is None:
            self._wire.send({"report": asdict(self._report(io))})
            code = int(_wait(self._wire, "end")["end"])
        return code

    def _take(self, pieces: list[tuple[str, Any]]) -> None:
        for kind, piece in pieces:
            if kind == "event":
                self._events |= piece
            else:
                with self._log.open("ab") as file:
                    file.write(piece)

    def _report(self, io: IoMeter) -> Report:
        child, facts = self._child, self._events.get("facts", {})
        assert child.usage is not None
        usage = {
            "cpu_s": child.usage.ru_utime + child.usage.ru_stime,
            "peak_memory_bytes": child.usage.ru_maxrss * 1024,
            "gpu_peak_bytes": facts.get("gpu_peak_bytes"),
            **io.read(),
        }
        lost = child.exit_code == EXIT_LOST
        return Report(child.exit_code, child.signal, self._events.get("error"), lost, usage, facts.get("gpus_used", []))


class _RankJob(RunningJob):
    """The job as a rank other than 0 sees it: it says nothing, since rank 0 says the same."""

    def __init__(self, params: Any, order: dict[str, Any], inputs: dict[str, Any], send: Send, world: World) -> None:
        super().__init__(params, inputs, Path(order["folder"]), send, world)
        self._port = int(order["port"])

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def _meet(self) -> Ranks:
        from verglas.compute.ranks import join

        return join(self.world, self._port)


def _work(world: World, declared: JobType, order: dict[str, Any], send: Send) -> int:
    """The job's work on this rank, in the child."""
    given = order["inputs"]
    inputs = {name: [Path(path) for path in value] if isinstance(value, list) else value and Path(value) for name, value in given.items()}
    job = _RankJob(declared.params(**order["params"]), order, inputs, send, world)
    job.listen()
    try:
        code, _ = in_new_thread(attempt, replace(declared, validate=no_validation), job, send)
    finally:
        job.close()
    return int(code)
