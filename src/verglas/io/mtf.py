"""Modulation transfer functions of detectors, in RELION's STAR form."""

import os

import numpy as np

from verglas.errors import FileFormatError
from verglas.io.star import list_table, numbers, read_star, write_star


def read_mtf(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (cycles a pixel of the detector, ascending, 0 to 0.5) and MTF values, float64 [n] each.

    Raises FileFormatError for a file that holds something else, or values that cannot be an MTF.
    """
    blocks = read_star(path)
    table = list_table(blocks, next(iter(blocks)), path)
    frequency, value = numbers(table, "rlnResolutionInversePixel", path), numbers(table, "rlnMtfValue", path)
    if len(frequency) < 2 or (np.diff(frequency) <= 0).any() or frequency[0] < 0 or frequency[-1] > 1:
        raise FileFormatError(path, "rlnResolutionInversePixel must ascend from 0 to about 0.5 in two rows or more")
    bad = np.flatnonzero((value <= 0) | (value > 1.5))
    if len(bad):
        raise FileFormatError(path, f"row {bad[0] + 1}: rlnMtfValue is {value[bad[0]]:g}, 0 to about 1 was expected")
    return frequency, value


def write_mtf(path: str | os.PathLike[str], frequency: np.ndarray, value: np.ndarray) -> None:
    """Write frequencies (cycles a pixel) and MTF values [n], as `read_mtf` reads them."""
    import pandas as pd

    table = {"rlnResolutionInversePixel": np.asarray(frequency, np.float64), "rlnMtfValue": np.asarray(value, np.float64)}
    write_star(path, {"": pd.DataFrame(table)})
