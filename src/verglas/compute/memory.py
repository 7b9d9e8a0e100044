"""How much memory a job may take, so that batch sizes are found and not asked for.

They follow how much memory a device has, not how much of it is free at the moment: a job that runs again has the same batches, and
with them the same bits. Only where others have taken so much that this would not fit do they follow what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

_SHARE = 0.5  # the rest is for the file cache, the allocator's slack and other processes
_MOST_OF_FREE = 0.8
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# files of a limit and of what is used of it, and what the lines of memory.stat begin with that count the cgroups below it
_FIRST_VERSION, _SECOND_VERSION = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"), ("memory.max", "memory.current", "")

_sharing = 1


def share_memory(processes: int) -> None:
    """Let this process take its part only of the host's memory, which so many processes like it share."""
    global _sharing
    _sharing = processes


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated now on `device`: on a CPU the least of the system's free memory and its cgroups'."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(cached)
    return min([_system("MemAvailable:"), *(left for _, left in _cgroups())]) // _sharing


def total_bytes(device: torch.device) -> int:
    """Bytes that `device` has: on a CPU the least of the system's memory and its cgroups' limits."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min([_system("MemTotal:"), *(limit for limit, _ in _cgroups())]) // _sharing


def budget(device: torch.device, share: float) -> int:
    """Bytes that make up `share` of the device's memory; of what is free, where that would be nearly all of it or more."""
    wanted, free = int(total_bytes(device) * share), free_bytes(device)
    return wanted if wanted <= _MOST_OF_FREE * free else int(free * share)


def batch_size(bytes_per_item: int, device: torch.device, *, at_most: int, reserved: int = 0) -> int:
    """Items that fit into the job's share of the memory (see `budget`), between 1 and `at_most`.

    `bytes_per_item` counts every temporary of one item; `reserved` is what the job will allocate besides.
    """
    return max(1, min(at_most, (budget(device, _SHARE) - reserved) // max(bytes_per_item, 1)))


def _system(line_of: str) -> int:
    """The bytes that a line of /proc/meminfo tells; where there is none, little enough for any machine."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith(line_of):
                return int(line.split()[1]) * 1024
    return 4 << 30


def _cgroups() -> Iterator[tuple[int, int]]:
    """Limit, and what is left of it, of every cgroup with one that this process is in, up to the root, in bytes (cgroups(7))."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        kinds, found, path = rest.partition(":")
        if not found or (kinds and "memory" not in kinds.split(",")):
            continue
        root, (limit, used, total) = (_CGROUPS / "memory", _FIRST_VERSION) if kinds else (_CGROUPS, _SECOND_VERSION)
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            try:
                most = int((folder / limit).read_text())
            except (OSError, ValueError):  # not there, or "max"
                continue
            try:
                cached = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                taken = int((folder / used).read_text())
                taken -= int(cached[f"{total}inactive_file"]) + int(cached[f"{total}active_file"])  # the file cache makes room
            except (OSError, ValueError, KeyError):
                taken = 0
            yield most, most - taken
