"""One line of the benchmark's second table: what was measured, and the range it should lie in."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

HEADINGS = ("Step", "Measurement", "Reference", "Submitted", "Verdict")


@dataclass(frozen=True)
class Measurement:
    """`value` of `name`, measured on the files of step `step`; `low` and `high` bound it, None where nothing is asked."""

    step: str
    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the value is in range; a value that is not a number never is."""
        above = self.value >= self.low if self.low is not None else self.value == self.value
        return above and (self.high is None or self.value <= self.high)

    @property
    def reference(self) -> str:
        """The range in words."""
        if self.low is None and self.high is None:
            return "–"
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f"≤ {self.high:g}" if self.low is None else f"≥ {self.low:g}"


def table(runs: Sequence[Sequence[Measurement]]) -> list[tuple[str, str, str, str, str]]:
    """Rows (step, measurement, reference, submitted, verdict) over the repeats; with several, median and range are shown."""
    rows = []
    for lines in zip(*runs):
        values = sorted(line.value for line in lines)
        first = lines[0]
        shown = f"{statistics.median(values):.4g}" + (f" ({values[0]:.4g} to {values[-1]:.4g})" if len(values) > 1 else "")
        bounded = first.low is not None or first.high is not None
        verdict = ("PASS" if all(line.passed for line in lines) else "FAIL") if bounded else ""
        reference = f"{first.reference} {first.unit}".strip() if bounded else first.reference
        rows.append((first.step, first.name, reference, f"{shown} {first.unit}".strip(), verdict))
    return rows


def as_plain(lines: Sequence[Measurement]) -> list[dict[str, object]]:
    """The measurements of one run for JSON."""
    return [{"step": m.step, "name": m.name, "value": m.value, "unit": m.unit, "reference": m.reference, "passed": m.passed} for m in lines]
