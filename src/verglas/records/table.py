"""The table of all jobs in a folder, from their records; jobs that RELION ran, died jobs and gaps in the numbering included."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from verglas.errors import FileFormatError
from verglas.records.lock import is_running
from verglas.records.meters import bytes_left
from verglas.records.outputs import changed_since
from verglas.records.record import FAIL, QUEUED, RECORD, Record, read_record
from verglas.records.ticket import ENDED, UNKNOWN, WAITS, read_ticket, standing
from verglas.records.units import duration

RUNNING, NO_RECORD, GAP = "running", "no record", ""
_NUMBER = re.compile(r"^job(\d+)$")


@dataclass
class Row:
    """One job as the table shows it. `metrics` is filled only where the verdict allows it."""

    job: str
    folder: str = ""
    type: str = ""
    description: str = ""
    host: str = ""
    resources: str = ""  # ranks/threads/GPUs
    started: str = ""
    runtime_s: float | None = None
    bytes: int | None = None
    notes: str = ""
    verdict: str = GAP
    phases: dict[str, float] = field(default_factory=dict)
    iterations: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    runs: int = 1


def collect(root: Path) -> list[Row]:
    """A row for every job under `root` in the order of the numbers, one for each gap, then jobs without a number."""
    folders = _job_folders(root)
    records = {folder: _read(folder) for folder in folders}
    rows = [_row(root, folder, record) for folder, record in records.items()]
    _mark_unused(rows, [r for r in records.values() if isinstance(r, Record)])
    numbered = sorted((row for row in rows if _number(row.job) is not None), key=lambda row: _number(row.job) or 0)
    others = sorted((row for row in rows if _number(row.job) is None), key=lambda row: row.started)
    return [*_with_gaps(numbered), *others]


def totals(rows: Iterable[Row]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by job type (stage of the work), and by phase."""
    stages: dict[str, float] = defaultdict(float)
    phases: dict[str, float] = defaultdict(float)
    for row in rows:
        if row.runtime_s is not None:
            stages[row.type] += row.runtime_s
        for phase, seconds in row.phases.items():
            phases[phase] += seconds
    return dict(stages), dict(phases)


def ending(record: Record, folder: Path) -> str:
    """How a job ended, in a line or a few."""
    if record.state == QUEUED:
        return f"{QUEUED}  {folder}  as job {record.queue.get('id') or '?'}"
    lines = [f"{record.verdict}  {folder}  {duration(record.wall_s)}" + (f"  {record.note}" if record.note else "")]
    lines += [f"  {reason}" for reason in record.reasons]
    if record.items and record.items["skipped"] + record.items["failed"]:
        lines.append("  {done} of {total} {unit} done, {skipped} skipped, {failed} failed".format(**record.items))
        lines += [f"    {problem['item']}: {problem['reason']}" for problem in record.items["problems"][:10]]
    return "\n".join(lines)


def current_verdict(folder: Path, record: Record) -> tuple[str, list[str]]:
    """The verdict as it stands now: a job that died, left its queue unfinished, or whose outputs were changed since, is a FAIL."""
    if record.state != "finished":
        if is_running(folder):
            return RUNNING, []
        found = _unfinished(folder, record)
        now = read_record(folder) if found[0] == FAIL else None  # it may have ended well since `record` was read
        return current_verdict(folder, now) if now is not None and now.state == "finished" else found
    changed = changed_since(folder, record.outputs) if record.verdict != FAIL else []
    return (FAIL, changed) if changed else (record.verdict or FAIL, record.reasons)


def _unfinished(folder: Path, record: Record) -> tuple[str, list[str]]:
    """Standing of a job that nobody works on here: it waits in a cluster's queue, is worked on elsewhere, or has died."""
    ticket = read_ticket(folder)
    if ticket is None:
        return FAIL, [f"died in phase {record.phase}" if record.phase else "died before it began"]
    state, words = standing(ticket)
    if state == ENDED:
        missing = "without a verdict" if any(folder.glob("RELION_JOB_EXIT_*")) else "without its exit file"
        return FAIL, [f"{words}, {missing}" + (", see queue.err" if (folder / "queue.err").is_file() else "")]
    if state == WAITS or (state == UNKNOWN and record.state == QUEUED):
        return QUEUED, [words]
    return RUNNING, [words] if state == UNKNOWN else []


def _job_folders(root: Path) -> list[Path]:
    found = {path.parent for depth in ("", "*/", "*/*/", "*/*/*/") for path in root.glob(depth + RECORD)}
    found |= {path.parent for path in root.glob("*/job*/job.star")}
    return sorted({folder.resolve() for folder in found})


def _read(folder: Path) -> Record | str | None:
    try:
        return read_record(folder)
    except FileFormatError as error:
        return str(error)


