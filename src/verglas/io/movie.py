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

import imagecodecs
import numpy as np
import tifffile

from verglas.errors import FileFormatError, InputError, ItemError
from verglas.io.eer import EerFile, eer_fractions, is_eer, open_eer
from verglas.io.mrc_header import MrcHeader, read_header
from verglas.io.movie_writer import write_movie

__all__ = ["Movie", "eer_fractions", "open_movie", "write_movie"]

PathName = str | os.PathLike[str]

TIFF_NAMES, EER_NAMES, MRC_NAMES = (".tif", ".tiff"), (".eer",), (".mrc", ".mrcs", ".st", ".map")
_DAMAGE = (ValueError, RuntimeError, OSError, struct.error, IndexError, KeyError, AttributeError, TypeError)
_LZW = 5


class _Frames(Protocol):
    shape: tuple[int, int]

    def __len__(self) -> int: ...
    def read(self, index: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Movie:
    """An open movie. Nothing stays open between reads, and `read` may be called from several threads.

    internal_frames: for each frame the number of camera frames in it (1 unless EER), to which its dose is proportional;
    notes: what a reader should be told, such as EER frames that make no full fraction.
    """

    path: Path
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
            return Movie(path, (1,) * header.shape[0], _frames=_MrcFrames(path, header))
        with tifffile.TiffFile(path) as tiff:
            tiff.pages.useframes = False
            check_chain(tiff)
            if not is_eer(tiff.pages[-1]):  # type: ignore[arg-type]
                frames = _tiff_frames(path, tiff)
                return Movie(path, (1,) * len(frames), _frames=frames)
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
    notes = ()
    if rest:
        what = f"make a last, shorter fraction of {rest}" if keep_rest else "are left out"
        notes = (f"{rest} of {len(eer.frames)} internal frames {what} ({grouping} per fraction)",)
    return Movie(eer.path, tuple(map(len, fractions)), notes, _frames=_EerFractions(eer, fractions, upsampling))


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


@dataclass(frozen=True)
class _TiffFrames:
    path: Path
    pages: list[tifffile.TiffPage]

    @property
    def shape(self) -> tuple[int, int]:
        return self.pages[0].shape  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self.pages)

    def read(self, index: int) -> np.ndarray:
        page = self.pages[index]
        if page.is_tiled or page.fillorder != 1 or page.predictor > 2:
            with tifffile.TiffFile(self.path) as tiff:
                return tiff.pages[index].asarray()[::-1]
        with self.path.open("rb") as file:
            strips = [
                os.pread(file.fileno(), size, offset) for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True)
            ]
        if [*map(len, strips)] != list(page.databytecounts):
            raise ValueError("the file ends within the frame")
        return _strips_to_image(page, strips)[::-1]


def check_chain(tiff: tifffile.TiffFile) -> None:
    """Raise ValueError where the last page points at another one that cannot be read, as in a file cut short."""
    page, form = tiff.pages[-1], tiff.tiff
    assert isinstance(page, tifffile.TiffPage)
    tiff.filehandle.seek(page.offset)
    count = struct.unpack(form.tagnoformat, tiff.filehandle.read(form.tagnosize))[0]
    tiff.filehandle.seek(page.offset + form.tagnosize + count * form.tagsize)
    if struct.unpack(form.offsetformat, tiff.filehandle.read(form.offsetsize))[0]:
        raise ValueError(f"the file ends after {len(tiff.pages)} frames, and more were written: it is cut short")


def _tiff_frames(path: Path, tiff: tifffile.TiffFile) -> _TiffFrames:
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    shapes = {page.shape for page in pages}
    if len(shapes) != 1 or len(pages[0].shape) != 2:
        raise ValueError(f"frames of one size and one channel were expected, found {', '.join(map(str, sorted(shapes)))}")
    return _TiffFrames(path, pages)


def _strips_to_image(page: tifffile.TiffPage, strips: list[bytes]) -> np.ndarray:
    """Decode strips, each of which must give exactly the bytes of its rows: a damaged LZW strip seldom does."""
    ny, nx = page.shape
    dtype = np.dtype(page.parent.byteorder + page.dtype.char)
    image = np.empty((ny, nx), dtype.newbyteorder("="))
    rows = min(page.rowsperstrip, ny)
    for index, strip in enumerate(strips):
        part = image[index * rows : (index + 1) * rows]
        if page.compression == _LZW:
            strip = imagecodecs.lzw_decode(strip)
        elif page.compression != 1:
            strip = tifffile.TIFF.DECOMPRESSORS[page.compression](strip)
        if len(strip) != part.nbytes:
            raise ValueError(f"strip {index + 1} of {len(strips)} gives {len(strip)} bytes, {part.nbytes} expected")
        values = np.frombuffer(strip, dtype).reshape(part.shape)
        part[:] = np.cumsum(values, axis=1, dtype=part.dtype) if page.predictor == 2 else values
    return image
