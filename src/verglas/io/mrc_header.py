"""The 1,024 bytes at the head of an MRC file, read with care: what they claim is held against the size of the file.

Format: https://www.ccpem.ac.uk/mrc_format/mrc2014.php; unsigned bytes as IMOD marks them (https://bio3d.colorado.edu/imod/doc/mrc_format.txt).
"""

import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from verglas.errors import FileFormatError, InputError

SIZE = 1024
MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
_UNREAD_MODES = {3: "complex 16-bit integers", 4: "complex floats", 5: "bytes as 16-bit integers", 16: "RGB", 101: "4-bit integers"}
_STAMPS = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}
_IMOD_STAMP, _IMOD_SIGNED_BYTES = 1146047817, 1
_Order = Literal["<", ">"]
_AXES = ((1, 2, 3), (0, 0, 0))


@dataclass(frozen=True)
class MrcHeader:
    """What an MRC file holds.

    shape: [nz, ny, nx] as stored; dtype: of the stored values, byte order included; offset: bytes before the first value;
    pixel_size: Å (x); 0 or below where the header does not know; axes: which of x, y, z (1, 2, 3) columns, rows and sections are;
    labels: the text labels; oddities: what is unusual about the header, in words.
    """

    shape: tuple[int, int, int]
    mode: int
    dtype: np.dtype
    offset: int
    pixel_size: float
    axes: tuple[int, int, int]
    is_volume: bool
    labels: tuple[str, ...]
    oddities: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def read_header(path: str | os.PathLike[str]) -> MrcHeader:
    """The header of an MRC file, checked against the file's size.

    Raises FileFormatError for what is no MRC file, a mode that is not read, a file cut short, and one that is a section or more too
    long. Warns (UserWarning) about harmless oddities: an unknown machine stamp, an extended header that is not there, bytes after
    the data, more labels than counted.
    """
    header = inspect_header(path)
    for oddity in header.oddities:
        warnings.warn(f"{path}: {oddity}", stacklevel=2)
    return header


def inspect_header(path: str | os.PathLike[str]) -> MrcHeader:
    """As `read_header`, without warnings."""
    if not Path(path).is_file():
        raise FileFormatError(path, "the file does not exist" if not Path(path).exists() else "is not a file")
    with Path(path).open("rb") as file:
        raw = file.read(SIZE)
        size = os.fstat(file.fileno()).st_size
    if len(raw) < SIZE:
        raise FileFormatError(path, f"is not an MRC file: {len(raw)} bytes, a header has {SIZE}")
    oddities: list[str] = []
    order, head = _byte_order(path, raw)
    stamp = bytes(head["machst"])
    if _STAMPS.get(stamp[:2]) != order:
        oddities.append(f"machine stamp {stamp.hex(' ')} is unknown; the values read as {'little' if order == '<' else 'big'}-endian")
    mode = int(head["mode"])
    dtype = _dtype(path, raw, head, mode, order)
    shape = (int(head["nz"]), int(head["ny"]), int(head["nx"]))
    offset = _data_offset(path, head, shape, dtype, size, oddities)
    axes = (int(head["mapc"]), int(head["mapr"]), int(head["maps"]))
    if axes not in _AXES and sorted(axes) != [1, 2, 3]:
        raise FileFormatError(path, f"axis order {axes} is not a permutation of 1, 2, 3")
    labels = [bytes(label).decode("latin-1").strip(" \0") for label in head["label"]]
    filled = sum(map(bool, labels))
    if filled > max(int(head["nlabl"]), 0):
        oddities.append(f"the header counts {int(head['nlabl'])} labels and holds {filled}")
    mx = int(head["mx"])
    pixel_size = float(head["cella"]["x"]) / mx if mx > 0 else 0.0
    return MrcHeader(
        shape,
        mode,
        dtype,
        offset,
        pixel_size,
        (1, 2, 3) if axes == (0, 0, 0) else axes,
        bool(head["ispg"]) or int(head["mz"]) == shape[0] > 1,
        tuple(filter(None, labels)),
        tuple(oddities),
    )


