"""MRC maps, images and stacks. Arrays are [z, y, x], [y, x] and [image, y, x]; y grows with the row number; pixel sizes are Å."""

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from verglas.errors import FileFormatError, InputError
from verglas.io.atomic import whole_file
from verglas.io.mrc_header import SIZE, MrcHeader, make_header, read_header

__all__ = [
    "MrcHeader",
    "StackWriter",
    "read_header",
    "read_image",
    "read_map",
    "read_pixel_size",
    "read_raw",
    "read_stack",
    "write_image",
    "write_map",
    "write_stack",
]

PathName = str | os.PathLike[str]


def read_map(path: PathName, pixel_size: float | None = None) -> tuple[np.ndarray, float]:
    """A map, float32 [z, y, x], and its pixel size in Å (`pixel_size` where given, else the header's).

    Axes stored in another order are turned to x fastest; header origins are not used, as in RELION.
    Raises FileFormatError for a single image, for NaN or infinity, and where neither header nor caller knows a pixel size.
    """
    header = read_header(path)
    values = _finite(path, _read(path, header))
    if header.shape[0] == 1:
        raise FileFormatError(path, f"is one image of {header.shape[2]} x {header.shape[1]}, a map was expected")
    order = [header.axes[::-1].index(axis) for axis in (3, 2, 1)]
    return np.ascontiguousarray(values.transpose(order)), _pixel_size(path, header) if pixel_size is None else pixel_size


def read_image(path: PathName) -> np.ndarray:
    """One image, float32 [y, x]. Raises FileFormatError for a stack or map."""
    header = read_header(path)
    if header.shape[0] != 1:
        raise FileFormatError(path, f"holds {header.shape[0]} sections, one image was expected")
    return _read(path, header)[0]


