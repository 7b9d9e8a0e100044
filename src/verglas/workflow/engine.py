"""Our engine's side of a job, run in the child process: validate, run, leave the exit file."""

from __future__ import annotations

import errno
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from verglas.compute.world import World
from verglas.errors import InputError, JobAborted, RankLost, VerglasError
from verglas.jobs.declaration import JobType
from verglas.project.jobfiles import leave_exit_file
from verglas.workflow.context import RunningJob
from verglas.workflow.process import Send, in_new_thread

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_ABORTED, EXIT_LOST = 0, 1, 2, 3, 5


def preload() -> None:
    """Import the numerical libraries, so that no child that is forked later has to; no GPU is started by it, and no thread that a fork
    does not survive. Where one cannot be imported, the job that needs it says so.
    """
    with suppress(ImportError):
        import numpy  # noqa: F401
        import pandas  # noqa: F401
        import scipy.fft  # noqa: F401
        import torch  # noqa: F401


def carry_out(declared: JobType, params: Any, inputs: dict[str, Any], out: Path, send: Send, world: World | None = None) -> int:
    """Run the job; returns the exit code. What it says of itself goes to the parent as events; the parent judges by files."""
    job = RunningJob(params, inputs, out, send, world)
    job.listen()
    try:
        code, ending = in_new_thread(attempt, declared, job, send)
    finally:
        job.close()
    leave_exit_file(out, ending)
    return code


def attempt(declared: JobType, job: RunningJob, send: Send) -> tuple[int, str]:
    """Validate and run the job; returns its exit code and the name of its exit file."""
    try:
        declared.validate(job)
        items = declared.run(job)
    except JobAborted as error:
        send({"stopped": str(error)})
        return EXIT_ABORTED, "aborted"
    except VerglasError as error:
        send({"error": str(error)})
        job.say(f"ERROR: {error}")
        return (EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_LOST if isinstance(error, RankLost) else EXIT_FAILED), "failure"
    except MemoryError:
        send({"error": "out of memory"})
        traceback.print_exc()
        return EXIT_FAILED, "failure"
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        send({"error": f"no space left: {error}" if full else f"{type(error).__name__}: {error}"})
        traceback.print_exc()
        return EXIT_FAILED, "failure"
    named = [{"item": problem.item, "reason": problem.reason} for problem in items.problems]
    counts = {"unit": items.unit, "total": items.total, "done": items.done, "skipped": items.skipped, "failed": items.failed}
    send({"items": {**counts, "problems": named, "notes": items.notes}, "left": stamps(declared, job.params, job.out)})
    return EXIT_DONE, "success"


def stamps(declared: JobType, params: Any, out: Path) -> dict[str, list[int]]:
    """Size, time and inode of every declared output that is there: a file put in its place later shows."""
    found = {}
    for spec in declared.outputs(params):
        try:
            facts = (out / spec.path).stat()
            found[spec.path] = [facts.st_size, facts.st_mtime_ns, facts.st_ino]
        except OSError:
            continue
    return found
