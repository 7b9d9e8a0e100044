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


def write_movie(path: PathName, frames: Sequence[np.ndarray] | np.ndarray, pixel_size: float) -> int:
    """Write frames [n, ny, nx] as the suffix says, whole or not at all; `open_movie` gives the same frames back.

    `.tif`, `.tiff`: LZW, in the frames' own type (counts as uint8), rows flipped in y; `.mrc`, `.mrcs`: uint8 as mode 6,
    float64 as mode 2, other types as they are; `.eer`: counts, each electron in one of the internal frames of its frame and at one
    of the sub-pixels of its pixel, drawn at random with a fixed seed.
    Returns the internal frames a frame: 1, and for EER the largest count of any pixel, to be given as `eer_grouping` when read.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".tif", ".tiff"):
        _write_tiff(path, frames, pixel_size)
    elif suffix == ".eer":
        return _write_counts_as_eer(path, [np.asarray(frame) for frame in frames])
    elif suffix in (".mrc", ".mrcs"):
        movie = np.asarray(frames)
        stored = {"uint8": "uint16", "float64": "float32"}.get(movie.dtype.name, movie.dtype.name)
        write_stack(path, movie, pixel_size, dtype=stored)
    else:
        raise InputError(path, f"not written: no movie format has the suffix {suffix!r}", "Use .tif, .mrc, .mrcs or .eer")
    return 1


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


def _write_counts_as_eer(path: PathName, frames: list[np.ndarray]) -> int:
    for number, frame in enumerate(frames, start=1):
        if (frame < 0).any() or (frame != np.floor(frame)).any():
            raise InputError(path, f"not written: frame {number} holds values that are no counts, which EER cannot")
    internal = max(1, *(int(frame.max()) for frame in frames))
    codec, random = CODECS[COMPRESSION_7BIT], np.random.default_rng(0)
    events = []
    for frame in frames:
        left = frame.reshape(-1).astype(np.int64)
        for remaining in range(internal, 0, -1):  # each pixel's electrons fall into distinct internal frames, all choices equally likely
            position = np.flatnonzero(left)
            position = position[random.integers(0, remaining, len(position)) < left[position]]
            left[position] -= 1
            events.append((position, random.integers(0, 1 << (codec.x + codec.y), len(position)).astype(np.uint8)))
    with whole_file(path) as temporary:
        write_eer(temporary, events, frames[0].shape)
    return internal
