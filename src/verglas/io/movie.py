"""Movies: a series of frames in TIFF, MRC or EER, read one frame at a time and from any thread.

Rows of a TIFF are stored top to bottom and come flipped in y, as RELION reads them; MRC and EER rows come as stored.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import tifffile

from verglas.errors import FileFormatError, InputError, ItemError
from verglas.io.eer import EerFile, eer_fractions, is_eer, open_eer
from verglas.io.movie_tiff import check_chain, tiff_frames
from verglas.io.movie_writer import write_movie
from verglas.io.mrc_header import MrcHeader, read_header

__all__ = ["Movie", "eer_fractions", "open_movie", "write_movie"]

PathName = str | os.PathLike[str]

TIFF_NAMES, EER_NAMES, MRC_NAMES = (".tif", ".tiff"), (".eer",), (".mrc", ".mrcs", ".st", ".map")
_DAMAGE = (ValueError, RuntimeError, OSError, struct.error, IndexError, KeyError, AttributeError, TypeError)


class _Frames(Protocol):
    @property
    def shape(self) -> tuple[int, int]: ...
    def __len__(self) -> int: ...
    def read(self, index: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Movie:
    """An open movie. Nothing stays open between reads, and `read` may be called from several threads.

    kind: `tiff`, `mrc` or `eer`;
    internal_frames: for each frame the number of camera frames in it (1 unless EER), to which its dose is proportional;
    notes: what a reader should be told, such as EER frames that make no full fraction.
    """

    path: Path
    kind: str
    internal_frames: tuple[int, ...]
    notes: tuple[str, ...] = ()
    _frames: _Frames = field(repr=False, kw_only=True)

    @property
    def frames(self) -> int:
        """Number of frames (fractions, of an EER movie)."""
        return len(self._frames)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (ny, nx) of a frame."""
        return self._frames.shape

    def read(self, index: int) -> np.ndarray:
        """Frame `index` (from 0), float32 [ny, nx]. Raises ItemError naming the frame when it is damaged."""
        if not 0 <= index < self.frames:
            raise InputError(self.path, f"frame {index + 1} was asked for; the movie has {self.frames}")
        try:
            frame = self._frames.read(index)
        except _DAMAGE as error:
            raise ItemError(str(self.path), f"frame {index + 1} of {self.frames} is damaged: {error}") from error
        if frame.dtype.kind == "f" and not np.isfinite(frame).all():
            raise ItemError(str(self.path), f"frame {index + 1} of {self.frames} has values that are NaN or infinite")
        return np.ascontiguousarray(frame, np.float32)

    def read_all(self) -> np.ndarray:
        """All frames, float32 [frames, ny, nx]."""
        movie = np.empty((self.frames, *self.shape), np.float32)
        for index in range(self.frames):
            movie[index] = self.read(index)
        return movie


def open_movie(path: PathName, eer_grouping: int | None = None, eer_upsampling: int = 1, keep_rest: bool = False) -> Movie:
    """Open a TIFF, MRC, MRCS or EER movie, told apart by content.

    eer_grouping: internal EER frames *per fraction* (required for EER); eer_upsampling: 1 or 2 (sub-pixel events);
    keep_rest: EER frames that make no full fraction become a last, shorter one instead of being left out.
    Raises ItemError for a file that is missing, damaged or of no known kind; InputError for a grouping that cannot be.
    """
    path = Path(path)
    with _as_item(path):
        kind = movie_kind(path)
        if kind == "mrc":
            header = read_header(path)
            return Movie(path, kind, (1,) * header.shape[0], _frames=_MrcFrames(path, header))
        with tifffile.TiffFile(path) as tiff:
            tiff.pages.useframes = False
            check_chain(tiff)
            if not is_eer(tiff.pages[-1]):  # type: ignore[arg-type]
                frames = tiff_frames(path, tiff)
                return Movie(path, kind, (1,) * len(frames), _frames=frames)
            eer = open_eer(path, tiff)
    return _eer_movie(eer, eer_grouping, eer_upsampling, keep_rest)


def movie_kind(path: Path) -> str:
    """`tiff` (EER included) or `mrc`, by the first bytes. Raises ValueError for an empty file, FileFormatError for no MRC."""
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise ValueError("the file is empty")
    if start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if path.suffix.lower() in TIFF_NAMES + EER_NAMES:
        raise ValueError("the file does not begin like a TIFF")
    return "mrc"


@contextmanager
def _as_item(path: Path) -> Iterator[None]:
    try:
        yield
    except FileFormatError as error:
        raise ItemError(str(path), error.problem) from error
    except FileNotFoundError as error:
        raise ItemError(str(path), "the file does not exist") from error
    except _DAMAGE as error:
        raise ItemError(str(path), f"cannot be read: {error}") from error


def _eer_movie(eer: EerFile, grouping: int | None, upsampling: int, keep_rest: bool) -> Movie:
    if grouping is None:
        raise InputError(eer.path, f"is an EER movie of {len(eer.frames)} internal frames", "Give the number of frames per fraction")
    if upsampling not in (1, 2):
        raise InputError("eer_upsampling", f"is {upsampling}, 1 or 2 was expected")
    fractions = eer_fractions(len(eer.frames), grouping, keep_rest)
    rest = len(eer.frames) % grouping
    notes: tuple[str, ...] = ()
    if rest:
        what = f"make a last, shorter fraction of {rest}" if keep_rest else "are left out"
        notes = (f"{rest} of {len(eer.frames)} internal frames {what} ({grouping} per fraction)",)
    return Movie(eer.path, "eer", tuple(map(len, fractions)), notes, _frames=_EerFractions(eer, fractions, upsampling))


@dataclass(frozen=True)
class _EerFractions:
    eer: EerFile
    fractions: list[range]
    upsampling: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.eer.shape[0] * self.upsampling, self.eer.shape[1] * self.upsampling

    def __len__(self) -> int:
        return len(self.fractions)

    def read(self, index: int) -> np.ndarray:
        image = np.zeros(self.shape, np.float32)
        for frame in self.fractions[index]:
            self.eer.add_frame(frame, image)
        return image


@dataclass(frozen=True)
class _MrcFrames:
    path: Path
    header: MrcHeader

    @property
    def shape(self) -> tuple[int, int]:
        return self.header.shape[1:]

    def __len__(self) -> int:
        return self.header.shape[0]

    def read(self, index: int) -> np.ndarray:
        ny, nx = self.shape
        offset = self.header.offset + index * ny * nx * self.header.dtype.itemsize
        values = np.fromfile(self.path, self.header.dtype, ny * nx, offset=offset)
        return values.reshape(ny, nx)
