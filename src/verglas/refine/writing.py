"""Iterations of many particles are written by a process of its own while the next one is computed.

with written_aside(output) as write:
    write(state)  # as output.write_iteration(state); returns when the iteration before is written
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any, BinaryIO

import torch

from verglas.errors import VerglasError
from verglas.refine.output import Output
from verglas.refine.state import State

_MANY = 20_000  # particles, from which the tables take longer than the process costs


@contextmanager
def written_aside(output: Output) -> Iterator[Callable[[State], None]]:
    """A function that writes iterations as `output.write_iteration` does; all are whole on disk when the block ends.

    What goes wrong is raised by the next call, or at the end. Killed, this process leaves an iteration that the other one finishes.
    """
    if len(output.particles) < _MANY:
        yield output.write_iteration
        return
    writer = _Writer(output)
    try:
        yield writer.write
    except BaseException:
        with suppress(Exception):  # what ended the block is what is told
            writer.close()
        raise
    writer.close()


class _Writer:
    """The process and the pipes to it; it ends when its input does."""

    def __init__(self, output: Output) -> None:
        command = [sys.executable, "-m", "verglas.refine.writing"]
        # in a session of its own it is not reached by the signals that ask a job to stop
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._due = False
        self._send(output)

    def write(self, state: State) -> None:
        self._wait()
        self._send(_on_cpu(replace(state, unfiltered=[])))
        self._due = True

    def close(self) -> None:
        try:
            self._wait()
        finally:
            for pipe in self._pipes():
                with suppress(OSError):
                    pipe.close()
            self._process.wait()

    def _pipes(self) -> tuple[BinaryIO, BinaryIO]:
        assert self._process.stdin is not None and self._process.stdout is not None
        return self._process.stdin, self._process.stdout  # type: ignore[return-value]

    def _send(self, what: Output | State) -> None:
        into, _ = self._pipes()
        try:
            pickle.dump(what, into, pickle.HIGHEST_PROTOCOL)
            into.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def _wait(self) -> None:
        if not self._due:
            return
        self._due = False
        try:
            error, said = pickle.load(self._pipes()[1])
        except (EOFError, pickle.UnpicklingError):
            raise self._lost() from None
        for message in said:
            warnings.warn(message, UserWarning, stacklevel=4)
        if error is not None:
            raise error

    def _lost(self) -> VerglasError:
        code = self._process.wait()
        return VerglasError(f"the process that writes the iterations ended with code {code}: start the job again, it goes on")


def _on_cpu(value: Any) -> Any:
    """The same with all tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, list):
        return [_on_cpu(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _on_cpu(getattr(value, field.name)) for field in fields(value)})
    return value


def _serve(given: BinaryIO, answers: BinaryIO) -> None:
    """Write the states that come after their output, and answer each with what went wrong and what was warned of."""
    torch.set_num_threads(1)
    output: Output = pickle.load(given)
    while True:
        try:
            state: State = pickle.load(given)
        except EOFError:
            return
        error = None
        with warnings.catch_warnings(record=True) as said:
            try:
                output.write_iteration(state)
            except Exception as problem:
                error = problem
        pickle.dump((_sendable(error), [str(each.message) for each in said]), answers)
        answers.flush()


def _sendable(error: Exception | None) -> Exception | None:
    """The error, or, where it does not survive the way, its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return VerglasError(str(error))
    return error


if __name__ == "__main__":
    # the pipe is for answers alone: whatever prints meanwhile goes where errors go
    with os.fdopen(os.dup(1), "wb") as answers, suppress(BrokenPipeError):
        os.dup2(2, 1)
        _serve(sys.stdin.buffer, answers)
