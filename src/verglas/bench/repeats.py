"""The job table over the repeats of a benchmark: what each job took in the middle, and between which ends."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from verglas.records.record import PASS
from verglas.records.table import Row
from verglas.records.units import duration, size

HEADINGS = ("Job", "Runtime", "Data", "Verdicts")


def spread_over_repeats(runs: Sequence[Sequence[Row]]) -> list[tuple[str, ...]]:
    """Texts under HEADINGS, a line for each job of the recipe and one for their sum; median, and range in brackets.

    Only jobs that passed count, of several of one name in a run the last; the verdicts are of all jobs.
    """
    names = dict.fromkeys(row.description for rows in runs for row in rows if row.type)
    passed = [{row.description: row for row in rows if row.verdict == PASS} for rows in runs]
    lines: list[tuple[str, ...]] = []
    for name in names:
        found = [jobs[name] for jobs in passed if name in jobs]
        verdicts = Counter(row.verdict for rows in runs for row in rows if row.description == name)
        seconds = [row.runtime_s for row in found if row.runtime_s is not None]
        left = [float(row.bytes) for row in found if row.bytes is not None]
        lines.append(
            (name, _spread(seconds, duration), _spread(left, size), ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items()))
        )
    whole = [jobs.values() for jobs in passed if len(jobs) == len(names)]
    lines.append(
        (
            "Sum",
            _spread([sum(row.runtime_s or 0.0 for row in jobs) for jobs in whole], duration),
            _spread([sum(float(row.bytes or 0) for row in jobs) for jobs in whole], size),
            f"{len(whole)} of {len(runs)} runs passed whole",
        )
    )
    return lines


def _spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    if not values:
        return "–"
    middle = show(statistics.median(values))
    return f"{middle} ({show(min(values))} to {show(max(values))})" if len(values) > 1 else middle
