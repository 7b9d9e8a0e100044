"""Follows a running job: keeps what it prints, its usage and its phases; asks it to stop, and ends it if it doesn't."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verglas.records.meters import EnergyMeter, IoMeter
from verglas.records.record import Record
from verglas.workflow.engine import EXIT_LOST
from verglas.workflow.line import Line
from verglas.workflow.process import Child, Send
from verglas.workflow.screen import Log, Screen
from verglas.workflow.tree import TreeMeter

_TICK = 0.05
_RECORD_EVERY = 0.5  # seconds between updates of record.json while a job runs
_GRACE = 30.0  # seconds from the wish to stop at the time limit to the end by force
_REPORTS = 3.0  # seconds from the first sign that a rank is lost to the end by force, in which the cause shows
_LAST_REPORTS = 60.0  # for the other ranks to end once rank 0 has finished
_GO_ON = "the same command goes on from the last finished iteration"
_WISHES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "the end of its terminal"}


@dataclass
class Run:
    """What the system and the job told of a run that has ended."""

    exit_code: int | None = None
    signal: str | None = None
    stopped: str | None = None
    error: str | None = None
    items: dict[str, Any] | None = None
    left: dict[str, list[int]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)


def supervise(
    main: Callable[[Send], int],
    folder: Path,
    record: Record,
    screen: Screen,
    time_limit: float | None,
    line: Line | None = None,
    first: Callable[[], None] = lambda: None,
) -> Run:
    """Run `first` here and then `main` in a child until it ends; run.out and run.err are appended to, `record` is kept up to date on disk.

    `line`: to the other ranks, which get their orders as the child meets them; when one is lost the child is ended.
    """
    with (folder / "run.out").open("ab", buffering=0) as out, (folder / "run.err").open("ab", buffering=0) as err:
        return _Supervisor(folder, record, screen, Log(out), Log(err), time_limit, line).follow(first, main)


class _Supervisor:
    def __init__(
        self, folder: Path, record: Record, screen: Screen, out: Log, err: Log, time_limit: float | None, line: Line | None
    ) -> None:
        self.folder, self.record, self.screen, self.out, self.err = folder, record, screen, out, err
        self.line = line
        self.ended = False  # by force, as another rank is lost
        if line is not None:
            record.resources["ranks"] = line.world.size
        self.limit = time_limit
        self.run = Run()
        self.staging = dict(record.phases)
        self.wishes, self.wish = 0, ""  # to stop: how many, and the signal of the first
        self.written = 0.0
        self.written_phase = ""
        self.started = time.monotonic()

    def follow(self, first: Callable[[], None], main: Callable[[Send], int]) -> Run:
        energy = EnergyMeter()
        with self._signals():
            first()
            child = Child(main)
            io = IoMeter(child.pid)
            self.started_by_it = TreeMeter(child.pid)
            try:
                self._loop(child, io)
            except BaseException:
                child.kill()
                raise
            finally:
                child.reap()
            if self.line is not None:
                self._settle(child, self.line)
        self.screen.close()
        self._finish(child, io, energy)
        return self.run

    def _loop(self, child: Child, io: IoMeter) -> None:
        ended, asked, lost_since = False, 0, 0.0
        while not ended:
            ended = child.look()
            io.sample()
            if self.record.engine != "verglas":
                self.started_by_it.sample()
            for kind, piece in child.poll(0 if ended else _TICK):
                if kind == "event":
                    self._take(piece)
                else:
                    self.screen.text(piece, self.out if kind == "out" else self.err)
            self._keep_time(child)
            if self.line is not None:
                self.line.poll()
                lost_since = lost_since or (time.monotonic() if self.line.problem() else 0.0)
                if lost_since and time.monotonic() - lost_since > _REPORTS:
                    self.ended = True
                    child.kill()
            if self.wishes > asked:
                asked = self.wishes
                self._stop(child, asked)

    def _take(self, event: dict[str, Any]) -> None:
        """Take in one event; what a job says of its phases, items and facts is kept for the record."""
        if "progress" in event:
            self.screen.progress(event["progress"], self.out)
        if "phases" in event:
            self.record.phases = {**self.staging, **event["phases"]}
            self.record.phase = event["phase"]
            if time.monotonic() - self.written > _RECORD_EVERY or event["phase"] != self.written_phase:
                self._write_record(event["phase"])
        if "order" in event and self.line is not None:
            self.line.order(event["order"])
        if "warning" in event:
            self.record.warnings.append(event["warning"])
        self.run.error = event.get("error", self.run.error)
        self.run.items = event.get("items", self.run.items)
        self.run.left = event.get("left", self.run.left)
        self.run.facts = event.get("facts", self.run.facts)
        if "stopped" in event and self.run.stopped is None:
            self.run.stopped = f"stopped by {self.wish}" if self.wish else event["stopped"]

    def _write_record(self, phase: str) -> None:
        try:
            self.record.write(self.folder)
        except OSError:
            pass  # a full disk: the job meets it too, and the judge will say so
        self.written, self.written_phase = time.monotonic(), phase

    def _settle(self, child: Child, line: Line) -> None:
        """Wait for what the other ranks report of their end, and take the cause of a failure for the job's error."""
        by_itself = child.exit_code not in (0, EXIT_LOST, None) or (child.signal and not self.ended)
        if by_itself and child.signal and not self.run.stopped:
            self.run.error = f"rank 0 on {socket.gethostname()} was killed by {child.signal}; {_GO_ON}"
        if by_itself or self.run.stopped:
            return
        deadline = time.monotonic() + (_LAST_REPORTS if child.exit_code == 0 else _REPORTS)
        line.poll()
        while not (line.cause_known() or line.all_ended()) and time.monotonic() < deadline:
            time.sleep(_TICK)
            line.poll()
        own, silent = self.run.error or "", line.silent()
        problem = line.problem() or own
        if silent and not line.cause_known():  # the others have lost it, and have ended
            problem = own if own.startswith(silent) else f"{silent} does not answer" + (f" ({own})" if own else "")
        if problem:
            self.run.error = f"{problem}; {_GO_ON}"

    def _keep_time(self, child: Child) -> None:
        seconds = time.monotonic() - self.started
        if self.limit is None or seconds < self.limit:
            return
        if not self.run.stopped:
            self.run.stopped = f"timed out after {self.limit:g} s"
            child.ask_to_stop()
        elif seconds > self.limit + min(_GRACE, self.limit):
            child.kill()

    def _stop(self, child: Child, wishes: int) -> None:
        """First wish: stop gently. Second: at once."""
        if wishes == 1:
            self.screen.say("Stopping after the current item; once more to end at once")
            child.ask_to_stop()
        else:
            self.run.stopped = "ended at once by the user"
            child.kill()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def wish(number: int, frame: object) -> None:
            self.wishes += 1
            self.wish = self.wish or _WISHES[signal.Signals(number)]

        before = {number: signal.signal(number, wish) for number in _WISHES}
        try:
            yield
        finally:
            for number, handler in before.items():
                # a launcher that has lost a rank ends all others: the record of that is still to be written
                signal.signal(number, handler if self.line is None else signal.SIG_IGN)

    def _finish(self, child: Child, io: IoMeter, energy: EnergyMeter) -> None:
        run, seconds = self.run, time.monotonic() - self.started
        run.exit_code, run.signal = child.exit_code, child.signal
        known = sum(self.record.phases.values()) - sum(self.staging.values())
        if seconds > known:  # start and end of the process, and what a killed one could not tell
            phase = self.record.phase if child.signal and self.record.phase not in ("", "staging") else "other"
            self.record.phases[phase] = self.record.phases.get(phase, 0.0) + seconds - known
        assert child.usage is not None
        run.usage = {
            "wall_s": seconds,
            "cpu_s": child.usage.ru_utime + child.usage.ru_stime,
            "peak_memory_bytes": self.started_by_it.peak or child.usage.ru_maxrss * 1024,
            "gpu_peak_bytes": run.facts.pop("gpu_peak_bytes", None),
            **io.read(),
            **energy.read(),
        }
        if self.line is not None:
            self._add_ranks(self.line)

    def _add_ranks(self, line: Line) -> None:
        """What the other ranks used, to what rank 0 did: peaks of memory are added up as if they were at one moment."""
        usage = self.run.usage
        for report in line.reports.values():
            for name, value in report.usage.items():
                if value is not None:
                    more = max if name == "gpu_peak_bytes" else lambda a, b: a + b
                    usage[name] = more(usage.get(name) or 0, value)
            self.run.facts["gpus_used"] = self.run.facts.get("gpus_used", []) + report.gpus
