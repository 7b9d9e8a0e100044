"""MotionCorr's look at a gain reference before the start: do the movies say that it is the right one, the right way round?"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from verglas.errors import InputError, ItemError
from verglas.jobs.declaration import Job
from verglas.jobs.motioncorr_movie import gain_and_defects, open_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from verglas.particles import Micrographs

_MOVIES, _FRAMES = 3, 10  # looked at
_CERTAIN = 0.1  # uncertainty of the exponent, above which nothing can be said


def check_gain_by_movies(job: Job, movies: Micrographs) -> None:
    """Raise InputError for a gain that works the wrong way round; warn of one that has nothing to do with the movies.

    The first movies that can be read are looked at, a few frames of each.
    """
    import numpy as np

    from verglas.io.gain import gain_exponent

    if job.inputs["gain"] is None:
        return
    frames = list(islice(_means(job, movies), _MOVIES))
    frames = [(name, mean) for name, mean in frames if mean.shape == frames[0][1].shape]
    if not frames:
        return
    mean = np.mean([mean for _, mean in frames], axis=0)
    gain, defects = gain_and_defects(job, mean.shape, frames[0][0])
    assert gain is not None and defects is not None
    exponent, uncertainty = gain_exponent(gain, defects, mean)
    job.record["gain_exponent"] = exponent
    if uncertainty > _CERTAIN:
        return
    if exponent > 0.5:
        found = f"the movies are brighter where this gain is larger (power {exponent:.1f}, −1 was expected): it works the wrong way round"
        raise InputError("--gain", found, f"Give --{'no-' if _divides(job, frames[0][0]) else ''}gain-reciprocal")
    if exponent > -0.5:
        job.warn(
            f"the gain does not even out the movies' mean (power {exponent:.1f}, −1 was expected): it is turned, flipped, "
            "of another detector, or these movies have it in them already"
        )


def _divides(job: Job, movie: str) -> bool:
    """Whether the gain was taken to divide the frames."""
    given = job.params.gain_reciprocal
    by_rule = Path(movie).suffix.lower() == ".eer" and Path(job.inputs["gain"]).suffix != ".gain"
    return by_rule if given is None else bool(given)


def _means(job: Job, movies: Micrographs) -> Iterator[tuple[str, np.ndarray]]:
    """Name and mean of some frames [ny, nx] of each movie that can be read."""
    for name in movies.names():
        try:
            movie = open_named(job, name)
            total, count = movie.read(0), min(_FRAMES, movie.frames)
            for frame in range(1, count):
                total = total + movie.read(frame)
        except ItemError:
            continue
        yield name, total / count
