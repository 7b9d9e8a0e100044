"""STAR files as RELION lays them out, read from any program that writes the format.

A file holds named tables: lists (`loop_`) become DataFrames, pairs become dicts of text; labels lose their leading underscore.
Values are kept as written, with one exception: a column under an `rln` label that is not a name becomes numbers where every value
of it is a finite number. Names therefore stay text to the last zero, and `numbers` finds what is wrong with a column that is not.
"""

import re
import warnings
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from verglas.errors import FileFormatError
from verglas.io.star_rows import NUMBER, parse_rows, split_row
from verglas.io.star_writer import write_star

__all__ = ["NUMBER", "StarBlock", "integers", "list_table", "numbers", "read_star", "write_star"]

StarBlock: TypeAlias = pd.DataFrame | dict[str, str]

_TABLE = re.compile(r"^[ \t]*data_(\S*)[ \t]*(?:#.*)?$", re.MULTILINE)


def read_star(path: str | PathLike[str], text_columns: Collection[str] = ()) -> dict[str, StarBlock]:
    """All tables of a STAR file by name (without `data_`), in file order.

    `text_columns` are labels to keep as text although they are not known as names.
    Raises FileFormatError with the line, what was found and what was expected, for anything that is not a sound table.
    Warns (UserWarning) where the file is read but RELION would read less of it.
    """
    text = _read_text(Path(path))
    starts = list(_TABLE.finditer(text)) if "data_" in text else []
    if not starts:
        raise FileFormatError(path, "is not a STAR file: no line starts with data_", _what_else(text))
    _nothing_before(path, text[: starts[0].start()])
    blocks: dict[str, StarBlock] = {}
    for start, end in zip(starts, [*(m.start() for m in starts[1:]), len(text)], strict=True):
        line = text.count("\n", 0, start.start()) + 1
        if start[1] in blocks:
            raise FileFormatError(path, f"line {line}: a second table data_{start[1]}", "Give each table its own name")
        blocks[start[1]] = _read_block(path, start[1], text[start.end() + 1 : end], line + 1, text_columns)
    return blocks


def list_table(blocks: Mapping[str, StarBlock], name: str, path: str | PathLike[str]) -> pd.DataFrame:
    """The list table `name` of a file. A single row may be written as pairs. Raises FileFormatError when it is not there."""
    if name not in blocks:
        found = ", ".join(f"data_{found}" for found in blocks)
        raise FileFormatError(path, f"has no table data_{name}; found {found}", "Is it the right kind of STAR file?")
    block = blocks[name]
    return pd.DataFrame({label: [value] for label, value in block.items()}) if isinstance(block, dict) else block


def numbers(frame: pd.DataFrame, label: str, path: str | PathLike[str]) -> np.ndarray:
    """Column `label` as float64 [rows], every value finite. Raises FileFormatError naming the row (from 1), label and value."""
    if label not in frame:
        raise FileFormatError(path, f"has no column {label}", f"Its columns are {', '.join(map(str, frame.columns))}")
    column = frame[label]
    if pd.api.types.is_numeric_dtype(column):
        values = column.to_numpy(np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
    else:
        bad = np.flatnonzero([NUMBER.fullmatch(str(value)) is None for value in column])
        values = np.empty(0) if len(bad) else column.astype(np.float64).to_numpy()
    if len(bad):
        raise FileFormatError(path, f"row {bad[0] + 1}: {label} is {column.iloc[bad[0]]!s}, a finite number was expected")
    return values


def integers(frame: pd.DataFrame, label: str, path: str | PathLike[str]) -> np.ndarray:
    """Column `label` as int64 [rows]. Raises FileFormatError naming the row and value that is not a whole number."""
    values = numbers(frame, label, path)
    bad = np.flatnonzero(values != np.round(values))
    if len(bad):
        raise FileFormatError(path, f"row {bad[0] + 1}: {label} is {frame[label].iloc[bad[0]]!s}, a whole number was expected")
    return values.astype(np.int64)


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise FileFormatError(path, "the file does not exist" if not path.exists() else "is not a file")
    raw = path.read_bytes()
    if not raw.strip():
        raise FileFormatError(path, "is empty", "Was the program that wrote it stopped?")
    if b"\0" in raw:
        raise FileFormatError(path, "is not a STAR file: it holds binary data")
    text = raw.decode("utf-8-sig", errors="surrogateescape")
    if "\r" in text:
        warnings.warn(f"{path}: Windows line ends; read, but RELION 3.1 would read no rows. Re-save it with Unix line ends", stacklevel=3)
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def _what_else(text: str) -> str:
    head = text[:2000].lower()
    return "It looks like a web page: download the file itself" if "<html" in head or "<!doctype" in head else ""


def _nothing_before(path: str | PathLike[str], head: str) -> None:
    for number, line in enumerate(head.split("\n"), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            raise FileFormatError(path, f"line {number}: found {line.strip()[:60]!r} before the first data_ line", _what_else(head))


def _read_block(path: str | PathLike[str], name: str, body: str, first_line: int, text_columns: Collection[str]) -> StarBlock:
    """One table from the text after its `data_` line; `first_line` is the number of the body's first line."""
    pairs: dict[str, str] = {}
    labels: list[str] = []
    in_loop, position, number = False, 0, first_line - 1
    while position < len(body):
        end = body.find("\n", position)
        end = len(body) if end < 0 else end
        line, number = body[position:end].strip(), number + 1
        if line == "loop_":
            if in_loop or pairs:
                raise FileFormatError(path, f"line {number}: a second list in data_{name}", "One table holds one list or pairs")
            in_loop = True
        elif line.startswith("_"):
            label, values = _label_line(path, line, number)
            if label in labels or label in pairs:
                raise FileFormatError(path, f"line {number}: label _{label} appears twice in data_{name}", "Remove one of the columns")
            if in_loop:
                _only_a_number(path, label, values, number)
                labels.append(label)
            else:
                pairs[label] = _one_value(path, label, values, number)
        elif line and not line.startswith("#"):
            break
        position = end + 1
    rest = body[position:]
    if not in_loop:
        if rest.strip():
            raise FileFormatError(path, f"line {number}: found {line[:60]!r} in data_{name}, expected loop_ or a label")
        return pairs
    if not labels:
        raise FileFormatError(path, f"data_{name} has loop_ but no labels")
    return parse_rows(path, labels, rest, number, text_columns)


def _label_line(path: str | PathLike[str], line: str, number: int) -> tuple[str, list[str]]:
    label, *rest = line.split(None, 1)
    return label[1:], split_row(path, rest[0] if rest else "", number)


def _only_a_number(path: str | PathLike[str], label: str, values: list[str], number: int) -> None:
    if values and not values[0].isdigit():
        raise FileFormatError(path, f"line {number}: found {values[0]!r} after label _{label} of a list", "Expected #n or nothing")


def _one_value(path: str | PathLike[str], label: str, values: list[str], number: int) -> str:
    if len(values) > 1:
        raise FileFormatError(path, f"line {number}: {len(values)} values for _{label}, expected 1", "Quote values with blanks")
    return values[0] if values else ""
