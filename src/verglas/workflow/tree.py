"""Memory of the programs that a job has started, and of all that they have started in turn."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")


class TreeMeter:
    """The most memory that the descendants of a process took together, sampled while they live; the process itself isn't counted.

    What a process holds for others too is counted for each. A descendant that still is a copy of the process, between its fork and
    the program that it becomes, doesn't count.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.peak = 0

    def sample(self) -> None:
        """Look at all descendants there are now."""
        own, total = _program(self._pid), 0
        for pid in _descendants(self._pid):
            memory = _resident(pid) if _program(pid) != own else None
            if memory is not None:
                total += memory[0]
                self.peak = max(self.peak, memory[1])  # its own peak since the last look
        self.peak = max(self.peak, total)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for listed in _PROC.glob(f"{pid}/task/*/children"):
        try:
            children = [int(word) for word in listed.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def _program(pid: int) -> str | None:
    try:
        return str((_PROC / str(pid) / "exe").readlink())
    except OSError:
        return None


def _resident(pid: int) -> tuple[int, int] | None:
    """Bytes that a process has in memory now, and at most so far; None where that can't be read."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
        table = dict(line.split(":", 1) for line in lines if ":" in line)
        return 1024 * int(table["VmRSS"].split()[0]), 1024 * int(table["VmHWM"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