def _row(root: Path, folder: Path, record: Record | str | None) -> Row:
    inside = folder.relative_to(root.resolve()) if folder.is_relative_to(root.resolve()) else folder
    job = folder.name if _NUMBER.match(folder.name) else str(inside)
    if not isinstance(record, Record):
        return _relion_row(job, inside, folder, record)
    verdict, reasons = current_verdict(folder, record)
    good = verdict not in (FAIL, RUNNING, QUEUED)
    used = record.resources
    return Row(
        job=job,
        folder=str(inside),
        type=record.type,
        description=record.type + (f" ({record.alias})" if record.alias else ""),
        host=record.host.get("name", ""),
        resources=f"{used.get('ranks', 1)}/{used.get('threads', 1)}/{used.get('gpus', 0)}",
        started=record.started,
        runtime_s=record.wall_s + sum(run.get("wall_s", 0.0) for run in record.previous),
        bytes=record.usage.get("apparent_bytes"),
        notes=_notes(folder, record, verdict, reasons),
        verdict=verdict,
        phases=_sum_phases([record.phases, *(run.get("phases", {}) for run in record.previous)]),
        iterations=record.iterations,
        metrics=record.metrics if good else {},
        runs=1 + len(record.previous),
    )


def _notes(folder: Path, record: Record, verdict: str, reasons: list[str]) -> str:
    if verdict not in (FAIL, RUNNING, QUEUED):
        parts = [record.note]
        if record.items and record.items["skipped"] + record.items["failed"]:
            parts.append(f"{record.items['skipped'] + record.items['failed']} of {record.items['total']} {record.items['unit']} left out")
    elif verdict == RUNNING:
        parts = [f"in phase {record.phase}" if record.phase else "", *reasons]
    elif verdict == QUEUED:
        parts = list(reasons)
    else:
        done = record.iterations if record.iterations is not None else _iterations_in(folder)
        parts = [*reasons, f"{done} iterations done" if done is not None else ""]
    if record.warnings:
        parts.append(f"{len(record.warnings)} warning{'s' if len(record.warnings) > 1 else ''}")
    return "; ".join(part for part in parts if part)


def _relion_row(job: str, inside: Path, folder: Path, problem: str | None) -> Row:
    """A job without a readable record: what RELION's own files tell."""
    endings = {"SUCCESS": "succeeded", "FAILURE": "failed", "ABORTED": "aborted"}
    ended = next((folder / f"RELION_JOB_EXIT_{name}" for name in endings if (folder / f"RELION_JOB_EXIT_{name}").exists()), None)
    start = _note_start(folder)
    runtime = ended.stat().st_mtime - start if ended and start else None
    done = _iterations_in(folder)
    parts = [problem or "", endings[ended.name.rsplit("_", 1)[1]] if ended else "has not ended", f"{done} iterations" if done else ""]
    row = Row(job, str(inside), type=folder.parent.name, description=folder.parent.name, runtime_s=runtime, bytes=bytes_left(folder)[0])
    row.notes, row.verdict = "; ".join(part for part in parts if part), NO_RECORD
    row.started = datetime.fromtimestamp(start).astimezone().isoformat() if start else ""
    return row


def _note_start(folder: Path) -> float | None:
    """The moment of the last start in note.txt."""
    try:
        found = re.findall(r"job on (.+)", (folder / "note.txt").read_text(errors="replace"))
        return time.mktime(time.strptime(found[-1].strip())) if found else None
    except (OSError, ValueError):
        return None


def _iterations_in(folder: Path) -> int | None:
    numbers = [int(match[1]) for path in folder.glob("*_it*") if (match := re.search(r"_it(\d{3,})", path.name))]
    return max(numbers, default=None)


def _mark_unused(rows: list[Row], records: list[Record]) -> None:
    used = {Path(entry["from"]).name for record in records for entry in record.inputs if entry.get("from")}
    last = max((_number(row.job) or 0 for row in rows), default=0)
    without_use = (FAIL, NO_RECORD, RUNNING, QUEUED)
    for row in rows:
        number = _number(row.job)
        if records and number is not None and number < last and row.job not in used and row.verdict not in without_use:
            row.notes = "; ".join(part for part in (row.notes, "not used by a later job") if part)


def _with_gaps(rows: list[Row]) -> list[Row]:
    """Rows with one more for each run of numbers that has no folder."""
    found, expected = [], 1
    for row in rows:
        number = _number(row.job) or 0
        if number > expected:
            missing = f"job{expected:03d}" + (f"–{number - 1:03d}" if number - 1 > expected else "")
            found.append(Row(missing, notes="no folder: deleted, or ended before it began"))
        found.append(row)
        expected = number + 1
    return found


def _number(job: str) -> int | None:
    match = _NUMBER.match(job)
    return int(match[1]) if match else None


def _sum_phases(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for part in parts:
        for phase, seconds in part.items():
            total[phase] += seconds
    return dict(total)
