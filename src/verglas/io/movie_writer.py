"""Writing movies, for the simulator and for tests."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tifffile

from verglas.errors import InputError
from verglas.io.atomic import whole_file
from verglas.io.eer import write_eer
from verglas.io.eer_codec import CODECS, COMPRESSION_7BIT
from verglas.io.mrc import write_stack

PathName = str | os.PathLike[str]


def write_movie(path: PathName, frames: Sequence[np.ndarray] | np.ndarray, pixel_size: float) -> None:
    """Write frames [n, ny, nx] as the suffix says, whole or not at all; `open_movie` gives the same frames back.

    `.tif`, `.tiff`: LZW, in the frames' own type (counts as uint8), rows flipped in y; `.mrc`, `.mrcs`: uint8 as mode 6,
    float64 as mode 2, other types as they are; `.eer`: counts, each electron at a random sub-pixel (seeded by its frame number),
    one internal frame a frame, several where a pixel holds more than one electron being refused.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".tif", ".tiff"):
        _write_tiff(path, frames, pixel_size)
    elif suffix == ".eer":
        _write_counts_as_eer(path, frames)
    elif suffix in (".mrc", ".mrcs"):
        movie = np.asarray(frames)
        stored = {"uint8": "uint16", "float64": "float32"}.get(movie.dtype.name, movie.dtype.name)
        write_stack(path, movie, pixel_size, dtype=stored)
    else:
        raise InputError(path, f"not written: no movie format has the suffix {suffix!r}", "Use .tif, .mrc, .mrcs or .eer")


def _write_tiff(path: PathName, frames: Iterable[np.ndarray], pixel_size: float) -> None:
    per_cm = 1e8 / pixel_size
    with whole_file(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=False) as tiff:
        for frame in frames:
            tiff.write(
                np.ascontiguousarray(np.asarray(frame)[::-1]),
                photometric="minisblack",
                compression="lzw",
                contiguous=False,
                metadata=None,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                rowsperstrip=64,
            )


def _write_counts_as_eer(path: PathName, frames: Iterable[np.ndarray]) -> None:
    events, shape = [], (0, 0)
    codec = CODECS[COMPRESSION_7BIT]
    for number, frame in enumerate(frames):
        frame = np.asarray(frame)
        if not ((frame == 0) | (frame == 1)).all():
            raise InputError(path, f"not written: frame {number + 1} holds values other than 0 and 1, which one EER frame cannot")
        position, shape = np.flatnonzero(frame), frame.shape
        sub = np.random.default_rng(number).integers(0, 1 << (codec.x + codec.y), len(position)).astype(np.uint8)
        events.append((position, sub))
    with whole_file(path) as temporary:
        write_eer(temporary, events, shape)