def read_stack(path: PathName, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Images of a stack, float32 [n, y, x]; `indices` count from 0 and may come in any order. None reads all.

    Raises FileFormatError for an index outside the stack.
    """
    header = read_header(path)
    if indices is None:
        return _read(path, header)
    indices = np.asarray(indices, np.int64)
    outside = indices[(indices < 0) | (indices >= header.shape[0])]
    if len(outside):
        raise FileFormatError(path, f"image {outside[0] + 1} was asked for; the stack holds images 1 to {header.shape[0]}")
    return read_raw(path, header)[indices].astype(np.float32)


def read_raw(path: PathName, header: MrcHeader | None = None) -> np.ndarray:
    """The values as stored, [nz, ny, nx], mapped from the file and read when touched."""
    header = header or read_header(path)
    return np.memmap(path, header.dtype, "r", header.offset, header.shape)


def read_pixel_size(path: PathName) -> float:
    """Å a pixel by the header. Raises FileFormatError where that is no length."""
    return _pixel_size(path, read_header(path))


def write_map(path: PathName, array: np.ndarray, pixel_size: float, dtype: str = "float32") -> None:
    """Write a map [z, y, x], whole or not at all; `dtype` float32 (mode 2) or float16 (mode 12, which RELION 3.1 cannot read).

    Raises InputError for values that `dtype` cannot hold.
    """
    _write(path, _of_rank(path, array, 3), pixel_size, dtype, is_stack=False)


def write_image(path: PathName, array: np.ndarray, pixel_size: float, dtype: str = "float32") -> None:
    """Write one image [y, x], as `write_map`."""
    _write(path, _of_rank(path, array, 2)[None], pixel_size, dtype, is_stack=True)


def write_stack(path: PathName, array: np.ndarray, pixel_size: float, dtype: str = "float32") -> None:
    """Write images [n, y, x] as a stack, as `write_map`. RELION wants its name to end in `.mrcs`."""
    _write(path, _of_rank(path, array, 3), pixel_size, dtype, is_stack=True)


class StackWriter:
    """A stack of `n` images of `box` (one number, or ny and nx) pixels, written in any order and from any thread.

    Used in a `with` block: the file appears at `path` when the block ends well, and only if every image was written.
    """

    def __init__(self, path: PathName, n: int, box: int | tuple[int, int], pixel_size: float, dtype: str = "float32") -> None:
        self.path, self.dtype = Path(path), np.dtype(dtype)
        ny, nx = (box, box) if isinstance(box, int) else box
        self.shape = (n, ny, nx)
        self._header = make_header(self.shape, self.dtype, pixel_size, is_stack=True)
        self._written = np.zeros(n, bool)
        self._low, self._high, self._lock = np.inf, -np.inf, threading.Lock()

    def __enter__(self) -> Self:
        self._closing = ExitStack()
        self._temporary = self._closing.enter_context(whole_file(self.path))
        try:
            self._file = os.open(self._temporary, os.O_CREAT | os.O_RDWR, 0o666)
        except BaseException as error:
            self._closing.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def write(self, first: int, images: np.ndarray) -> None:
        """Write images [n, y, x] (or one [y, x]) at positions `first`, `first` + 1, … counted from 0."""
        images = images if images.ndim == 3 else images[None]
        last = first + len(images)
        if images.shape[1:] != self.shape[1:] or first < 0 or last > self.shape[0]:
            raise InputError(self.path, f"images {first} to {last} of shape {images.shape[1:]} do not fit a stack of shape {self.shape}")
        values = _as_stored(self.path, images, self.dtype)
        _write_at(self._file, SIZE + first * values[0].nbytes if len(values) else SIZE, values)
        self._written[first:last] = True
        if values.size:
            with self._lock:
                self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._closing:
            try:
                if kind is None:
                    self._finish()
            finally:
                os.close(self._file)
            if error is not None:
                raise error

    def _finish(self) -> None:
        if not self._written.all():
            raise InputError(self.path, f"{(~self._written).sum()} of {len(self._written)} images were never written")
        self._header["dmin"], self._header["dmax"] = self._low, self._high
        _write_at(self._file, 0, np.frombuffer(self._header.tobytes(), np.uint8))


def _pixel_size(path: PathName, header: MrcHeader) -> float:
    if not 0 < header.pixel_size < np.inf:
        raise FileFormatError(path, f"the header's pixel size is {header.pixel_size:g} Å", "Give the pixel size")
    return round(header.pixel_size, 6)


def _read(path: PathName, header: MrcHeader) -> np.ndarray:
    with Path(path).open("rb") as file:
        count = int(np.prod(header.shape, dtype=np.int64))
        values = np.fromfile(file, header.dtype, count, offset=header.offset)
    return values.reshape(header.shape).astype(np.float32, copy=False)


def _finite(path: PathName, values: np.ndarray) -> np.ndarray:
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise FileFormatError(path, f"{bad} of {values.size} values are NaN or infinite")
    return values


def _of_rank(path: PathName, array: np.ndarray, rank: int) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != rank:
        raise InputError(path, f"not written: the array has {array.ndim} dimensions, {rank} expected")
    return array


def _as_stored(path: PathName, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in `dtype`. Raises InputError where a value does not fit."""
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    if array.size and not (array.min() >= limits.min and array.max() <= limits.max):
        raise InputError(path, f"not written: values from {array.min():g} to {array.max():g} do not fit {dtype.name}")
    return np.ascontiguousarray(array, dtype)


def _write(path: PathName, array: np.ndarray, pixel_size: float, dtype: str, is_stack: bool) -> None:
    values = _as_stored(path, array, np.dtype(dtype))
    header = make_header(values.shape, values.dtype, pixel_size, is_stack)
    if values.size:
        header["dmin"], header["dmax"] = values.min(), values.max()
        header["dmean"], header["rms"] = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(header.tobytes())
        values.tofile(file)


def _write_at(file: int, offset: int, values: np.ndarray) -> None:
    """Write all bytes at `offset`; unlike a mapped file, a full disk is an OSError here and not a crash."""
    view = memoryview(values.data).cast("B")
    while view:
        done = os.pwrite(file, view, offset)
        view, offset = view[done:], offset + done
