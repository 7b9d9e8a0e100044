"""STAR files as RELION 3.1 writes them."""

import re
import warnings
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd

from verglas.errors import InputError
from verglas.io.atomic import write_text

_QUOTED_STARTS = ("'", '"', "#", "_", ";", "data_", "loop_")
_NEEDS_QUOTES = re.compile(rf"\s|^$|^(?:{'|'.join(map(re.escape, _QUOTED_STARTS))})")


def write_star(path: str | PathLike[str], tables: Mapping[str, pd.DataFrame | Mapping[str, Any]], comment: str | None = None) -> None:
    """Write tables (name without `data_` → DataFrame for a list, mapping for pairs) to `path`, whole or not at all.

    Floats get 9 significant digits (7 for float32), so that a value comes back the same to at least 6 decimals; text is quoted
    where it is empty or holds blanks. Raises InputError for values that no STAR reader could take: NaN, infinity, line breaks.
    Warns (UserWarning) about a value that RELION would take for a comment.
    """
    head = "".join(f"# {line}\n" for line in comment.splitlines()) if comment else ""
    made = {id(table): table for table in tables.values()}  # one that stands there under several names is made once
    bodies = {key: _body(path, table) for key, table in made.items()}
    write_text(path, head + "\n".join(f"\n# version 30001\n\ndata_{name}\n\n{bodies[id(table)]}" for name, table in tables.items()))


def _body(path: str | PathLike[str], table: pd.DataFrame | Mapping[str, Any]) -> str:
    if not isinstance(table, pd.DataFrame):
        width = max(map(len, table), default=0) + 2
        return "".join(f"_{label:<{width}} {_pair_value(path, label, value)}\n" for label, value in table.items()) + "\n"
    labels = "".join(f"_{label} #{number} \n" for number, label in enumerate(table.columns, start=1))
    formats, columns = [], []
    for label in table.columns:
        form, values = _column(path, str(label), table[label])
        formats.append(form)
        columns.append(values)
    row = " ".join(formats) + " \n"
    return "loop_\n" + labels + "".join([row % values for values in zip(*columns, strict=True)]) + "\n"


def _column(path: str | PathLike[str], label: str, column: pd.Series) -> tuple[str, list[Any]]:
    """Format (of `%`) and values of one column."""
    kind = column.dtype.kind
    if kind in "biu":
        return "%12d", column.astype(np.int64).tolist()
    if kind == "f":
        values = column.to_numpy(np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise InputError(path, f"not written: row {bad[0] + 1} of {label} is {values[bad[0]]}", "Only finite numbers are written")
        return ("%12.7g" if column.dtype == np.float32 else "%12.9g"), values.tolist()
    texts = column.tolist()
    if all(type(text) is str for text in texts):
        joined = "\n".join(["", *texts])
        if joined.split() == texts and not any(f"\n{start}" in joined for start in _QUOTED_STARTS):  # as `_NEEDS_QUOTES`, of all at once
            return "%s", texts
    if any(str(value).startswith("#") for value in texts):
        warnings.warn(f"{path}: a {label} begins with #; RELION 3.1 would lose its row. Rename the file", stacklevel=5)
    return "%s", [_text(path, label, value) for value in texts]


def _pair_value(path: str | PathLike[str], label: str, value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, float | np.floating):
        if not np.isfinite(value):
            raise InputError(path, f"not written: {label} is {value}", "Only finite numbers are written")
        return f"{value:.9g}"
    return _text(path, label, value)


def _text(path: str | PathLike[str], label: str, value: Any) -> str:
    if value is None or value is pd.NA or value != value:
        raise InputError(path, f"not written: a value of {label} is missing")
    text = str(value)
    if not _NEEDS_QUOTES.search(text):
        return text
    quote = '"' if '"' not in text else "'"
    if "\n" in text or quote in text:
        raise InputError(path, f"not written: {label} is {text!r}", "STAR cannot hold line breaks, nor both kinds of quotes in one value")
    return f"{quote}{text}{quote}"
