"""How much memory a job may take, so that batch sizes are found and not asked for."""

from __future__ import annotations

from pathlib import Path

import torch

_SHARE_OF_FREE = 0.5  # the rest is for the file cache, the allocator's slack and other processes


_sharing = 1


def share_memory(processes: int) -> None:
    """Let this process take its part only of the host's free memory, which so many processes like it share."""
    global _sharing
    _sharing = processes


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated now on `device`: on a CPU the smaller of the system's and the cgroup's free memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(cached)
    return min(_system_available(), _cgroup_available()) // _sharing


def batch_size(bytes_per_item: int, device: torch.device, *, at_most: int, reserved: int = 0) -> int:
    """Items that fit into the job's share of the free memory, between 1 and `at_most`.

    `bytes_per_item` counts every temporary of one item; `reserved` is what the job will allocate besides.
    """
    budget = int(free_bytes(device) * _SHARE_OF_FREE) - reserved
    return max(1, min(at_most, budget // max(bytes_per_item, 1)))


def _system_available() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 << 30


def _cgroup_available() -> int:
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        text = limit.read_text().strip()
        return int(text) - int(used.read_text()) if text != "max" else 1 << 62
    except (OSError, ValueError):
        return 1 << 62
