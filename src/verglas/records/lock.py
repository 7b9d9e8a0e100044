"""Who works in a job's folder: a lock that the system drops when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from verglas.errors import InputError

_LOCK = ".verglas_lock"


class FolderLock:
    """The right to work in one job folder, held until `release` or until the process and its children are gone."""

    def __init__(self, folder: Path) -> None:
        try:
            self._file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(folder, f"cannot write here ({error.strerror})", "Check the folder's permissions and free space") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise InputError(folder, "another run is working in this folder", "Wait for it, or stop it: verglas stop JOB") from None
        os.utime(self._file)  # its time is the start of the run on the clock of this file system, to compare outputs with

    @property
    def start_ns(self) -> int:
        """When the lock was taken, on the file system's own clock, in nanoseconds."""
        return os.fstat(self._file).st_mtime_ns

    def release(self) -> None:
        """Let others work in the folder."""
        os.close(self._file)


def is_running(folder: Path) -> bool:
    """Whether a run holds `folder` now."""
    try:
        file = os.open(folder / _LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
