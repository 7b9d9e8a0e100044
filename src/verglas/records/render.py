"""The job table as text, CSV, JSON and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from verglas.records.table import Row, totals
from verglas.records.units import duration, size

HEADINGS = ("Job ID", "Description", "Where run", "Ranks/threads/GPUs", "Runtime", "Data", "Notes", "Verdict")


_CSV_HEADINGS = ("job", "type", "description", "host", "ranks_threads_gpus", "started", "runtime_s", "bytes", "iterations")


def cells(row: Row) -> tuple[str, ...]:
    """A row's texts under HEADINGS."""
    runtime = duration(row.runtime_s) if row.type else ""
    return (row.job, row.description, row.host, row.resources, runtime, size(row.bytes) if row.type else "", row.notes, row.verdict)


def as_text(rows: Sequence[Row]) -> str:
    """Columns for a terminal, and the totals. Notes stand last, so that long ones do no harm."""
    order = (0, 1, 7, 4, 3, 5, 2, 6)
    table = [[line[i] for i in order] for line in (HEADINGS, *map(cells, rows))]
    return "\n".join([in_columns(table), "", *_totals_text(rows)])


def in_columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of equally many texts, in columns as wide as their longest."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines)


def as_csv(rows: Sequence[Row]) -> str:
    """The table with seconds and bytes as plain numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*_CSV_HEADINGS, "notes", "verdict"))
    for row in rows:
        seconds = "" if row.runtime_s is None else f"{row.runtime_s:.3f}"
        numbers = (seconds, "" if row.bytes is None else row.bytes, "" if row.iterations is None else row.iterations)
        writer.writerow((row.job, row.type, row.description, row.host, row.resources, row.started, *numbers, row.notes, row.verdict))
    return out.getvalue()


def as_plain(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows and totals for JSON."""
    stages, phases = totals(rows)
    return {"jobs": [asdict(row) for row in rows], "seconds_by_stage": stages, "seconds_by_phase": phases}


def html_table(rows: Sequence[Row]) -> str:
    """The table and totals as HTML elements; verdicts carry a class of their name."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in HEADINGS)
    body = "\n".join(_html_row(row) for row in rows)
    stages, phases = totals(rows)
    sums = _html_totals("By stage", stages) + _html_totals("By phase", phases)
    return f'<table class="jobs"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>\n<div class="totals">{sums}</div>'


def _html_row(row: Row) -> str:
    *plain, verdict = (html.escape(text) for text in cells(row))
    return "<tr>" + "".join(f"<td>{text}</td>" for text in plain) + f'<td class="{verdict.replace(" ", "-") or "gap"}">{verdict}</td></tr>'


def _html_totals(title: str, sums: dict[str, float]) -> str:
    lines = "".join(f"<tr><td>{html.escape(name)}</td><td>{duration(seconds)}</td></tr>" for name, seconds in sums.items())
    return f"<table><caption>{title}</caption>{lines}</table>"


def _totals_text(rows: Sequence[Row]) -> list[str]:
    stages, phases = totals(rows)
    counts: dict[str, int] = {}
    for row in rows:
        if row.type:
            counts[row.verdict] = counts.get(row.verdict, 0) + 1
    return [
        "By stage  " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in stages.items()),
        "By phase  " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in phases.items()),
        f"Total     {duration(sum(stages.values()))}; " + (", ".join(f"{n} {verdict}" for verdict, n in counts.items()) or "no jobs"),
    ]
