"""What a command takes."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path


def timed(command: list[str], where: Path, log: Path | None = None) -> tuple[dict[str, float], int]:
    """Run a command in a folder: wall and CPU seconds and the largest process of all that it started and waited for; exit code.

    `log`: file for what it prints, otherwise that is shown.
    """
    start = time.perf_counter()
    if log is None:
        process = subprocess.Popen(command, cwd=where)
    else:
        with log.open("w") as out:
            process = subprocess.Popen(command, cwd=where, stdout=out, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    return {"wall_s": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "memory_mb": usage.ru_maxrss * 1024 / 1e6}, process.returncode
