"""A function run in a child process whose output, events and end the parent follows without threads.

The child is forked, so that a parent which has the numerical libraries loaded starts 25 jobs without importing them 25 times.
It leads its own process group (Ctrl-C reaches the parent alone, which asks it to stop) and dies with its parent.
"""

from __future__ import annotations

import faulthandler
import json
import os
import selectors
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from resource import struct_rusage
from typing import Any, NoReturn

from verglas.compute.process import die_with
from verglas.errors import VerglasError

Send = Callable[[dict[str, Any]], None]


class Child:
    """A forked process that runs `main(send)`, whose return value is its exit code; `send` passes a JSON event to the parent."""

    def __init__(self, main: Callable[[Send], int]) -> None:
        _refuse_cuda_parent()
        pipes = {name: os.pipe() for name in ("out", "err", "event")}
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside the idle threads of a BLAS, which prepares for it
            parent, self.pid = os.getpid(), os.fork()
        if self.pid == 0:
            _be_child(main, {name: write for name, (_, write) in pipes.items()}, parent)
        self.exit_code: int | None = None
        self.signal: str | None = None
        self.usage: struct_rusage | None = None
        self._selector = selectors.DefaultSelector()
        self._rest = b""
        for name, (read, write) in pipes.items():
            os.close(write)
            os.set_blocking(read, False)
            self._selector.register(read, selectors.EVENT_READ, name)

    def poll(self, seconds: float) -> list[tuple[str, Any]]:
        """What came within `seconds`: ("out", bytes), ("err", bytes), ("event", dict). Once it is done, `ended` is true."""
        found: list[tuple[str, Any]] = []
        if not self._selector.get_map():
            time.sleep(seconds)
        for key, _ in self._selector.select(seconds):
            piece = self._read(key.fd)
            if key.data == "event":
                found += [("event", event) for event in self._events(piece)]
            elif piece:
                found.append((key.data, piece))
        return found

    def look(self) -> bool:
        """Whether it has ended; its files in /proc can be read until `reap`."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def reap(self) -> None:
        """Take its exit code or signal, and its usage; whatever it started and left behind is killed."""
        _, status, self.usage = os.wait4(self.pid, 0)
        self.kill()
        if os.WIFSIGNALED(status):
            self.signal = signal.Signals(os.WTERMSIG(status)).name
        else:
            self.exit_code = os.WEXITSTATUS(status)
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fd)
            os.close(key.fd)
        self._selector.close()

    def ask_to_stop(self) -> None:
        """Ask it to stop at the next chance it looks."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and all that it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass

    def _read(self, fd: int) -> bytes:
        """All that waits in the pipe; closes it at its end."""
        found = b""
        try:
            while piece := os.read(fd, 1 << 16):
                found += piece
        except BlockingIOError:
            return found
        self._selector.unregister(fd)
        os.close(fd)
        return found

    def _events(self, piece: bytes) -> list[Any]:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [json.loads(line) for line in lines]


def call_in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a child of its own; what it returns must be JSON. Raises RuntimeError, with the reason, if it fails.

    Used to read files that may be damaged: whatever they do to the reader, the caller lives and learns of it.
    """

    def main(send: Send) -> int:
        try:
            send({"value": in_new_thread(function, *arguments)})
        except (VerglasError, Exception) as error:
            send({"error": f"{type(error).__name__}: {error}" if not isinstance(error, VerglasError) else str(error)})
            return 1
        return 0

    answer: dict[str, Any] = {}
    child, said = Child(main), b""
    try:
        ended = False
        while not ended:
            ended = child.look()  # before the poll, which then takes all that it left
            for kind, piece in child.poll(0 if ended else 0.05):
                answer = piece if kind == "event" else answer
                said += piece if kind == "err" else b""
    except BaseException:
        child.kill()
        raise
    finally:
        child.reap()
    if "value" not in answer:
        last_words = said[-300:].decode(errors="replace")
        raise RuntimeError(answer.get("error") or f"died ({child.signal or child.exit_code}) {last_words}".strip())
    return answer["value"]


def _refuse_cuda_parent() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("this process has used the GPU already, so jobs can't be started from it: start them from a fresh Python")


def in_new_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a thread that was not there at the fork.

    A parent that has computed on several cores leaves OpenMP's threads to its child in name only: the thread that forked would wait
    for them for ever. A new thread gets new ones. Signals are still handled, by the main thread, which waits here.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def _be_child(main: Callable[[Send], int], pipes: dict[str, int], parent: int) -> NoReturn:
    """Run `main` and end the process whatever happens: the caller's code must never go on in the copy."""
    code = 70
    try:
        os.setpgid(0, 0)
        die_with(parent)
        os.dup2(pipes["out"], 1)
        os.dup2(pipes["err"], 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  also where the parent's was replaced
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stdin = open(os.devnull)  # noqa: SIM115
        faulthandler.enable(sys.stderr)
        event = pipes["event"]

        def send(message: dict[str, Any]) -> None:
            _write_all(event, json.dumps(message, default=_plain).encode() + b"\n")

        code = main(send)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
