"""`record.json`: everything that is known about one job, written when it starts, kept up to date, and completed by the judge."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from verglas.errors import FileFormatError

RECORD = "record.json"
PASS, FAIL, UNCHECKED = "PASS", "FAIL", "UNCHECKED"
QUEUED = "queued"  # the state of a job that a cluster has not begun


@dataclass
class Record:
    """One job. Times are seconds, sizes bytes, moments ISO 8601 with zone; None is "not known", never zero.

    `state` is `running` until the judge has spoken, and `queued` while nothing has begun on a cluster; `queue` is the job's number there.
    `previous` holds what earlier runs in the same folder took and how they ended.
    `metrics` is empty unless the verdict is PASS or UNCHECKED; measurements of a failed job are in `rejected_metrics`, for diagnosis alone.
    """

    type: str
    name: str  # Class2D/job008, or the folder's name outside a project
    format: int = 1
    alias: str | None = None
    step: str | None = None  # of which recipe, and which step
    description: str = ""
    state: str = "running"
    verdict: str | None = None
    reasons: list[str] = field(default_factory=list)
    engine: str = "verglas"
    relion: dict[str, Any] = field(default_factory=dict)  # version, ranks, threads and extra options, where the engine is RELION
    software: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    working_directory: str = ""
    started: str = ""
    finished: str | None = None
    queue_wait_s: float | None = None
    queue: dict[str, Any] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    fingerprint: str = ""
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    phase: str = "staging"
    phases: dict[str, float] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    items: dict[str, Any] | None = None
    iterations: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    exit: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    note: str = ""  # the metrics in a few words, empty for a failed job
    rejected_metrics: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    previous: list[dict[str, Any]] = field(default_factory=list)

    @property
    def wall_s(self) -> float:
        """Wall time of this run so far."""
        return sum(self.phases.values())

    def write(self, folder: Path) -> None:
        """Write `record.json` into `folder`, whole or not at all."""
        from verglas.io.atomic import write_json

        write_json(folder / RECORD, asdict(self))


def read_record(folder: Path) -> Record | None:
    """The record in `folder`, None where there is none. Raises FileFormatError for one that can't be read."""
    path = folder / RECORD
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Record)}
        return Record(**{key: value for key, value in stored.items() if key in known})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(path, f"not a record ({error})", "Remove it, and run the job again") from error
