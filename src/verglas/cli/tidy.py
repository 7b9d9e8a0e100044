"""`verglas note`, `stop` and `clean`."""

from __future__ import annotations

import time
from pathlib import Path

from verglas.errors import InputError


def find_folder(job: str) -> Path:
    """The folder of a job by its number, name or alias in the project here, or by the folder's own path. Raises InputError."""
    from verglas.project.project import Project

    if (Path(job) / "record.json").is_file() or (Path(job) / "job.star").is_file():
        return Path(job)
    project = Project.here()
    if project is None:
        raise InputError(job, "is not a job folder, and no project is here", "Go to the project's folder, or name the job's folder")
    return project.root / project.find(job)


def note_command(job: str, text: str) -> int:
    """Append to the job's note.txt."""
    from verglas.project.jobfiles import note

    folder = find_folder(job)
    note(folder, f" ++++ Note of {time.ctime()}\n{text}")
    print(f"Noted in {folder / 'note.txt'}")
    return 0


def stop_command(job: str) -> int:
    """Leave RELION_JOB_ABORT_NOW for a running job."""
    from verglas.project.jobfiles import ABORT_NOW
    from verglas.records.record import read_record
    from verglas.records.table import QUEUED, RUNNING, current_verdict

    folder = find_folder(job)
    record = read_record(folder)
    verdict = current_verdict(folder, record)[0] if record is not None else ""
    if verdict == QUEUED:
        raise InputError(folder, "waits in a cluster's queue", "Cancel it there: scancel, qdel …")
    if verdict != RUNNING:
        raise InputError(folder, "is not running", "See: verglas stats")
    (folder / ABORT_NOW).touch()
    print(f"{folder} will stop after its current item")
    return 0


def clean_command(jobs: list[str], *, dry_run: bool) -> int:
    """Remove what each job's declaration calls intermediate; running and failed jobs, which may go on, are left alone."""
    from verglas.records.lock import is_running
    from verglas.records.record import FAIL, read_record
    from verglas.records.units import size

    folders = [find_folder(job) for job in jobs] or sorted(p.parent for p in Path().glob("*/job*/record.json") if not p.parent.is_symlink())
    total = 0
    for folder in folders:
        record = read_record(folder)
        if record is None or record.verdict in (None, FAIL) or is_running(folder):
            print(f"{folder}: not finished, left as it is")
            continue
        files = _intermediates(folder, record.type, {output["path"] for output in record.outputs})
        count = sum(path.stat().st_size for path in files)
        total += count
        print(f"{folder}: {len(files)} files, {size(count)}")
        for path in [] if dry_run else files:
            path.unlink()
    print(f"{'Would free' if dry_run else 'Freed'} {size(total)}")
    return 0


def _intermediates(folder: Path, type_name: str, outputs: set[str]) -> list[Path]:
    from verglas.jobs.registry import job_type

    kept = {*outputs, "job.star", "job_pipeline.star", "default_pipeline.star", "record.json"}
    return [path for path in job_type(type_name).clean(folder) if path.is_file() and str(path.relative_to(folder)) not in kept]
