"""Runs one of RELION's programs in the job's folder and follows it: its output goes to run.out and run.err, where it is read."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from verglas.errors import JobAborted, VerglasError
from verglas.jobs.declaration import Job
from verglas.project.jobfiles import ABORT_NOW, EXIT_FILES, exit_file
from verglas.relion.install import environment
from verglas.relion.output import Heard, Tail

_TICK = 0.1
_GRACE = 5.0  # seconds between the polite and the forced end of a program that must not go on


def follow(job: Job, command: Sequence[str], began: Callable[[Heard], None]) -> Heard:
    """Run `command` to its end; `began` is called as each iteration begins. RELION must end well and leave its own exit file.

    Raises VerglasError with RELION's words for any other end, at once for an option that it doesn't know, and JobAborted when the
    user stopped it: RELION ends by itself where it finds RELION_JOB_ABORT_NOW.
    """
    for name in EXIT_FILES.values():
        (job.out / name).unlink(missing_ok=True)
    said = [job.out / "run.out", job.out / "run.err"]
    heard, tails = Heard(), [Tail(path) for path in said]
    with said[0].open("ab") as out, said[1].open("ab") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment())
        try:
            stopped = _wait(job, process, heard, tails, began)
        finally:
            _end(process)
    _hear(heard, tails, began, last=True)
    for warning in heard.warnings:
        job.warn(f"RELION: {warning}")
    if heard.unknown_option:
        raise VerglasError(f"RELION does not know the option {heard.unknown_option} (it is not a valid RELION argument)")
    if stopped is not None:
        raise stopped
    if process.returncode != 0:
        raise VerglasError(f"RELION: {heard.error or _how_it_ended(process.returncode)}")
    if exit_file(job.out) != "success":
        raise VerglasError(f"RELION ended without leaving {EXIT_FILES['success']}")
    return heard


def settle() -> None:
    """Let what the job has said so far come to run.out and run.err, so that none of it is taken for RELION's words."""
    time.sleep(_TICK)


def _wait(job: Job, process: subprocess.Popen[bytes], heard: Heard, tails: list[Tail], began: Callable[[Heard], None]) -> JobAborted | None:
    """Follow the program until it ends or has said enough; returns the user's wish to stop, if there was one."""
    stopped: JobAborted | None = None
    while process.poll() is None and not heard.unknown_option:
        _hear(heard, tails, began)
        try:
            if stopped is None:
                job.check_stop()
        except JobAborted as wish:
            stopped = wish
            (job.out / ABORT_NOW).touch()
        with job.phase("compute"), suppress(subprocess.TimeoutExpired):  # told anew, so that the record shows how long it has been
            process.wait(_TICK)
    return stopped


def _hear(heard: Heard, tails: list[Tail], began: Callable[[Heard], None], *, last: bool = False) -> None:
    for tail in tails:
        for line in tail.lines(last=last):
            if heard.hear(line):
                began(heard)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the program if it still runs; mpirun ends its ranks when it is asked to, and they end with it when it is killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
