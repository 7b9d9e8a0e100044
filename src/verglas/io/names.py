"""Where an item's output goes: inside the job's folder, one place an input, as RELION lays it out."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from verglas.errors import InputError

_JOB_FOLDER = re.compile(r"^[A-Za-z0-9]+/job\d{3,}/(?=.)")


def output_name(input_path: str | os.PathLike[str], folder: str | os.PathLike[str], suffix: str) -> Path:
    """Output of one item: `folder` / the input's relative path without its last extension + `suffix`.

    As in RELION a leading `TYPE/jobNNN/` is dropped, so that `MotionCorr/job002/movies/a.mrc` and `movies/a.tif` both lead to
    `folder/movies/a` + suffix. Steps upwards become folders `_up`, an absolute path starts in `_root`. Use `output_names` for the
    items of a job: it keeps names apart that agree in all but what is dropped here.
    """
    return Path(folder) / (_stem(_JOB_FOLDER.sub("", _inside(input_path))) + suffix)


def output_names(inputs: Sequence[str | os.PathLike[str]], folder: str | os.PathLike[str], suffix: str) -> list[Path]:
    """As `output_name` for all inputs of a job, each with its own output.

    Where two inputs would share one (`a.tif` and `a.mrc`, or `movies/a.mrc` of two jobs), these keep their extension and job folder.
    Raises InputError for an input that is listed twice.
    """
    inside = [_inside(path) for path in inputs]
    twice = [path for path, count in Counter(inside).items() if count > 1]
    if twice:
        raise InputError(twice[0], f"is listed more than once ({len(twice)} such inputs)", "Remove the repeated rows")
    outputs = [output_name(path, folder, suffix) for path in inputs]
    counts = Counter(outputs)
    full = [Path(folder) / (path.replace(".", "_") + suffix) for path in inside]
    outputs = [long if counts[short] > 1 else short for short, long in zip(outputs, full, strict=True)]
    clash = [path for path, count in Counter(outputs).items() if count > 1]
    if clash:
        raise InputError(clash[0], "would be the output of more than one input", "Rename one of them")
    return outputs


def _inside(path: str | os.PathLike[str]) -> str:
    """The path with `.` and `//` taken out, relative to somewhere that it cannot leave."""
    normal = os.path.normpath(os.fspath(path))
    parts = PurePosixPath(normal).parts
    if normal.startswith("/"):
        parts = ("_root", *parts[1:])
    return "/".join("_up" if part == ".." else part for part in parts)


def _stem(path: str) -> str:
    """The path without its last extension; a name that begins with its only dot has none."""
    return str(PurePosixPath(path).with_suffix(""))
