"""What a running job is handed: the `Job` of the declarations, inside the child process. It tells the parent by events."""

from __future__ import annotations

import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.compute.world import World
from verglas.errors import JobAborted
from verglas.project.jobfiles import ABORT_NOW
from verglas.workflow.process import Send

if TYPE_CHECKING:
    from verglas.compute.ranks import Ranks

_TELL_EVERY = 0.1  # seconds between events of one kind, so that a loop over millions of items isn't slowed


class RunningJob:
    """Implements `verglas.jobs.declaration.Job`; in a world of several, for rank 0."""

    def __init__(self, params: Any, inputs: dict[str, Any], out: Path, send: Send, world: World | None = None) -> None:
        self.params, self.inputs, self.out, self.world = params, inputs, out, world or World()
        self.record: dict[str, Any] = {}
        self._send = send
        self._clock = PhaseClock(send)
        self._stop: str | None = None
        self._ranks: Ranks | None = None

    @property
    def ranks(self) -> Ranks:
        """The processes that share the job; they meet when they are first asked for."""
        from verglas.compute.ranks import Ranks

        if self._ranks is None:
            self._ranks = Ranks() if self.world.size == 1 else self._meet()
        return self._ranks

    def _meet(self) -> Ranks:
        from verglas.compute.ranks import join, open_store

        store, port = open_store(self.world.address)
        order = {"params": self.params.model_dump(mode="json"), "inputs": self.inputs, "folder": self.out, "port": port}
        self._send({"order": {**order, "directory": Path.cwd()}})
        with self.phase("wait"):
            return join(self.world, store, self.phase)

    def progress(self, what: str, total: int) -> Progress:
        """A bar over `total` items."""
        return Progress(what, total, self._send)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Account the block's wall time to `name`."""
        self._clock.enter(name)
        try:
            yield
        finally:
            self._clock.leave()

    def say(self, text: str) -> None:
        """One line to run.out."""
        print(text, flush=True)

    def warn(self, text: str) -> None:
        """One warning to run.err and into the record."""
        print(f"WARNING: {text}", file=sys.stderr, flush=True)
        self._send({"warning": text})

    def check_stop(self) -> None:
        """Raise JobAborted, on all ranks, if the user asked for it by a signal or by RELION_JOB_ABORT_NOW."""
        if self._stop is None and (self.out / ABORT_NOW).exists():
            self._stop = ABORT_NOW
        if stop := self._stop if self.world.size == 1 else self.ranks.told(lambda: self._stop):
            raise JobAborted(f"stopped by {stop}")

    def listen(self) -> None:
        """Take signals as a wish to stop, and Python's warnings as the job's own."""

        def stop(number: int, frame: object) -> None:
            self._stop = signal.Signals(number).name

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        warnings.resetwarnings()
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.showwarning = lambda message, *_, **__: self.warn(str(message))

    def close(self) -> None:
        """Send the final times and facts."""
        self._clock.tell()
        self._send({"facts": {**self.record, **_gpu_facts()}})


class PhaseClock:
    """Wall time by phase; time in an inner phase isn't counted for the outer one, time in none is `other`."""

    def __init__(self, send: Send) -> None:
        self._send, self._stack, self._totals = send, ["other"], dict[str, float]()
        self._since = self._told = time.monotonic()

    def enter(self, name: str) -> None:
        """Start phase `name`."""
        self._count()
        self._stack.append(name)
        if time.monotonic() - self._told > _TELL_EVERY or name not in self._totals:
            self.tell()

    def leave(self) -> None:
        """End the innermost phase."""
        self._count()
        self._stack.pop()

    def tell(self) -> None:
        """Send totals, and the phase that runs."""
        self._count()
        self._told = self._since
        self._send({"phases": self._totals, "phase": self._stack[-1]})

    def _count(self) -> None:
        now = time.monotonic()
        self._totals[self._stack[-1]] = self._totals.get(self._stack[-1], 0.0) + now - self._since
        self._since = now


class Progress:
    """A `ProgressBar`; the parent draws it."""

    def __init__(self, what: str, total: int, send: Send) -> None:
        self._what, self._total, self._send, self._done, self._told = what, total, send, 0, 0.0

    def __enter__(self) -> Progress:
        self._tell("start")
        return self

    def __exit__(self, *_: object) -> None:
        self._tell("end")

    def advance(self, n: int = 1) -> None:
        """Count `n` more items as done."""
        self._done += n
        if time.monotonic() - self._told > _TELL_EVERY:
            self._tell("going")

    def _tell(self, state: str) -> None:
        self._told = time.monotonic()
        self._send({"progress": {"what": self._what, "done": self._done, "total": self._total, "state": state}})


def _gpu_facts() -> dict[str, Any]:
    """Peak memory and model of the card, where the job used one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    cards = range(torch.cuda.device_count())
    used = [i for i in cards if torch.cuda.max_memory_allocated(i)]
    peak = max((torch.cuda.max_memory_allocated(i) for i in cards), default=0)
    return {"gpu_peak_bytes": peak, "gpus_used": [torch.cuda.get_device_name(i) for i in used]}
