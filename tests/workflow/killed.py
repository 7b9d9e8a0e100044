"""The command line in a process of its own that is killed, with the job that it runs, at an exact moment."""

import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

KILLED = -signal.SIGKILL


def run_and_kill(run: Callable[[], int], kill_at: int | None = None, *, after: bool = False) -> tuple[int, int]:
    """Exit code (or minus the signal) of `run` in a forked process, and how many files its job put in their places.

    With `kill_at` = n everything dies by SIGKILL when the job's n-th file has been written under its temporary name, or, `after`,
    as soon as it is in its place: what a power cut leaves.
    """
    count = mmap.mmap(-1, 8)
    runner = os.fork()
    if runner == 0:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
            _count_files(count, kill_at, after)
            code = run()
        finally:
            os._exit(code)
    _, status = os.waitpid(runner, 0)
    return os.waitstatus_to_exitcode(status), int.from_bytes(count[:8], "little")


def _count_files(count: mmap.mmap, kill_at: int | None, after: bool) -> None:
    """Count the files that the job (not its runner) renames into their places, and strike at one of them."""
    runner, rename = os.getpid(), Path.replace

    def strike() -> None:
        os.kill(runner, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(path: Path, target: Path) -> Path:
        if os.getpid() == runner or Path(target).name.startswith("RELION_JOB"):
            return rename(path, target)
        number = int.from_bytes(count[:8], "little") + 1
        count[:8] = number.to_bytes(8, "little")
        if number == kill_at and not after:
            strike()
        moved = rename(path, target)
        if number == kill_at:
            strike()
        return moved

    Path.replace = counted  # type: ignore[method-assign,assignment]
