"""Particle tables of RELION before 3.1, which had no optics groups and counted shifts in pixels."""

import os
from collections.abc import Mapping

import numpy as np
import pandas as pd

from verglas.errors import FileFormatError
from verglas.io.star import StarBlock, numbers

_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
_TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
_SHIFTS = {
    "rlnOriginX": "rlnOriginXAngst",
    "rlnOriginY": "rlnOriginYAngst",
    "rlnOriginXPrior": "rlnOriginXPriorAngst",
    "rlnOriginYPrior": "rlnOriginYPriorAngst",
}
_MAGNIFICATION = ("rlnDetectorPixelSize", "rlnMagnification")


def upgrade_particles(blocks: Mapping[str, StarBlock], path: str | os.PathLike[str]) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Optics table, particle table (both with RELION 3.1's labels) and notes on what was done, from an older particle file.

    Pixel size: rlnImagePixelSize or rlnPixelSize, else rlnDetectorPixelSize (µm) · 10⁴ / rlnMagnification. One optics group for each
    distinct combination of voltage, Cs, amplitude contrast, pixel size and beam tilt; shifts in pixels become Å.
    Raises FileFormatError where the file holds no particles, or not what an optics group needs.
    """
    name, table = _particle_table(blocks, path)
    if isinstance(optics := blocks.get("optics"), pd.DataFrame):
        return optics, table, [f"the particles are in data_{name}, not data_particles; RELION would not read them"]
    missing = [label for label in _OPTICS if label not in table]
    if missing:
        raise FileFormatError(path, f"has no optics table and no {', '.join(missing)}", "Add the columns, or import with these values")
    pixel_size, source = _pixel_size(table, path)
    values = {label: numbers(table, label, path) for label in (*_OPTICS, *(tilt for tilt in _TILT if tilt in table))}
    values["rlnImagePixelSize"] = np.round(pixel_size, 6)
    optics = pd.DataFrame(values)
    group = optics.groupby(list(optics.columns), sort=False).ngroup().to_numpy() + 1
    optics = optics.drop_duplicates(ignore_index=True)
    count = len(optics)
    optics.insert(0, "rlnOpticsGroup", np.arange(1, count + 1))
    optics.insert(0, "rlnOpticsGroupName", [f"opticsGroup{number}" for number in range(1, count + 1)])
    optics["rlnImageDimensionality"] = 2
    used = [*values, *_MAGNIFICATION, "rlnPixelSize", "rlnImagePixelSize"]
    particles = table.drop(columns=[label for label in used if label in table])
    notes = [f"no optics table (RELION 3.0 or older): {count} optics group{'s' * (count > 1)} made, pixel size from {source}"]
    shifts = {label: new for label, new in _SHIFTS.items() if label in table}
    for label in shifts:
        particles[label] = numbers(table, label, path) * pixel_size
    if shifts:
        notes.append(f"{', '.join(shifts)} turned from pixels into Å")
    return optics, particles.rename(columns=shifts).assign(rlnOpticsGroup=group), notes


def _particle_table(blocks: Mapping[str, StarBlock], path: str | os.PathLike[str]) -> tuple[str, pd.DataFrame]:
    for name, block in blocks.items():
        if isinstance(block, dict) and "rlnImageName" in block:
            return name, pd.DataFrame({label: [value] for label, value in block.items()})
        if isinstance(block, pd.DataFrame) and "rlnImageName" in block:
            return name, block
    found = ", ".join(f"data_{name}" for name in blocks)
    raise FileFormatError(path, f"holds no particles: no table with rlnImageName among {found}")


def _pixel_size(table: pd.DataFrame, path: str | os.PathLike[str]) -> tuple[np.ndarray, str]:
    """Å a pixel of each row, and the labels that it came from."""
    for label in ("rlnImagePixelSize", "rlnPixelSize"):
        if label in table:
            pixel_size, source = numbers(table, label, path), label
            break
    else:
        if any(label not in table for label in _MAGNIFICATION):
            raise FileFormatError(path, "has no pixel size: neither rlnPixelSize nor rlnDetectorPixelSize and rlnMagnification", "Add it")
        detector, magnification = (numbers(table, label, path) for label in _MAGNIFICATION)
        with np.errstate(divide="ignore", invalid="ignore"):
            pixel_size, source = detector * 1e4 / magnification, " / ".join(_MAGNIFICATION)
    bad = np.flatnonzero(~((pixel_size > 0) & np.isfinite(pixel_size)))
    if len(bad):
        raise FileFormatError(path, f"row {bad[0] + 1}: the pixel size by {source} is {pixel_size[bad[0]]:g} Å")
    return pixel_size, source
