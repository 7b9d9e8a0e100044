"""Numbers as people read them."""

from __future__ import annotations


def duration(seconds: float | None) -> str:
    """`3.2 s`, `4m05s`, `2h03m`; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def size(count: float | None) -> str:
    """Bytes as `812 B`, `3.1 MB`, `58 GB` (powers of 1000, as disks are sold); a dash for None."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
