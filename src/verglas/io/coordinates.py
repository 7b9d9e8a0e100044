"""Particle coordinates of one or many micrographs: RELION STAR, EMAN `.box`, csv with a header.

In a frame they are `coordinate_x`, `coordinate_y` (pixels of the micrograph, from 0, of the particle's centre), and whatever else the
file says, `micrograph_name`, `pick_score`, `class_number` and `psi` among it.
"""

import csv
import os
from pathlib import Path

import numpy as np
import pandas as pd

from verglas.errors import FileFormatError, InputError
from verglas.io.relion_names import PARTICLE_COLUMNS
from verglas.io.star import NUMBER, numbers, read_star, write_star

PathName = str | os.PathLike[str]

_TEXT = ("micrograph_name", "image_name")
_CSV_NAMES = {
    "coordinate_x": ("coordinate_x", "rlncoordinatex", "x", "x_coord", "x-coordinate", "center_x", "x_center"),
    "coordinate_y": ("coordinate_y", "rlncoordinatey", "y", "y_coord", "y-coordinate", "center_y", "y_center"),
    "micrograph_name": ("micrograph_name", "rlnmicrographname", "micrograph", "image_name", "image", "filename"),
    "pick_score": ("pick_score", "rlnautopickfigureofmerit", "score", "confidence"),
}


def read_coordinates(path: PathName) -> pd.DataFrame:
    """Coordinates of a `.star`, `.box` or `.csv` file (others are told apart by content). No rows are a valid answer.

    Raises FileFormatError with the row for values that are no numbers, and for a file without coordinates.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".box":
        return _read_box(path)
    if suffix in (".csv", ".tsv"):
        return _read_csv(path)
    return _read_star(path)


def write_coordinates(path: PathName, frame: pd.DataFrame) -> None:
    """Write coordinates as RELION's pickers do: one table `data_` with RELION's labels."""
    if missing := [name for name in ("coordinate_x", "coordinate_y") if name not in frame]:
        raise InputError(path, f"not written: the coordinates have no {', '.join(missing)}")
    labels = {name: label for label, name in PARTICLE_COLUMNS.items()}
    write_star(path, {"": frame.rename(columns=labels)})


def _read_star(path: PathName) -> pd.DataFrame:
    blocks = read_star(path)
    for block in blocks.values():
        table = pd.DataFrame({label: [value] for label, value in block.items()}) if isinstance(block, dict) else block
        if "rlnCoordinateX" in table:
            break
    else:
        raise FileFormatError(path, f"holds no coordinates: no table with rlnCoordinateX among {', '.join(f'data_{b}' for b in blocks)}")
    columns: dict[str, object] = {}
    others = [str(label) for label in table.columns if label not in ("rlnCoordinateX", "rlnCoordinateY")]
    for label in ("rlnCoordinateX", "rlnCoordinateY", *others):
        name = PARTICLE_COLUMNS.get(label)
        columns[name or label] = table[label] if name is None or name in _TEXT else numbers(table, label, path)
    return pd.DataFrame(columns)


def _read_box(path: PathName) -> pd.DataFrame:
    """EMAN boxes: x and y of the corner, width, height. The centre is corner + size / 2."""
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        values = line.split()
        if not values:
            continue
        if len(values) < 4 or not all(map(NUMBER.fullmatch, values[:4])):
            raise FileFormatError(path, f"line {number}: found {line.strip()[:60]!r}, expected x, y, width, height of a box")
        x, y, width, height = map(float, values[:4])
        rows.append((x + width / 2, y + height / 2))
    return pd.DataFrame(np.array(rows, np.float64).reshape(-1, 2), columns=["coordinate_x", "coordinate_y"])


def _read_csv(path: PathName) -> pd.DataFrame:
    lines = _lines(path)
    head = lines[0] if lines else ""
    if not head.strip():
        raise FileFormatError(path, "is empty; a header line with x and y was expected")
    separator = max(",;\t", key=head.count)
    rows = [row for row in csv.reader(lines, delimiter=separator) if any(cell.strip() for cell in row)]
    header = [cell.strip() for cell in rows[0]]
    places = {name: _find(header, names) for name, names in _CSV_NAMES.items()}
    missing = [name for name in ("coordinate_x", "coordinate_y") if places[name] is None]
    if missing:
        raise FileFormatError(path, f"has no column for {' and '.join(missing)}", f"Its header is {', '.join(header)}")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise FileFormatError(path, f"row {number}: {len(row)} values found, {len(header)} expected: {separator.join(row)[:60]}")
    found = pd.DataFrame(
        {name: pd.Series([row[place].strip() for row in rows[1:]], dtype="str") for name, place in places.items() if place is not None}
    )
    return found.assign(**{name: numbers(found, name, path) for name in places if name in found and name not in _TEXT})


def _find(header: list[str], names: tuple[str, ...]) -> int | None:
    lower = [cell.lower() for cell in header]
    return next((lower.index(name) for name in names if name in lower), None)


def _lines(path: PathName) -> list[str]:
    raw = Path(path).read_bytes()
    if b"\0" in raw:
        raise FileFormatError(path, "holds binary data, coordinates as text were expected")
    return raw.decode("utf-8-sig", errors="surrogateescape").splitlines()
