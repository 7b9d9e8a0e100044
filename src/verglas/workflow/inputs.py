"""Inputs of a job: where they come from, whether they are what their own job left, and whether they stay the same during the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verglas.errors import InputError
from verglas.jobs.declaration import NodeType
from verglas.records.digest import digest
from verglas.records.lock import is_running
from verglas.records.record import FAIL, RECORD, Record, read_record
from verglas.records.ticket import in_queue
from verglas.workflow.request import JobRequest

_TOO_MUCH_TO_READ = (NodeType.MOVIES, NodeType.MICROGRAPHS)


def describe_inputs(files: list[tuple[str, int, str]]) -> list[dict[str, Any]]:
    """Name, node type, path, size, digest and origin of each (name, node, path). Reads the files whole."""
    found = []
    for name, node, path in files:
        entry = {"name": name, "node": node, "path": path, **_digest(Path(path), node), "from": None}
        folder = maker_of(Path(path))
        if folder is not None:
            entry["from"] = str(folder)
        found.append(entry)
    return found


def request_files(request: JobRequest) -> list[tuple[str, int, str]]:
    """The request's files in the form of `describe_inputs`."""
    return [(spec.name, int(spec.node), str(path)) for spec, path in request.files()]


def maker_of(path: Path) -> Path | None:
    """The job folder that a file lies in, by the record there; None for a file from outside."""
    return next((folder for folder in path.parents if (folder / RECORD).is_file()), None)


def origin_problems(inputs: list[dict[str, Any]], folder: Path | None) -> list[str]:
    """Sentences on inputs that are not sound results of the job whose folder they lie in.

    Raises InputError for one whose job is running now, and for the job's own output as its input.
    """
    problems = []
    for entry in inputs:
        if entry["from"] is None:
            continue
        maker = Path(entry["from"])
        if folder is not None and maker.resolve() == folder.resolve():
            raise InputError(entry["path"], "is an output of this very job", "Give the job another folder")
        if is_running(maker):
            raise InputError(entry["path"], f"comes from {maker}, which is still running", "Wait until it has ended")
        record = read_record(maker)
        if record is not None and in_queue(maker, record) is not None:
            raise InputError(entry["path"], f"comes from {maker}, which is still in a cluster's queue", "Wait until it has ended")
        if record is not None and (problem := _origin_problem(entry, maker, record)):
            problems.append(problem)
    return problems


def changes(inputs: list[dict[str, Any]]) -> list[str]:
    """Sentences on inputs whose content is no longer what it was at the start. Hashes again only what may have changed."""
    problems = []
    for entry in inputs:
        path = Path(entry["path"])
        try:
            if path.suffix == ".star" or path.is_dir() or _stamp(path) != entry["stamp"]:
                same = _digest(path, entry["node"])["sha256"] == entry["sha256"]
                problems += [] if same else [f"input {path} changed during the run"]
        except OSError:
            problems.append(f"input {path} vanished during the run")
    return problems


def _origin_problem(entry: dict[str, Any], maker: Path, record: Record) -> str | None:
    if record.state != "finished":
        return f"input {entry['path']} comes from {maker}, which died before it was judged"
    if record.verdict == FAIL:
        return f"input {entry['path']} comes from {maker}, whose verdict is FAIL"
    left = next((o for o in record.outputs if maker / o["path"] == Path(entry["path"])), None)
    if left is not None and left.get("sha256") != entry["sha256"]:
        also = ", or files that it names were changed since" if "names" in entry["covers"] else ""
        return f"input {entry['path']} is not the file that {maker} left{also}"
    return None


def _digest(path: Path, node: int) -> dict[str, Any]:
    if path.is_dir():
        raise InputError(path, "is a folder, a file was expected")
    return {**digest(path, whole=node not in _TOO_MUCH_TO_READ), "stamp": _stamp(path)}


def _stamp(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns, facts.st_ino]
