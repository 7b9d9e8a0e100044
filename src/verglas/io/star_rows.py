"""Rows of a STAR list: pandas' C parser for speed, and a line-exact reading where the counts say that something is odd."""

import io
import re
import warnings
from collections.abc import Collection
from os import PathLike

import numpy as np
import pandas as pd

from verglas.errors import FileFormatError

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")

# Text in RELION's own label list; all labels of other programs are text too, since nothing is known about them.
_TEXT_LABEL = re.compile(
    r"(?!rln)|rln.*(Name|NameNoDW|Image|File|Metadata|PowerSpectrum|Zernike|Aberrations|Alias|Label|FromNode|ToNode|EdgeProcess)\d?$"
    r"|rln(UnfilteredMapHalf|PostprocessedMap|PosprocessedMap|JobOption|Schedule|SymmetryGroup|Tomo.*Id)|rln.*StarFile"
)
_TOKEN = re.compile(r"""\s*(?:"([^"\n]*)"(?=\s|$)|'([^'\n]*)'(?=\s|$)|([^\s"'#]\S*)|(#.*)|(\S+))""")
_BLANK_LINE = re.compile(r"\n[ \t]*(?=\n)")
_COMMENT_LINE = re.compile(r"(?:^|\n)[ \t]*#")
_SMALL = 4000  # characters of a table for which plain Python is faster than setting up the C parser
_EXTRA = "\0extra"


def parse_rows(path: str | PathLike[str], labels: list[str], body: str, first_line: int, text_columns: Collection[str]) -> pd.DataFrame:
    """Rows of a list with columns `labels`; `first_line` is the line number of the body's first line in the file.

    Raises FileFormatError for the first row with too few or too many values. Warns about a blank or comment line between rows.
    """
    body = _without_tail(body)
    text = [label for label in labels if label in text_columns or _TEXT_LABEL.match(label)]
    if not body:
        return pd.DataFrame({label: pd.Series(dtype="str" if label in text else "float64") for label in labels})
    if _BLANK_LINE.search(body):
        warnings.warn(f"{path}: a blank line between rows; read, but RELION 3.1 would stop there. Remove it", stacklevel=5)
    if "#" in body and _COMMENT_LINE.search(body):
        warnings.warn(f"{path}: a comment line between rows; read, but RELION 3.1 would stop with an error. Remove it", stacklevel=5)
    if len(body) > _SMALL and (frame := _fast(labels, body, text)) is not None:
        return frame
    return _exact(path, labels, body, first_line, text)


def split_row(path: str | PathLike[str], line: str, number: int) -> list[str]:
    """Values of one line: blanks separate, either kind of quotes holds them together, `#` at a value's start opens a comment."""
    if '"' not in line and "'" not in line and "#" not in line:
        return line.split()
    values = []
    for double, single, plain, comment, broken in _TOKEN.findall(line):
        if broken:
            raise FileFormatError(path, f"line {number}: quotes do not match at {broken[:40]!r}")
        if comment:
            break
        values.append(double or single or plain)
    return values


def _without_tail(body: str) -> str:
    """The body without the blank and comment lines after its last row."""
    while True:
        body = body.rstrip()
        last = body[body.rfind("\n") + 1 :]
        if not last.lstrip().startswith("#"):
            return body
        body = body[: len(body) - len(last)]


def _fast(labels: list[str], body: str, text: list[str]) -> pd.DataFrame | None:
    """The rows by the C parser, or None unless every row surely has one value a label."""
    if ("'" in body or "#" in body) and re.search(r"(?:^|\s)['#]", body):
        return None
    rows = body.count("\n") + 1 - len(_BLANK_LINE.findall(body))
    columns = [*labels, _EXTRA]
    try:
        frame = pd.read_csv(
            io.StringIO(body + "\n"),
            sep=r"\s+",
            header=None,
            names=columns,
            index_col=False,
            dtype=dict.fromkeys([*text, _EXTRA], "str"),
            na_filter=False,
            doublequote=False,
            engine="c",
            low_memory=False,
            encoding_errors="surrogateescape",
        )
    except (pd.errors.ParserError, UnicodeError):
        return None
    last = frame[labels[-1]]
    short = last.dtype == "str" and (last == "").any()
    if len(frame) != rows or short or (frame[_EXTRA] != "").any():
        return None
    infinite = [label for label in frame.columns if frame[label].dtype == "float64" and not np.isfinite(frame[label]).all()]
    return _fast(labels, body, [*text, *infinite]) if infinite else frame.drop(columns=_EXTRA)


def _exact(path: str | PathLike[str], labels: list[str], body: str, first_line: int, text: list[str]) -> pd.DataFrame:
    """The rows line by line, with the first fault named."""
    rows = []
    for number, line in enumerate(body.split("\n"), start=first_line):
        values = split_row(path, line, number)
        if values and len(values) != len(labels):
            shown = " ".join(values)
            shown = shown if len(shown) <= 80 else shown[:77] + "…"
            raise FileFormatError(path, f"line {number}: {len(values)} values found, {len(labels)} expected (one a label): {shown}")
        if values:
            rows.append(values)
    columns = zip(*rows, strict=True)
    return pd.DataFrame({label: _typed(values, label in text) for label, values in zip(labels, columns, strict=True)})


def _typed(values: tuple[str, ...], is_text: bool) -> pd.Series:
    if is_text or not all(map(NUMBER.fullmatch, values)):
        return pd.Series(values, dtype="str")
    whole = all(value.lstrip("+-").isdigit() for value in values)
    return pd.Series([int(value) if whole else float(value) for value in values])
