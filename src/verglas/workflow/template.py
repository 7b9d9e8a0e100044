"""A site's submission template, as RELION knows it: a script with fields such as XXXqueueXXX, filled for one job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from verglas.errors import InputError

COMMAND = "XXXcommandXXX"
OF_THE_JOB = ("name", "outfile", "errfile", "command")  # known only when the job has its folder
OF_THE_REQUEST = ("queue", "mpinodes", "threads", "cores", "dedicated", "nodes")
_FIELD = re.compile(r"XXX([a-z]+\d*)XXX")
_LAUNCHER = re.compile(rf"[\w./${{}}-]*\b(?:mpirun|mpiexec|orterun)\b[^;&|\n'\"]*?{COMMAND}")


@dataclass(frozen=True)
class Template:
    """A template's text with lines that end in LF. `notes` says what was changed in reading, for the user."""

    path: Path
    text: str
    notes: tuple[str, ...] = ()

    def check(self, known: Mapping[str, str]) -> None:
        """Raise InputError, with line and mend, if any field is neither of the job's own nor in `known`."""
        found = [(number, name) for number, line in enumerate(self.text.split("\n"), 1) for name in _FIELD.findall(line)]
        unfilled = [(number, name) for number, name in found if name not in known and name not in OF_THE_JOB]
        if not unfilled:
            return
        (number, name), *others = dict.fromkeys(unfilled)
        more = "".join(f", nor has XXX{other}XXX in line {line}" for line, other in others)
        raise InputError(f"{self.path}, line {number}", f"XXX{name}XXX has no value{more}", _mend(name))

    def fill(self, fields: Mapping[str, str]) -> str:
        """The script with every field replaced. What is put in is not searched again. The fields are checked before."""
        return _FIELD.sub(lambda match: fields[match[1]], self.text)


def read_template(path: Path) -> Template:
    """Read a template. CRLF becomes LF, a byte-order mark goes, and an MPI launcher before the command too: Verglas is one process.

    Raises InputError for a file that isn't there, or that would run nothing.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise InputError(path, f"cannot be read as a submission template ({error.strerror})") from None
    if COMMAND not in text:
        raise InputError(path, f"has no {COMMAND}, so it would run nothing", "It stands where the job's command goes")
    notes = []
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
        notes.append(f"{path}: lines ended in CRLF, as Windows writes them; the script has LF")
    if _LAUNCHER.search(text):
        text = _LAUNCHER.sub(COMMAND, text)
        notes.append(f"{path}: the MPI launcher before {COMMAND} is left out: a job is one process")
    return Template(path, text if text.endswith("\n") else text + "\n", tuple(notes))


def _mend(name: str) -> str:
    if name == "queue" or re.fullmatch(r"extra\d+", name):
        variable = "RELION_QUEUE_NAME" if name == "queue" else f"RELION_QSUB_{name.upper()}_DEFAULT"
        return f"Give --{name} VALUE, or set {variable}"
    if name in OF_THE_REQUEST:
        return "Give --threads N"
    return f"Fields are: {', '.join((*OF_THE_JOB, *OF_THE_REQUEST))}, extra1, extra2, …"
