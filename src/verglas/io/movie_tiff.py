"""Frames of TIFF movies: strips are decoded here, so that damage shows, and from any thread."""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

_LZW = 5


@dataclass(frozen=True)
class TiffFrames:
    """Pages of a TIFF as frames, rows flipped in y. Reading raises ValueError, or what a codec raises, for damage."""

    path: Path
    pages: list[tifffile.TiffPage]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return self.pages[0].shape  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self.pages)

    def read(self, index: int) -> np.ndarray:
        """Frame `index` [ny, nx] in its own type."""
        page = self.pages[index]
        if page.is_tiled or page.fillorder != 1 or page.predictor > 2:
            with tifffile.TiffFile(self.path) as tiff:
                return tiff.pages[index].asarray()[::-1]
        with self.path.open("rb") as file:
            strips = [os.pread(file.fileno(), size, offset) for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
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


def tiff_frames(path: Path, tiff: tifffile.TiffFile) -> TiffFrames:
    """All pages of an open TIFF, which must be of one size and grey. Raises ValueError where they are not."""
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    shapes = {page.shape for page in pages}
    if len(shapes) != 1 or len(pages[0].shape) != 2:
        raise ValueError(f"frames of one size and one channel were expected, found {', '.join(map(str, sorted(shapes)))}")
    return TiffFrames(path, pages)


def _strips_to_image(page: tifffile.TiffPage, strips: list[bytes]) -> np.ndarray:
    """Decode strips, each of which must give exactly the bytes of its rows: a damaged LZW strip seldom does."""
    ny, nx = page.shape
    assert page.dtype is not None
    dtype = np.dtype(page.parent.byteorder + page.dtype.char)
    image = np.empty((ny, nx), dtype.newbyteorder("="))
    rows = min(page.rowsperstrip, ny)
    for index, strip in enumerate(strips):
        part = image[index * rows : (index + 1) * rows]
        if page.compression == _LZW:
            plain = imagecodecs.lzw_decode(strip)
        else:
            plain = strip if page.compression == 1 else tifffile.TIFF.DECOMPRESSORS[page.compression](strip)
        if len(plain) != part.nbytes:
            raise ValueError(f"strip {index + 1} of {len(strips)} gives {len(plain)} bytes, {part.nbytes} expected")
        values = np.frombuffer(plain, dtype).reshape(part.shape)
        part[:] = np.cumsum(values, axis=1, dtype=part.dtype) if page.predictor == 2 else values
    return image
