"""The judge: PASS only when every condition holds, FAIL with the reasons otherwise, UNCHECKED where there was nothing to check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from verglas.records.record import FAIL, PASS, UNCHECKED


class Range(Protocol):
    """A declared check: `metric` must lie in `low` to `high` (None: open), and `source` says where the range comes from."""

    @property
    def metric(self) -> str: ...  # noqa: D102
    @property
    def low(self) -> float | None: ...  # noqa: D102
    @property
    def high(self) -> float | None: ...  # noqa: D102
    @property
    def source(self) -> str: ...  # noqa: D102


@dataclass
class Evidence:
    """What the runner found out about a job that has ended. Problem lists hold one sentence a problem."""

    exit_code: int | None  # None: it never started
    exit_file: str | None  # success, failure, aborted
    signal: str | None = None
    stopped: str | None = None  # why it was stopped: by the user, or at its time limit
    error: str | None = None
    items: dict[str, Any] | None = None
    input_problems: list[str] = field(default_factory=list)
    output_problems: list[str] = field(default_factory=list)
    metrics: dict[str, Any] | None = None
    measuring_failed: str | None = None
    checks: Sequence[Range] = ()


def judge(evidence: Evidence) -> tuple[str, list[str]]:
    """Verdict and reasons. Reasons name metrics that are out of range, but no figure: a failed job has no quality."""
    reasons = _ending(evidence) or [*_items(evidence.items), *evidence.output_problems]
    reasons += evidence.input_problems
    if evidence.measuring_failed:
        reasons.append(evidence.measuring_failed)
    if not reasons:  # what a broken run left is not measured against ranges
        reasons = [problem for check in evidence.checks if (problem := _out_of_range(check, evidence.metrics or {}))]
    if reasons:
        return FAIL, reasons
    return (PASS if evidence.checks else UNCHECKED), []


def check_results(evidence: Evidence) -> list[dict[str, Any]]:
    """Every check with its range, source and whether it held, for the record; `held` is None where nothing could be measured."""
    metrics = evidence.metrics
    return [
        {
            "metric": check.metric,
            "low": check.low,
            "high": check.high,
            "source": check.source,
            "held": None if metrics is None else _out_of_range(check, metrics) is None,
        }
        for check in evidence.checks
    ]


def _ending(evidence: Evidence) -> list[str]:
    if evidence.stopped:
        return [evidence.stopped]
    if evidence.error:
        return [evidence.error]
    if evidence.signal:
        return [f"killed by {evidence.signal}"]
    if evidence.exit_code is None:
        return ["never started"]
    if evidence.exit_code != 0:
        return [f"exit code {evidence.exit_code}"]
    if evidence.exit_file != "success":
        return [f"exit file says {evidence.exit_file}" if evidence.exit_file else "exit file missing"]
    return []


def _items(items: dict[str, Any] | None) -> list[str]:
    if items is None:
        return ["no account of its items"]
    total, parts = items["total"], [items[name] for name in ("done", "skipped", "failed")]
    if any(not isinstance(n, int) or n < 0 for n in (total, *parts)):
        return ["item counts are not whole numbers"]
    if total != sum(parts):
        return [f"item counts don't add up: {total} {items['unit']} = {parts[0]} done + {parts[1]} skipped + {parts[2]} failed"]
    if parts[0] == 0:
        return [f"empty: none of {total} {items['unit']} done"]
    return []


def _out_of_range(check: Range, metrics: dict[str, Any]) -> str | None:
    value = metrics.get(check.metric)
    if value is None or isinstance(value, str):
        return f"{check.metric} was not measured"
    if not math.isfinite(value):
        return f"{check.metric} is not a number"
    if (check.low is not None and value < check.low) or (check.high is not None and value > check.high):
        low, high = ("…" if end is None else f"{end:g}" for end in (check.low, check.high))
        return f"{check.metric} is out of its range {low} to {high} ({check.source})"
    return None
