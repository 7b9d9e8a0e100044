"""Single images as micrographs: MRC, TIFF or PNG in, float32 [y, x] out.

Row direction: MRC and PNG as stored (row 0 is y = 0); TIFF rows are flipped in y, as RELION reads them.
"""

import os
import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from verglas.errors import FileFormatError, ItemError
from verglas.io.mrc import read_header, read_image

_GREY = ("1", "L", "I", "I;16", "I;16B", "F")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DAMAGE = (ValueError, RuntimeError, OSError, SyntaxError, struct.error, IndexError, KeyError, TypeError)


def read_micrograph(path: str | os.PathLike[str]) -> np.ndarray:
    """One micrograph, float32 [y, x], all values finite.

    Raises ItemError for a file that is missing, damaged, in colour, of more than one image, or holds NaN.
    """
    path = Path(path)
    try:
        image = read_plane(path)
    except FileFormatError as error:
        raise ItemError(str(path), error.problem) from error
    except FileNotFoundError as error:
        raise ItemError(str(path), "the file does not exist") from error
    except _DAMAGE as error:
        raise ItemError(str(path), f"cannot be read: {error}") from error
    bad = image.size - int(np.isfinite(image).sum())
    if bad:
        raise ItemError(str(path), f"{bad} of {image.size} values are NaN or infinite")
    return image


def micrograph_shape(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Rows and columns of a micrograph; of an MRC by its header alone. Raises ItemError as `read_micrograph`."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            known = file.read(4) in (b"\x89PNG", *_TIFF)
        if not known:
            return read_header(path).shape[1:]
    except (FileFormatError, OSError):
        pass  # said by the reader below
    ny, nx = read_micrograph(path).shape
    return ny, nx


def read_plane(path: Path) -> np.ndarray:
    """One image of any known kind, float32 [y, x], NaN allowed; raises whatever its reader raises."""
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise ValueError("the file is empty")
    if start.startswith(b"\x89PNG"):
        return _read_png(path)
    if start[:4] in _TIFF:
        return _one_plane(tifffile.imread(path))[::-1].astype(np.float32)
    return read_image(path)


def _read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if image.mode not in _GREY:
            raise ValueError(f"a grey picture was expected, found {image.mode}")
        return np.asarray(image).astype(np.float32)


def _one_plane(values: np.ndarray) -> np.ndarray:
    if values.ndim != 2:
        raise ValueError(f"one grey image was expected, found values of shape {values.shape}")
    return values
