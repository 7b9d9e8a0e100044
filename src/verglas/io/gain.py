"""Gain references. A gain *multiplies* the frames (but see `read_gain` on EER).

What is zero, negative or no number in it is a defect of the detector.
"""

import os
import warnings
from pathlib import Path

import numpy as np

from verglas.errors import FileFormatError, InputError
from verglas.io.picture import read_plane

FLIPS = {0: "none", 1: "rows reversed", 2: "columns reversed"}


def read_gain(
    path: str | os.PathLike[str],
    movie_shape: tuple[int, int],
    rotation: int = 0,
    flip: int = 0,
    eer: bool = False,
    reciprocal: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Gain for movies of `movie_shape` (ny, nx): factors float32 [ny, nx], 0 at defects, and the defects, bool [ny, nx].

    rotation: quarter turns clockwise, rows shown top down, done first; flip: then 1 reverses rows, 2 columns (RELION's --gain_rot
    and --gain_flip). eer: the movies are EER, for which RELION's rule is another: a `.gain` file multiplies and its rows are taken as
    stored, any other file *divides*. reciprocal: the file divides whatever its kind. A file of twice the movie's size is averaged
    over 2 x 2 pixels (a defect in any of them is one), one of half its size is repeated, and either is said (UserWarning).
    Raises FileFormatError for any other size, naming the rotations and flips that would fit.
    """
    if rotation not in range(4) or flip not in FLIPS:
        raise InputError("gain", f"rotation {rotation} and flip {flip}", "Rotation is 0 to 3 quarter turns, flip 0, 1 or 2")
    try:
        raw = read_plane(Path(path))
    except (ValueError, OSError, RuntimeError) as error:
        raise FileFormatError(path, f"cannot be read as a gain reference: {error}") from error
    as_stored = eer and Path(path).suffix == ".gain"
    if reciprocal is None:
        reciprocal = eer and not as_stored
    gain = np.rot90(raw[::-1] if as_stored else raw, -rotation)
    gain = gain[::-1] if flip == 1 else gain[:, ::-1] if flip == 2 else gain
    scale = _scale(path, gain.shape, movie_shape, rotation)
    defects: np.ndarray = ~(np.isfinite(gain) & (gain > 0))
    if defects.all():
        raise FileFormatError(path, "holds no positive value", "Is it a gain reference?")
    good = np.where(defects, 1, gain)
    gain = np.where(defects, 0, 1 / good if reciprocal else good).astype(np.float32)
    if scale == 2:
        gain, defects = _halved(gain, defects)
        warnings.warn(f"{path}: the gain is twice the movie's size (super-resolution); averaged over 2 x 2 pixels", stacklevel=2)
    elif scale == 0.5:
        gain, defects = (np.repeat(np.repeat(a, 2, axis=0), 2, axis=1) for a in (gain, defects))
        warnings.warn(f"{path}: the gain is half the movie's size; each value is used for 2 x 2 pixels", stacklevel=2)
    return np.ascontiguousarray(gain), np.ascontiguousarray(defects)


def gain_exponent(gain: np.ndarray, defects: np.ndarray, mean_frame: np.ndarray) -> tuple[float, float]:
    """The power of the gain that the mean raw frame follows from pixel to pixel, both [ny, nx], and the uncertainty of that.

    −1: the gain multiplies, it evens the frame out. +1: the file is the reciprocal. 0: it is turned, flipped, of another detector, or
    applied already. Neighbours along x are compared, so that a beam or ice that is uneven does not count. A straight line is fitted
    (right to some hundredths for real gains), which holds for any number of counts, zeros too. The uncertainty is infinite where the
    gain is the same everywhere or nothing was counted.
    """
    if defects.all():
        raise InputError("gain", "no pixel has both a gain and counts")
    usual = float(mean_frame[~defects].mean())
    good = ~defects & (mean_frame < 10 * usual)  # hot pixels tell nothing
    pairs = good[:, 1:] & good[:, :-1]
    if usual <= 0 or pairs.sum() < 2:
        return 0.0, np.inf
    scales = float(gain[good].mean()), float(mean_frame[good].mean())
    of_gain, of_frame = (np.diff(v.astype(np.float64), axis=1)[pairs] / scale for v, scale in zip((gain, mean_frame), scales))
    power = float((of_gain**2).sum())
    if power == 0:
        return 0.0, np.inf
    exponent = float((of_gain * of_frame).sum()) / power
    left = of_frame - exponent * of_gain
    return exponent, float(np.sqrt((left**2).mean() / power))


def _scale(path: str | os.PathLike[str], shape: tuple[int, ...], movie: tuple[int, int], rotation: int) -> float:
    """Size of the gain in units of the movie's: 1, 2 or 0.5."""
    for scale in (1, 2, 0.5):
        if shape == (movie[0] * scale, movie[1] * scale):
            return scale
        if shape[::-1] == (movie[0] * scale, movie[1] * scale):
            turns = " or ".join(str(turn) for turn in range(4) if (turn - rotation) % 2)
            raise FileFormatError(
                path,
                f"is {shape[0]} x {shape[1]} (rows x columns) after rotation {rotation}, the movies are {movie[0]} x {movie[1]}",
                f"Rotation {turns} with flip 0, 1 or 2 would fit; a wrong one of them shows as stripes in the micrographs",
            )
    raise FileFormatError(path, f"is {shape[0]} x {shape[1]} (rows x columns), the movies are {movie[0]} x {movie[1]}; no rotation fits")


def _halved(gain: np.ndarray, defects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ny, nx = gain.shape
    blocks = defects.reshape(ny // 2, 2, nx // 2, 2).any(axis=(1, 3))
    mean = gain.reshape(ny // 2, 2, nx // 2, 2).mean(axis=(1, 3))
    return np.where(blocks, 0, mean).astype(np.float32), np.asarray(blocks)
