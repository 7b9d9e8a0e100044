"""RELION's project lock: the folder `.relion_lock`, made for the time of a change to `default_pipeline.star`."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verglas.errors import InputError

LOCK = ".relion_lock"
_OWNER = "verglas_owner"
_RELION_WAITS = 120.0  # RELION itself gives up after two minutes, and no change takes longer


@contextmanager
def project_lock(root: Path, patience: float = _RELION_WAITS + 20) -> Iterator[None]:
    """Hold the project's lock, as RELION does.

    A lock that its owner left behind is removed: one of ours at once when its process is gone, any other when it is older than
    RELION's own two minutes. Raises InputError when another program still holds it after `patience` seconds.
    """
    lock = root / LOCK
    deadline = time.monotonic() + patience
    while True:
        try:
            lock.mkdir()
            break
        except FileExistsError:
            if _is_stale(lock):
                _remove(lock)
            elif time.monotonic() > deadline:
                raise InputError(lock, "another program has held the project for minutes", f"If none runs: rmdir {lock}") from None
            else:
                time.sleep(0.05)
        except OSError as error:
            raise InputError(root, f"cannot write here ({error.strerror})", "Check the folder's permissions and free space") from None
    try:
        (lock / _OWNER).write_text(f"{socket.gethostname()} {os.getpid()}\n")
        yield
    finally:
        _remove(lock)


def _is_stale(lock: Path) -> bool:
    try:
        host, pid = (lock / _OWNER).read_text().split()
        if host == socket.gethostname():
            return not Path(f"/proc/{pid}").exists() if Path("/proc/self").exists() else False
    except (OSError, ValueError):
        pass
    try:
        return time.time() - lock.stat().st_mtime > _RELION_WAITS
    except FileNotFoundError:
        return False


def _remove(lock: Path) -> None:
    (lock / _OWNER).unlink(missing_ok=True)
    try:
        lock.rmdir()
    except FileNotFoundError:
        pass
