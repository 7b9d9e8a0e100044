"""Files of a run are written, and its pictures drawn, by a process of its own while the next iteration is computed.

with written_aside(output) as write:
    write(state)  # as output.write_iteration(state); returns when what came before is written
    write(state, function)  # as function(output, state); both must be such as pickle takes
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any, BinaryIO, Protocol

import torch

from verglas.compute.process import die_with
from verglas.errors import JobAborted, VerglasError
from verglas.refine.output import Output
from verglas.refine.state import State

_MANY = 20_000  # particles, from which the tables take longer than the process costs

Act = Callable[[Output, State], None]


class Write(Protocol):
    """What `written_aside` gives."""

    def __call__(self, state: State, act: Act = Output.write_iteration) -> None:
        """Do `act(output, state)`, at once or aside."""


@contextmanager
def written_aside(output: Output, writer: Writer | None = None) -> Iterator[Write]:
    """A function that writes iterations as `output.write_iteration` does; all are whole on disk when the block ends.

    Few particles are written at once, unless a process that was begun earlier is given. What goes wrong is raised by the next call, or
    at the end. Whatever kills this process ends the other one too, in mid-iteration.
    """
    if writer is None and len(output.particles) < _MANY:
        yield lambda state, act=Output.write_iteration: act(output, state)
        return
    writer = writer or Writer()
    try:
        writer.output = output
        yield writer.write
    except JobAborted:
        writer.close()  # whoever stops a job is told if what he counts on was not written
        raise
    except BaseException:
        with suppress(Exception):  # what ended the block is what is told
            writer.close()
        raise
    writer.close()


class Writer:
    """The process, and the pipes to and from it; it ends when its input does. `output` goes to it with the first state: by then it runs."""

    output: Output | None = None

    def __init__(self) -> None:
        answers, own = os.pipe()
        command = [sys.executable, "-P", "-m", "verglas.refine.writing", *map(str, (os.getpid(), own, torch.get_num_threads()))]
        # it never hears of a wish to stop: the job is asked, and lets it finish
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[own])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(own)
        self._answers = os.fdopen(answers, "rb")
        self._due = False

    def __del__(self) -> None:
        """Of a job that ended before it wrote anything: nobody waits for the process."""
        if hasattr(self, "process") and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
            self._answers.close()

    def send(self, what: Output | tuple[Act, State]) -> None:
        """Pass it on; it is taken as soon as the process has started and has done what came before."""
        into = self.process.stdin
        assert into is not None
        try:
            pickle.dump(what, into, pickle.HIGHEST_PROTOCOL)
            into.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def write(self, state: State, act: Act = Output.write_iteration) -> None:
        """See `Write`; returns when the process has done what came before and has taken this."""
        if self.output is not None:
            self.send(self.output)
            self.output = None
        self._wait()
        needed = replace(state, unfiltered=[]) if act is Output.write_iteration else state  # maps that no iteration's files hold
        self.send((act, _on_cpu(needed)))
        self._due = True

    def close(self) -> None:
        """Wait for the end of the last; raises what went wrong in it."""
        try:
            self._wait()
        finally:
            with suppress(BrokenPipeError):
                self.process.communicate()
            self._answers.close()

    def _wait(self) -> None:
        if not self._due:
            return
        self._due = False
        try:
            error, said = pickle.load(self._answers)
        except EOFError:
            raise self._lost() from None
        for message in said:
            warnings.warn(message, UserWarning, stacklevel=4)
        if error is not None:
            raise error

    def _lost(self) -> VerglasError:
        code = self.process.wait()
        mend = "start the job again, it goes on" if code < 0 else "see run.err"
        return VerglasError(f"the process that writes the iterations ended with code {code}: {mend}")


def _on_cpu(value: Any) -> Any:
    """The same with all tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, list):
        return [_on_cpu(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _on_cpu(getattr(value, field.name)) for field in fields(value)})
    return value


def _serve(given: BinaryIO, answers: BinaryIO, threads: int) -> None:
    """Write the states that come after their output, and answer each with what went wrong and what was warned of."""
    import matplotlib.figure  # noqa: F401  what pictures take, now, while nobody waits for it

    output: Output = pickle.load(given)
    while True:
        act, state = pickle.load(given)
        torch.set_num_threads(1 if act is Output.write_iteration else threads)  # the next iteration is computed meanwhile
        error = None
        with warnings.catch_warnings(record=True) as said:
            try:
                act(output, state)
            except Exception as problem:
                problem.add_note(traceback.format_exc())
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
    die_with(int(sys.argv[1]))
    with suppress(EOFError, BrokenPipeError), os.fdopen(int(sys.argv[2]), "wb") as pipe:
        _serve(sys.stdin.buffer, pipe, int(sys.argv[3]))
    os._exit(0)  # all is on disk, and the job waits: libraries need not clean up
