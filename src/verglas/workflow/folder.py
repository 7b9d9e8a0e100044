"""Which folder a run works in, and what an earlier run left there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verglas.errors import InputError
from verglas.io.atomic import is_temporary
from verglas.io.relion_iterations import remove_iterations_after
from verglas.jobs.declaration import JobType
from verglas.project.project import Project
from verglas.records.digest import digest
from verglas.records.lock import is_running
from verglas.records.record import FAIL, QUEUED, Record, read_record
from verglas.records.ticket import in_queue
from verglas.workflow.request import WITHOUT_EFFECT, JobRequest

_ITERATION = re.compile(r"_it(\d{3,})")
_OURS = ("record.json", ".verglas_lock")


@dataclass
class Place:
    """A folder for a run. `name` is its name in the project (with slash), None outside one; `record` is of an earlier run."""

    folder: Path | None
    name: str | None = None
    record: Record | None = None

    @property
    def exists(self) -> bool:
        """Whether an earlier run worked there; one that only waits for a cluster hasn't."""
        return self.record is not None and (self.record.state != QUEUED or bool(self.record.previous))

    def make(self, declared: JobType, project: Project | None) -> Path:
        """Make the folder, with the project's next number where it has none yet."""
        if self.folder is None:
            assert project is not None
            self.name = project.new_job(declared.name, declared.relion_number)
            self.folder = Path(self.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(self.folder, f"cannot be made ({error.strerror})", "Check permissions and free space") from None
        return self.folder

    def vouched(self, now: Record) -> dict[str, str]:
        """Outputs that the last run in the folder is known to have left for the same work, with their digests."""
        before = self.record
        if before is None or before.verdict in (None, FAIL) or before.fingerprint != now.fingerprint:
            return {}
        return {o["path"]: o["sha256"] for o in before.outputs if "sha256" in o}


def find_place(request: JobRequest, entries: list[dict[str, Any]], fingerprint: str, project: Project | None) -> Place:
    """The folder asked for, an unfinished job of the same work in the project, or a new one; `entries` describe the request's inputs.

    Raises InputError for a folder that other work or another program's files are in, and for work that is in a cluster's queue.
    """
    if request.out is not None:
        return _asked_for(request, entries, fingerprint, project)
    if project is None:
        raise InputError("--out", "is needed outside a project", "Give a folder, or make a project here: verglas new .")
    for folder, record in records_of(request.declared.name):
        if record.fingerprint == fingerprint:
            refuse_queued(folder, record)
            if is_unfinished(folder, record):
                return Place(folder, f"{folder}/", record)
    return Place(None)


def records_of(type_name: str) -> list[tuple[Path, Record]]:
    """Folders and records of a job type in the project of the working directory, newest first."""
    folders = sorted((p for p in Path(type_name).glob("job*") if not p.is_symlink()), reverse=True)
    return [(folder, record) for folder in folders if (record := read_record(folder)) is not None]


def is_unfinished(folder: Path, record: Record) -> bool:
    """Whether a job was stopped, killed or failed, and nothing works on it now: the same work goes on in its folder."""
    return record.verdict in (None, FAIL) and not is_running(folder)


def refuse_queued(folder: Path, record: Record) -> None:
    """Raise InputError for a job that is in a cluster's queue by another submission, waiting or running."""
    if (ticket := in_queue(folder, record)) is not None:
        raise InputError(folder, f"is in the queue as job {ticket.id or '?'}", "Wait for it, or cancel it there: scancel, qdel …")


def past_runs(record: Record | None) -> list[dict[str, Any]]:
    """The earlier runs in a folder, shortly: the last one's own list and itself."""
    if record is None or record.state == QUEUED:
        return [] if record is None else record.previous
    verdict = record.verdict or "FAIL"
    last = {"started": record.started, "finished": record.finished, "wall_s": record.wall_s, "phases": record.phases, "verdict": verdict}
    return [*record.previous, {**last, "iterations": record.iterations, "cpu_s": record.usage.get("cpu_s")}]


def sort_out(folder: Path, outputs: list[str], vouched: dict[str, str]) -> dict[str, str]:
    """Remove declared outputs that no finished run of the same work vouches for, and what a kill left half-written.

    Returns the outputs that stay, with their digests.
    """
    for file in folder.rglob(".*.tmp*"):
        if is_temporary(file):
            file.unlink()
    kept = {}
    for path in outputs:
        file = folder / path
        if file.is_file():
            found = digest(file)["sha256"]
            if vouched.get(path) == found:
                kept[path] = found
            else:
                file.unlink()
    return kept


def go_back(folder: Path, number: int, outputs: list[str]) -> None:
    """Remove what came after iteration `number` of a refinement: later iterations, and the declared outputs that are of none."""
    remove_iterations_after(folder, number)
    for path in outputs:
        if not _ITERATION.search(path):
            (folder / path).unlink(missing_ok=True)


def iterations_in(folder: Path) -> int | None:
    """The highest iteration among the files of a refinement; None where there are none."""
    numbers = [int(match[1]) for path in folder.glob("*_it*") if (match := _ITERATION.search(path.name))]
    return max(numbers, default=None)


def _asked_for(request: JobRequest, entries: list[dict[str, Any]], fingerprint: str, project: Project | None) -> Place:
    folder = request.out
    assert folder is not None
    name = None
    if project is not None:
        text = f"{folder}/".removeprefix("./")
        name = text if text in project.pipeline().processes else None
    record = read_record(folder) if folder.is_dir() else None
    if record is None:
        if request.go_on:
            raise InputError(folder, "is not the folder of a job", "See: verglas stats")
        if folder.exists() and (not folder.is_dir() or any(p.name not in _OURS for p in folder.iterdir())):
            raise InputError(folder, "holds files of something else", "Give an empty or a new folder")
        return Place(folder, name)
    if is_running(folder):
        raise InputError(folder, "another run is working in this folder", "Wait for it, or stop it: verglas stop JOB")
    refuse_queued(folder, record)
    if record.fingerprint != fingerprint:
        _refuse_other_work(request, entries, record, folder)
    return Place(folder, name, record)


def _refuse_other_work(request: JobRequest, entries: list[dict[str, Any]], record: Record, folder: Path) -> None:
    """Raise InputError naming what differs from the work that was begun in `folder`; more iterations are fine."""
    if record.type != request.declared.name:
        raise InputError(folder, f"holds a {record.type} job", "Give another folder")
    if record.engine != request.engine:
        raise InputError(folder, f"was begun by the engine {record.engine}", f"Give another folder, or --engine {record.engine}")
    if request.relion is not None and [*record.relion["extra"]] != [*request.relion.extra]:
        raise InputError(folder, f"was begun with other --relion-args: {record.relion['extra']}", "Give another folder")
    now = request.params.model_dump(mode="json")
    ignored = {*WITHOUT_EFFECT, request.declared.grows}
    changed = {name: value for name, value in now.items() if name not in ignored and record.params.get(name) != value}
    differ = [f"{name} {record.params.get(name)} → {value}" for name, value in changed.items()]
    if differ:
        raise InputError(folder, f"was begun with other parameters: {', '.join(differ)}", "Give another folder")
    for of_each, differ_in in ((("name", "path"), "other inputs"), (("name", "path", "sha256"), "inputs of other content")):
        before, given = ({tuple(entry.get(fact) for fact in of_each) for entry in listed} for listed in (record.inputs, entries))
        if before != given:
            raise InputError(folder, f"was begun with {differ_in}", "Give another folder")
