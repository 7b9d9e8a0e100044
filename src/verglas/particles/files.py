"""Particle and micrograph STAR files ⇄ `ParticleSet` and `Micrographs`.

Files of RELION 3.1 to 5 are read as they are, older ones are upgraded. Oddities that converters leave (optics groups numbered
0 or 3, no names, no image size) are mended and said once, as a warning; contradictions are refused.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from verglas.errors import FileFormatError, InputError
from verglas.io.mrc import read_header
from verglas.io.relion_names import INTEGER_COLUMNS, MICROGRAPH_COLUMNS, OPTICS_COLUMNS, PARTICLE_COLUMNS, TEXT_COLUMNS
from verglas.io.relion_versions import upgrade_particles
from verglas.io.star import numbers, read_star, write_star
from verglas.particles.tables import Micrographs, OpticsGroups, ParticleSet


def read_particles(path: str | Path) -> ParticleSet:
    """Particles of a STAR file (RELION 3.0 to 5). Raises FileFormatError with label and row for what cannot be used."""
    blocks = read_star(path)
    if "optics" in blocks and "particles" in blocks:
        optics, particles = blocks["optics"], blocks["particles"]
    else:
        optics, particles, notes = upgrade_particles(blocks, path)
        for note in notes:
            warnings.warn(f"{path}: {note}", UserWarning, stacklevel=2)
    table = _to_verglas(particles, PARTICLE_COLUMNS, path)
    groups, table = _number_groups(_to_verglas(optics, OPTICS_COLUMNS, path), table, path)
    return ParticleSet(OpticsGroups(_with_image_size(groups, table, path)), table)


def write_particles(path: str | Path, particles: ParticleSet) -> None:
    """Write tables `optics` and `particles` with RELION's labels, whole or not at all."""
    write_star(
        path, {"optics": _to_relion(particles.optics.table, OPTICS_COLUMNS), "particles": _to_relion(particles.table, PARTICLE_COLUMNS)}
    )


def read_micrographs(path: str | Path) -> Micrographs:
    """Movies or micrographs of a STAR file with an optics table. Raises FileFormatError for anything else."""
    blocks = read_star(path)
    name = next((name for name in ("micrographs", "movies") if name in blocks), None)
    if name is None or "optics" not in blocks:
        raise FileFormatError(
            path, f"has tables {', '.join(blocks) or 'none'}, not optics + micrographs or movies", "Import the data first"
        )
    table = _to_verglas(blocks[name], MICROGRAPH_COLUMNS, path)
    groups, table = _number_groups(_to_verglas(blocks["optics"], OPTICS_COLUMNS, path), table, path)
    return Micrographs(OpticsGroups(groups), table)


def write_micrographs(path: str | Path, micrographs: Micrographs) -> None:
    """Write tables `optics` and `movies` or `micrographs` (by their kind) with RELION's labels, whole or not at all."""
    optics, table = micrographs.optics.table, micrographs.table
    write_star(path, {"optics": _to_relion(optics, OPTICS_COLUMNS), micrographs.kind: _to_relion(table, MICROGRAPH_COLUMNS)})


def _to_verglas(frame: pd.DataFrame | dict[str, str], names: dict[str, str], path: str | Path) -> pd.DataFrame:
    """The table under Verglas's names, known number columns as numbers; unknown labels stay as they are written."""
    if isinstance(frame, dict):
        frame = pd.DataFrame({label: [value] for label, value in frame.items()})
    columns: dict[str, np.ndarray | pd.Series] = {}
    for label in frame.columns:
        name = names.get(label, label)
        if label not in names or name in TEXT_COLUMNS:
            columns[name] = frame[label]
        else:
            values = numbers(frame, label, path)
            columns[name] = values.astype(np.int64) if name in INTEGER_COLUMNS else values
    return pd.DataFrame(columns)


def _to_relion(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    labels = {name: label for label, name in names.items()}
    return table.rename(columns=labels)


def _number_groups(optics: pd.DataFrame, table: pd.DataFrame, path: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Optics groups as 1, 2, … in row order, with names; every row's group must be defined."""
    if "optics_group" not in optics:
        raise FileFormatError(path, "optics table has no rlnOpticsGroup", "Add the column")
    given = optics["optics_group"].to_numpy(np.int64)
    if len(np.unique(given)) != len(given):
        raise FileFormatError(path, f"optics groups {given.tolist()} are not distinct", "Number them 1, 2, …")
    used = table["optics_group"].to_numpy(np.int64) if "optics_group" in table else np.full(len(table), given[0])
    unknown, counts = np.unique(used[~np.isin(used, given)], return_counts=True)
    if len(unknown):
        named = ", ".join(f"group {group} ({count} rows)" for group, count in zip(unknown, counts))
        raise FileFormatError(
            path, f"rows refer to {named}, the optics table defines {given.tolist()}", "Add the group to the optics table"
        )
    order = np.arange(1, len(given) + 1)
    if not np.array_equal(given, order):
        warnings.warn(f"{path}: optics groups {given.tolist()} are read as {order.tolist()}", UserWarning, stacklevel=3)
    if "name" not in optics:
        warnings.warn(f"{path}: optics groups have no names; they are called opticsGroup1, …", UserWarning, stacklevel=3)
        optics = optics.assign(name=[f"opticsGroup{number}" for number in order])
    lookup = dict(zip(given.tolist(), order.tolist()))
    return optics.assign(optics_group=order), table.assign(optics_group=[lookup[group] for group in used.tolist()])


def _with_image_size(optics: pd.DataFrame, table: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """The optics table with the images' box and pixel size; the box is read from the first stack of each group if missing."""
    if "pixel_size" not in optics:
        if "image_name" in table:
            raise FileFormatError(
                path, "optics table has no rlnImagePixelSize", "Add it; the micrographs' pixel size is wrong after binning"
            )
        return optics
    if not (optics["pixel_size"] > 0).all():
        raise FileFormatError(path, f"rlnImagePixelSize is {optics['pixel_size'].tolist()}", "Give the pixel size in Å")
    if "box_size" in optics or "image_name" not in table:
        return optics
    sizes = []
    for group in optics["optics_group"]:
        names = table.loc[table["optics_group"] == group, "image_name"]
        if names.empty:
            raise InputError(path, f"optics group {group} has neither rlnImageSize nor particles", "Add rlnImageSize")
        sizes.append(read_header(str(names.iloc[0]).partition("@")[2]).shape[-1])
    warnings.warn(f"{path}: no rlnImageSize; read from the stacks as {sizes}", UserWarning, stacklevel=3)
    return optics.assign(box_size=sizes)
