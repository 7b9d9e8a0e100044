"""What RELION prints, as it comes: iterations for the progress bar, its errors and warnings, and options that it doesn't know."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_ITERATION = re.compile(r"(?:Expectation|Stochastic Gradient Descent) iteration (\d+)(?: of (\d+))?")
_RESOLUTION = re.compile(r"CurrentResolution= (\S+) Angstroms")
_CHANGES = re.compile(r"Changes in angles= (\S+) degrees; and in offsets= (\S+) Angstroms")
_UNKNOWN = re.compile(r"Option (\S+)\s+is not a valid RELION argument")
_WARNING = re.compile(r"WARNING:\s*(.+)")
_SIGNAL = re.compile(r"exited on signal (\d+) \(([^)]*)\)")
# the header's pixel size is what we mean; an unknown option is a failure; the others are advice that follows a warning
_OF_NO_ACCOUNT = ("angpix", "is not a valid RELION argument", "WARNING: You probably", "WARNING: However,", "WARNING: Sometimes")
_MOST_WARNINGS = 20
_NOT_YET = 900.0  # RELION's 999 for changes before there are any


@dataclass
class Heard:
    """What RELION has said so far. `iteration` is the one it works on, of `total` (None: as the data decide)."""

    iteration: int = 0
    total: int | None = None
    resolution: str = ""
    changes: str = ""
    unknown_option: str | None = None
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    _in_error: bool = False

    def hear(self, line: str) -> bool:
        """Take in one line; true where a new iteration begins with it."""
        line = line.strip()
        if found := _UNKNOWN.search(line):
            self.unknown_option = self.unknown_option or found[1]
        elif found := _RESOLUTION.search(line):
            self.resolution = found[1]
        elif found := _CHANGES.search(line):
            self.changes = f"angles changed by {found[1]}°, offsets by {found[2]} Å" if float(found[1]) < _NOT_YET else ""
        elif found := _ITERATION.search(line):
            self.iteration, self.total = int(found[1]), int(found[2]) if found[2] else None
            return True
        elif found := _SIGNAL.search(line):
            self.error = self.error or f"a rank was killed by signal {found[1]} ({found[2]})"
        self._hear_complaint(line)
        return False

    def describe(self) -> str:
        """One line about the iteration that has begun."""
        of = f" of {self.total}" if self.total else ""
        words = [f"iteration {self.iteration}{of}: from {self.resolution} Å" if self.resolution else f"iteration {self.iteration}{of}"]
        return ", ".join([*words, *([self.changes] if self.changes else [])])

    def _hear_complaint(self, line: str) -> None:
        """RELION prints its errors as a line `ERROR:`, the message in the next ones, and often the same again."""
        if line.startswith("ERROR:"):
            self._in_error = not self.error
            self.error = self.error or line.removeprefix("ERROR:").strip()
        elif self._in_error:
            self._in_error = bool(line) and not line.startswith("===")
            self.error = f"{self.error} {line}".strip() if self._in_error else self.error
        elif (found := _WARNING.search(line)) and not any(words in line for words in _OF_NO_ACCOUNT):
            known = found[1] in self.warnings or len(self.warnings) >= _MOST_WARNINGS
            self.warnings += [] if known else [found[1]]


class Tail:
    """What is appended to a file from now on, in whole lines; RELION's bars, which end in a carriage return, are lines too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = path.stat().st_size if path.exists() else 0
        self._rest = ""

    def lines(self, *, last: bool = False) -> list[str]:
        """The lines that came; with `last`, also one that has no end yet."""
        with self._path.open("rb") as file:
            file.seek(self._place)
            piece = file.read()
        self._place += len(piece)
        *found, self._rest = re.split(r"[\r\n]", self._rest + piece.decode(errors="replace"))
        if last and self._rest:
            found.append(self._rest)
            self._rest = ""
        return found