def make_header(shape: tuple[int, int, int], dtype: np.dtype, pixel_size: float, is_stack: bool) -> np.ndarray:
    """A header like RELION's for values of `dtype` and shape [nz, ny, nx]; statistics are marked as not known.

    `is_stack`: sections are images, not slices of a volume (MZ 1). Raises InputError for a type that no mode holds.
    """
    modes = {np.dtype(name): mode for mode, name in MODES.items()}
    if dtype not in modes:
        raise InputError("MRC", f"cannot hold {dtype} values", f"Use one of {', '.join(MODES.values())}")
    if not np.isfinite(pixel_size) or pixel_size <= 0:
        raise InputError("MRC", f"the pixel size is {pixel_size}, a length in Å was expected")
    if 0 in shape:
        raise InputError("MRC", f"nothing to write: the shape is {shape}")
    header = np.zeros((), HEADER_DTYPE)
    nz, ny, nx = shape
    header["nx"], header["ny"], header["nz"] = nx, ny, nz
    header["mode"] = modes[dtype]
    header["mx"], header["my"], header["mz"] = nx, ny, 1 if is_stack else nz
    for axis, cells in zip("xyz", ("mx", "my", "mz"), strict=True):
        header["cella"][axis] = header[cells] * pixel_size
    for angle in ("alpha", "beta", "gamma"):
        header["cellb"][angle] = 90
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = 0, -1, -2, -1
    header["nversion"] = 20140
    header["map"], header["machst"] = b"MAP ", (0x44, 0x41, 0, 0)
    header["nlabl"] = 1
    header["label"][0] = time.strftime("Verglas    %d-%b-%y  %H:%M:%S").encode()
    return header


def _byte_order(path: str | os.PathLike[str], raw: bytes) -> tuple[_Order, np.void]:
    """Byte order under which size and mode make sense, and the header read so."""
    orders: tuple[_Order, ...] = ("<", ">")
    for order in orders:
        head = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        if all(0 < head[n] < 1 << 24 for n in ("nx", "ny", "nz")) and 0 <= head["mode"] < 256:
            return order, head
    size = [int(head[n]) for head in [np.frombuffer(raw, HEADER_DTYPE)[0]] for n in ("nx", "ny", "nz", "mode")]
    raise FileFormatError(path, f"is not an MRC file: its size reads as {size[0]} x {size[1]} x {size[2]}, mode {size[3]}")


def _dtype(path: str | os.PathLike[str], raw: bytes, head: np.void, mode: int, order: _Order) -> np.dtype:
    if mode not in MODES:
        known = ", ".join(f"{mode} ({name})" for mode, name in MODES.items())
        raise FileFormatError(path, f"MRC mode {mode} ({_UNREAD_MODES.get(mode, 'unknown')}) is not read; modes {known} are", "Convert it")
    imod = np.frombuffer(raw, np.dtype("i4").newbyteorder(order), count=2, offset=152)
    unsigned = mode == 0 and imod[0] == _IMOD_STAMP and not imod[1] & _IMOD_SIGNED_BYTES
    return np.dtype("uint8" if unsigned else MODES[mode]).newbyteorder(order)


def _data_offset(
    path: str | os.PathLike[str], head: np.void, shape: tuple[int, int, int], dtype: np.dtype, size: int, oddities: list[str]
) -> int:
    """Bytes before the data, by header and file size."""
    section = shape[1] * shape[2] * dtype.itemsize
    data, extended = section * shape[0], max(int(head["nsymbt"]), 0)
    expected = SIZE + extended + data
    if size == expected:
        return SIZE + extended
    if extended and size == SIZE + data:
        oddities.append(f"the header claims an extended header of {extended} bytes; the file's size says that there is none")
        return SIZE
    shown = f"{shape[2]} x {shape[1]} x {shape[0]} {dtype.name} values"
    if size < expected:
        whole = max(0, size - SIZE - extended) // section
        raise FileFormatError(
            path, f"is cut short: {size} bytes, {expected} expected for {shown}; {whole} of {shape[0]} sections are whole", "Copy it again"
        )
    if size - expected >= section:
        raise FileFormatError(path, f"is {size - expected} bytes too long for {shown}: the header contradicts the file")
    oddities.append(f"{size - expected} bytes after the data are ignored")
    return SIZE + extended
