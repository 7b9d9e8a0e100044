"""The small files that RELION keeps in every job folder: job.star, note.txt, run_submit.script and the exit files."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ABORT_NOW = "RELION_JOB_ABORT_NOW"
EXIT_FILES = {"success": "RELION_JOB_EXIT_SUCCESS", "failure": "RELION_JOB_EXIT_FAILURE", "aborted": "RELION_JOB_EXIT_ABORTED"}


def clear_exit_files(folder: Path) -> None:
    """Remove what an earlier run left: its exit files, and an abort file that was meant for it."""
    for name in (*EXIT_FILES.values(), ABORT_NOW):
        (folder / name).unlink(missing_ok=True)


def leave_exit_file(folder: Path, ending: str) -> None:
    """Leave the one exit file for `ending`: success, failure or aborted."""
    for name in EXIT_FILES.values():
        (folder / name).unlink(missing_ok=True)
    (folder / EXIT_FILES[ending]).touch()


def exit_file(folder: Path) -> str | None:
    """The ending that the exit file in `folder` tells of; None when there is none, or more than one."""
    found = [ending for ending, name in EXIT_FILES.items() if (folder / name).exists()]
    return found[0] if len(found) == 1 else None


def write_job_star(folder: Path, relion_number: int, options: dict[str, str], continues: bool) -> None:
    """Write `job.star`: the job's type number in RELION, whether it goes on, and its options."""
    from verglas.io.atomic import write_text

    head = f"\n# version 30001\n\ndata_job\n\n{'_rlnJobType':<40}{relion_number:>12}\n{'_rlnJobIsContinue':<40}{int(continues):>12}\n \n"
    table = "\n# version 30001\n\ndata_joboptions_values\n\nloop_ \n_rlnJobOptionVariable #1 \n_rlnJobOptionValue #2 \n"
    rows = "".join(f"{name} {_quoted(value)} \n" for name, value in sorted(options.items()))
    write_text(folder / "job.star", head + table + rows + " \n")


def read_job_star(folder: Path) -> tuple[int, dict[str, str]]:
    """Type number and options of a job, ours or RELION's."""
    from verglas.io.star import read_star

    tables = read_star(folder / "job.star", text_columns=("rlnJobOptionVariable", "rlnJobOptionValue"))
    job, options = tables["job"], tables["joboptions_values"]
    assert isinstance(job, dict)
    assert not isinstance(options, dict)
    return int(job["rlnJobType"]), dict(zip(map(str, options["rlnJobOptionVariable"]), map(str, options["rlnJobOptionValue"]), strict=True))


def note(folder: Path, text: str) -> None:
    """Append `text` to the job's note.txt."""
    with (folder / "note.txt").open("a") as file:
        file.write(text.rstrip("\n") + "\n")


def note_command(folder: Path, command: Sequence[str], continues: bool) -> None:
    """Append time and exact command to note.txt, in RELION's words."""
    what = "Continuing" if continues else "Executing new"
    note(folder, f" ++++ {what} job on {time.ctime()}\n ++++ with the following command(s): \n{shlex.join(command)}\n ++++ \n")


def write_repeat_script(folder: Path, command: Sequence[str], working_directory: Path) -> None:
    """Write `run_submit.script`, which repeats the job exactly: the same command, installation and working directory."""
    from verglas.io.atomic import write_text

    path = folder / "run_submit.script"
    installation = f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
    repeat = f"cd {shlex.quote(str(working_directory))} && exec {shlex.join(command)}"
    write_text(path, f"#!/bin/sh\n# Repeats this job.\n{installation}\n{repeat}\n")
    path.chmod(0o755)


def _quoted(value: str) -> str:
    return f'"{value}"' if not value or any(c.isspace() for c in value) else value
