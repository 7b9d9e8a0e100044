"""What can go wrong, as a tree of classes. A message names the file or field, what was found, and the mend.

VerglasError
├── InputError          the user's files or parameters cannot be used; raised before work starts where possible
│   └── FileFormatError a file is not what its name or its neighbours say
├── RankLost            one of the processes that share a job is gone, or does not answer
├── ItemError           one item (movie, micrograph, particle) of many is bad: it is skipped, named and counted
└── JobAborted          the user asked the job to stop (Ctrl-C, RELION_JOB_ABORT_NOW)
"""

from os import PathLike
from typing import Any


class VerglasError(Exception):
    """Base of every error that Verglas raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as message and fields, whatever it was made from: errors travel between processes."""
        return _again, (type(self), *self.args), self.__dict__


def _again(kind: type[VerglasError], *message: str) -> VerglasError:
    """An error with this message; what `__init__` would take apart comes with the fields."""
    return kind.__new__(kind, *message)


class InputError(VerglasError):
    """Input that cannot be used: `where` (file, table, row, field), `problem` (found and expected), `mend`."""

    def __init__(self, where: str | PathLike[str], problem: str, mend: str = "") -> None:
        self.where, self.problem, self.mend = str(where), problem, mend
        super().__init__(f"{self.where}: {problem}" + (f". {mend}" if mend else ""))


class FileFormatError(InputError):
    """A file that cannot be read as what it claims to be."""


class RankLost(VerglasError):
    """One of the processes that share a job is gone or does not answer, so the others cannot go on."""


class ItemError(VerglasError):
    """One item of many that cannot be processed: `item` is its name, `reason` what is wrong with it."""

    def __init__(self, item: str, reason: str) -> None:
        self.item, self.reason = item, reason
        super().__init__(f"{item}: {reason}")


class JobAborted(VerglasError):
    """The job was asked to stop; what is finished stays, and the same command goes on from there."""
