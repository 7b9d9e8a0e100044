"""The command line in a process of its own, and what its table says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from verglas.records.lock import is_running


def start(fault: str, *words: str) -> subprocess.Popen[bytes]:
    """The command line in a process of its own, with a fault."""
    script = Path(__file__).with_name("faults.py")
    command = [sys.executable, str(script), fault, "job", "JoinStar", "--files", "a.star", "b.star", "--out", "J", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for(path: Path, seconds: float = 30) -> str:
    """Wait until a file is there; returns what it holds."""
    for _ in range(int(seconds / 0.02)):
        if path.exists() and (path.name != "paused" or path.read_text() or path.stat().st_size == 0):
            time.sleep(0.05)
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path} never came")


def wait_until_free(folder: Path) -> None:
    """Wait until the kernel has ended all that worked in a folder."""
    for _ in range(500):
        if not is_running(folder):
            return
        time.sleep(0.01)
    raise AssertionError(f"{folder} is still locked: the job outlived its runner")


def table(capsys: pytest.CaptureFixture[str], root: Path = Path()) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and rows of `verglas stats --json`."""
    from verglas.cli.show import stats_command

    capsys.readouterr()
    code = stats_command(root, as_json=True, as_csv=False, html=None)
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["jobs"]
    return code, rows
