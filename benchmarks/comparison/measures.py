"""What is compared, in which direction it is better, and how far an engine may be from RELION (issue bars)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BESIDE = 0.05  # beyond the band of the yardstick's repeats that still counts as the same
AREA_BESIDE = 0.01
FAST_CORES = 0.5  # TFLOP/s in bf16 products, from which on the higher speed is asked for

Bar = Literal["time", "relative", "shell", "area", "none"]


@dataclass(frozen=True)
class Measure:
    """`key` in a run's figures, its name in the table, unit, whether less is better, and which bar it has."""

    key: str
    name: str
    unit: str = ""
    less: bool = True
    bar: Bar = "none"


COST = (
    Measure("wall_s", "wall time", "s", bar="time"),
    Measure("cpu_s", "CPU time", "s"),
    Measure("job_s", "wall time without start and judging", "s"),
    Measure("memory_mb", "peak memory", "MB"),
    Measure("iterations", "iterations"),
)
_MAP = (
    Measure("truth_shell", "map against truth, FSC 0.5", "shell", less=False, bar="shell"),
    Measure("truth_shell_143", "map against truth, FSC 0.143", "shell", less=False),
    Measure("fsc_area", "map against truth, FSC area", less=False, bar="area"),
)
SCORES = (
    Measure("particles", "particles", less=False),
    Measure("classes", "classes with particles", less=False),
    Measure("view_median", "view to the middle of its class, median", "°", bar="relative"),
    Measure("view_90", "view to the middle of its class, 90 % below", "°", bar="relative"),
    Measure("near_views", "views within 20° of it", "%", less=False, bar="relative"),
    Measure("purity", "class purity", "%", less=False, bar="relative"),
    Measure("chance", "class purity of one class for all", "%", less=False),
    Measure("pose_median", "pose, median error", "°", bar="relative"),
    Measure("pose_90", "pose, 90 % below", "°", bar="relative"),
    Measure("within_10_degrees", "poses within 10°, share", less=False),
    Measure("shift_median", "shift, median error", "Å", bar="relative"),
    Measure("shift_90", "shift, 90 % below", "Å"),
    Measure("half_shell", "half maps, FSC 0.143", "shell", less=False, bar="shell"),
    *_MAP,
    *(Measure(f"state{k}_{m.key}", f"state {k}: {m.name}", m.unit, m.less, m.bar) for k in (1, 2) for m in _MAP),
    Measure("mirrored", "mirror image (1) or not (0)"),
)


def within_bar(
    measure: Measure, job: str, ours: Sequence[float], yardstick: Sequence[float], pairs: Sequence[tuple[float, float]], bf16_peak: float
) -> bool | None:
    """Whether the repeats `ours` meet the measure's bar against the `yardstick`'s; None where it has no bar or nothing to compare.

    The median is held against the yardstick's worst repeat; times and areas seed by seed (`pairs` of ours and the yardstick's).
    """
    if measure.bar == "none" or not ours or not yardstick:
        return None
    middle, worst = statistics.median(ours), (max if measure.less else min)(yardstick)
    if measure.bar == "time":
        return bool(pairs) and min(theirs / mine for mine, theirs in pairs) >= wanted_speed(job, bf16_peak)
    if measure.bar == "area":
        return bool(pairs) and all(mine >= (1 - AREA_BESIDE) * theirs for mine, theirs in pairs)
    if measure.bar == "shell":
        return middle >= worst - 1
    return middle <= (1 + BESIDE) * worst if measure.less else middle >= (1 - BESIDE) * worst


def wanted_speed(job: str, bf16_peak: float) -> float:
    """How many times faster than RELION 3.1.3 a job should be where bf16 products reach `bf16_peak` TFLOP/s."""
    return 20.0 if job in ("Class2D", "Refine3D") and bf16_peak >= FAST_CORES else 10.0
