"""Some images of an MRC stack, read straight into memory that is there already."""

import os
from pathlib import Path

import numpy as np

from verglas.errors import FileFormatError
from verglas.io.mrc_header import MrcHeader


def read_images(path: Path, header: MrcHeader, indices: np.ndarray, out: np.ndarray) -> None:
    """Read images `indices` int64 [n] (counted from 0) of the stack with this header into `out` [n, y, x] of any type.

    Images that follow each other in the stack are read in one go, and where `out` is of the stack's own type nothing is copied. Other
    threads may read meanwhile. Raises FileFormatError where the file ends early.
    """
    size = header.dtype.itemsize * header.shape[1] * header.shape[2]
    ends = [*(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    file = os.open(path, os.O_RDONLY)
    try:
        for first, last in zip([0, *ends], ends):
            place = out[first:last]
            straight = place.dtype == header.dtype and place.flags.c_contiguous
            values = place if straight else np.empty(place.shape, header.dtype)
            _read_at(path, file, header.offset + int(indices[first]) * size, values)
            if not straight:
                place[...] = values
    finally:
        os.close(file)


def _read_at(path: Path, file: int, offset: int, values: np.ndarray) -> None:
    view = values.view(np.uint8).reshape(-1).data
    while view:
        done = os.preadv(file, [view], offset)
        if not done:
            raise FileFormatError(path, f"ends at byte {offset}, {len(view)} before the last image that is asked for")
        view, offset = view[done:], offset + done
