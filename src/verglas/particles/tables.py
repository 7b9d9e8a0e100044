"""Optics groups and the two tables that refer to them: particles, and micrographs (or movies).

Columns carry Verglas's names (`io.relion_names` has them beside RELION's); a column that Verglas does not know is carried
through unchanged. Units: Å, degrees, kV, mm (Cs), mrad (beam tilt); coordinates in pixels of the micrograph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd

from verglas.errors import InputError


@dataclass(frozen=True)
class OpticsGroups:
    """One row an optics group; `optics_group` numbers are 1, 2, … in row order."""

    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    def value(self, column: str, default: float | None = None) -> np.ndarray:
        """The column as float64 [groups]; `default` where it is missing. Raises InputError without either."""
        if column in self.table:
            return self.table[column].to_numpy(np.float64)
        if default is None:
            raise InputError("optics table", f"has no {column}", "Add the column or import the data with it")
        return np.full(len(self), float(default))

    def single(self, column: str) -> float:
        """The one value that all groups share. Raises InputError when they differ."""
        values = np.unique(self.value(column))
        if len(values) != 1:
            raise InputError("optics table", f"groups differ in {column}: {', '.join(map(str, values))}", "Process them apart")
        return float(values[0])

    @property
    def pixel_size(self) -> float:
        """Å a pixel of the particle images; one for all groups."""
        return self.single("pixel_size")

    @property
    def box_size(self) -> int:
        """Pixels of the particle images; one for all groups."""
        return int(self.single("box_size"))

    def with_columns(self, **columns: Any) -> OpticsGroups:
        """A copy with columns set (scalars or arrays of one value a group); a column given as None is dropped."""
        return OpticsGroups(_with_columns(self.table, columns))


@dataclass(frozen=True)
class _Rows:
    """Rows that refer to optics groups; the base of particles and micrographs."""

    optics: OpticsGroups
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, column: str) -> bool:
        return column in self.table

    def column(self, name: str, default: Any = None) -> np.ndarray:
        """Column `name` as an array [rows]; `default` where it is missing. Raises InputError without either."""
        if name in self.table:
            return self.table[name].to_numpy()
        if default is None:
            raise InputError("table", f"has no column {name}", "Run the job that makes it first")
        return np.full(len(self), default)

    @property
    def optics_index(self) -> np.ndarray:
        """Row of the optics table for each row here, int64 [rows], counted from 0."""
        return self.column("optics_group", 1).astype(np.int64) - 1

    def optics_value(self, name: str, default: float | None = None) -> np.ndarray:
        """An optics column spread over the rows, float64 [rows]."""
        return self.optics.value(name, default)[self.optics_index]

    def subset(self, rows: np.ndarray) -> Self:
        """The rows of a boolean mask or of an index array, in that order; optics groups are kept as they are."""
        rows = np.asarray(rows)
        picked = self.table.loc[rows] if rows.dtype == bool else self.table.iloc[rows]
        return replace(self, table=picked.reset_index(drop=True))

    def without_unused_optics(self) -> Self:
        """A copy whose optics table holds only the groups that rows refer to, numbered anew from 1; itself where all are used."""
        used, number = np.unique(self.optics_index, return_inverse=True)
        if len(used) == len(self.optics) or not len(used):
            return self
        optics = self.optics.table.iloc[used].assign(optics_group=np.arange(1, len(used) + 1)).reset_index(drop=True)
        return replace(self, optics=OpticsGroups(optics), table=self.table.assign(optics_group=number + 1))

    def with_columns(self, **columns: Any) -> Self:
        """A copy with columns set (scalars or arrays of one value a row); a column given as None is dropped."""
        return replace(self, table=_with_columns(self.table, columns))

    def with_optics(self, **columns: Any) -> Self:
        """A copy whose optics groups have columns set."""
        return replace(self, optics=self.optics.with_columns(**columns))


class ParticleSet(_Rows):
    """Particles: where they are, how they are oriented, which class, half and optics group they belong to."""

    def angles(self) -> np.ndarray:
        """rot, tilt, psi in degrees, float64 [particles, 3]; zeros where the table has none."""
        return np.stack([self.column(name, 0.0).astype(np.float64) for name in ("rot", "tilt", "psi")], axis=1)

    def origins(self) -> np.ndarray:
        """Shifts that centre the particles, Å, float64 [particles, 2] (x, y); zeros where the table has none."""
        return np.stack([self.column(name, 0.0).astype(np.float64) for name in ("origin_x", "origin_y")], axis=1)


class Micrographs(_Rows):
    """Movies or micrographs of a data set."""

    @property
    def kind(self) -> str:
        """`movies` before motion correction, `micrographs` after."""
        return "micrographs" if "micrograph_name" in self.table else "movies"

    def names(self) -> list[str]:
        """File names of the micrographs, or of the movies before motion correction."""
        return [str(name) for name in self.column("micrograph_name" if self.kind == "micrographs" else "movie_name")]

    @property
    def pixel_sizes(self) -> np.ndarray:
        """Å a pixel for each row, float64 [rows]."""
        column = "micrograph_pixel_size" if "micrograph_pixel_size" in self.optics.table else "movie_pixel_size"
        return self.optics_value(column)


Rows = TypeVar("Rows", ParticleSet, Micrographs)


def join(sets: list[Rows]) -> Rows:
    """Data sets one after another; optics groups are kept apart unless they agree in every value, name included.

    Groups that share a name but differ are renamed (`opticsGroup1_2`). Raises InputError where one set lacks a column of another.
    """
    if not sets:
        raise InputError("join", "nothing to join", "Give at least one file")
    groups: list[dict[str, Any]] = []
    tables = []
    for part in sets:
        numbers = [
            _find_or_add(groups, {str(key): value for key, value in row.items()})
            for row in part.optics.table.drop(columns="optics_group").to_dict("records")
        ]
        tables.append(part.table.assign(optics_group=np.asarray(numbers, np.int64)[part.optics_index]))
    _same_columns("tables", [set(table.columns) for table in tables])
    groups = [_NEUTRAL_OPTICS | group if len(group) < max(map(len, groups)) else group for group in groups]
    _same_columns("optics tables", [set(group) - set(_NEUTRAL_OPTICS) for group in groups])
    optics = pd.DataFrame(groups).assign(name=_distinct([group["name"] for group in groups]))
    optics = optics.fillna(_NEUTRAL_OPTICS).assign(optics_group=np.arange(1, len(groups) + 1))
    return replace(sets[0], optics=OpticsGroups(optics), table=pd.concat(tables, ignore_index=True))


_NEUTRAL_OPTICS = {"beam_tilt_x": 0.0, "beam_tilt_y": 0.0, "mag_00": 1.0, "mag_01": 0.0, "mag_10": 0.0, "mag_11": 1.0}


def _find_or_add(groups: list[dict[str, Any]], row: dict[str, Any]) -> int:
    """Number (from 1) of the group equal to `row`, which is added when there is none."""
    if row not in groups:
        groups.append(row)
    return groups.index(row) + 1


def _distinct(names: list[str]) -> list[str]:
    """The names, with `_2`, `_3` … after those that are taken already."""
    taken: list[str] = []
    for given in names:
        name, copy = given, 2
        while name in taken:
            name, copy = f"{given}_{copy}", copy + 1
        taken.append(name)
    return taken


def _same_columns(what: str, columns: list[set[str]]) -> None:
    missing = sorted(set().union(*columns) - columns[0].intersection(*columns))
    if missing:
        raise InputError("join", f"some {what} lack {', '.join(missing)}", "Bring all files to the same stage first")


def _with_columns(table: pd.DataFrame, columns: dict[str, Any]) -> pd.DataFrame:
    dropped = [name for name, value in columns.items() if value is None and name in table]
    return table.drop(columns=dropped).assign(**{name: value for name, value in columns.items() if value is not None})
