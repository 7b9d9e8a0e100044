"""The files of a refinement's iterations, which RELION names `run_itNNN_*`: an optimiser, written last, marks one as complete."""

from __future__ import annotations

import re
from pathlib import Path

_ITERATION = re.compile(r"run_it(\d{3,})_")


def optimisers(folder: Path) -> dict[int, Path]:
    """Optimisers of iterations by number."""
    return {number: path for path in folder.glob("run_it*_optimiser.star") if (number := number_of(path)) is not None}


def number_of(path: Path) -> int | None:
    """The iteration that a file is of; None where it is of none."""
    found = _ITERATION.match(path.name)
    return int(found[1]) if found else None


def remove_iterations_after(folder: Path, number: int) -> None:
    """Remove files of later iterations than `number`: they may not be taken for those of the run that goes on after it."""
    for path in folder.glob("run_it*"):
        if (found := number_of(path)) is not None and found > number:
            path.unlink()
