"""How much memory a job may take, so that batch sizes are found and not asked for.

They follow how much memory a device has, not how much of it is free at the moment: a job that runs again has the same batches, and
with them the same bits. Only where others have taken so much that this would not fit do they follow what is left.
"""

from __future__ import annotations

from pathlib import Path

import torch

_SHARE = 0.5  # the rest is for the file cache, the allocator's slack and other processes
_MOST_OF_FREE = 0.8
_CGROUP, _NO_LIMIT = Path("/sys/fs/cgroup"), 1 << 62

_sharing = 1


def share_memory(processes: int) -> None:
    """Let this process take its part only of the host's memory, which so many processes like it share."""
    global _sharing
    _sharing = processes


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated now on `device`: on a CPU the smaller of the system's and the cgroup's free memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(cached)
    return min(_system("MemAvailable:"), _cgroup_available()) // _sharing


def total_bytes(device: torch.device) -> int:
    """Bytes that `device` has: on a CPU the smaller of the system's memory and the cgroup's limit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min(_system("MemTotal:"), _cgroup_limit()) // _sharing


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


def _cgroup_limit() -> int:
    try:
        return int((_CGROUP / "memory.max").read_text())
    except (OSError, ValueError):  # no cgroup, or "max"
        return _NO_LIMIT


def _cgroup_available() -> int:
    limit = _cgroup_limit()
    try:
        if limit == _NO_LIMIT:
            return limit
        used = int((_CGROUP / "memory.current").read_text())
        parts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + int(parts["inactive_file"]) + int(parts["active_file"])  # the file cache makes room
    except (OSError, ValueError, KeyError):
        return _NO_LIMIT
