"""The files a job leaves: whether each is there, of this run, and readable; and whether they are still what was judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verglas.errors import VerglasError
from verglas.records.digest import digest


def inspect_output(folder: Path, path: str) -> dict[str, Any]:
    """Facts of one output after a run: size, time and digest, and `problem`, None when it can be read."""
    file = folder / path
    try:
        facts = file.stat()
        found = {"path": path, "bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": digest(file)["sha256"]}
        return {**found, "problem": _unreadable(file)}
    except FileNotFoundError:
        return {"path": path, "problem": f"{path} is missing"}
    except OSError as error:
        return {"path": path, "problem": f"{path} cannot be read ({error.strerror})"}


def timeliness_problem(found: dict[str, Any], start_ns: int, kept: dict[str, str]) -> str | None:
    """Why an output is not this run's: it is older than the start, and not a file that the last run in this folder is known to have left.

    `kept` maps outputs that were there at the start, and that the last record vouches for, to their digests.
    """
    if "mtime_ns" not in found or found["mtime_ns"] >= start_ns or kept.get(found["path"]) == found["sha256"]:
        return None
    return f"{found['path']} is older than the start of the run"


def changed_since(folder: Path, outputs: list[dict[str, Any]]) -> list[str]:
    """Sentences on outputs that are no longer what was judged. Content is hashed only where size or time differ."""
    problems = []
    for output in outputs:
        file = folder / output["path"]
        try:
            facts = file.stat()
            same = facts.st_size == output.get("bytes") and facts.st_mtime_ns == output.get("mtime_ns")
            if not same and digest(file)["sha256"] != output.get("sha256"):
                problems.append(f"{output['path']} was changed after the job was judged")
        except OSError:
            problems.append(f"{output['path']} is gone")
    return problems


def _unreadable(file: Path) -> str | None:
    """What is wrong with a file's content, by its kind. An image file must hold as many bytes as its header promises."""
    if file.is_file() and file.stat().st_size == 0:
        return f"{file.name} is empty"
    try:
        if file.suffix in (".mrc", ".mrcs", ".map"):
            from verglas.io.mrc import read_header

            read_header(file)
        elif file.suffix == ".star":
            from verglas.io.star import read_star

            if not file.name.startswith("coords_suffix_") and not any(len(table) for table in read_star(file).values()):
                return f"{file.name} holds no rows"
    except (VerglasError, ValueError) as error:
        return f"{file.name} cannot be read: {error}"
    return None
