"""EER movies: electron events in a TIFF, one page an internal frame, summed into fractions when read."""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from verglas.errors import InputError
from verglas.io.eer_codec import CODECS, COMPRESSION_7BIT, COMPRESSION_VARIABLE, EerCodec, decode_events, encode_events

PathName = str | os.PathLike[str]

_SKIP_BITS, _X_BITS, _Y_BITS = 65007, 65008, 65009


@dataclass(frozen=True)
class EerFrame:
    """Where one internal frame lies in the file (offset and bytes of each strip), and how it is coded."""

    strips: tuple[tuple[int, int], ...]
    codec: EerCodec


@dataclass(frozen=True)
class EerFile:
    """Internal frames of an EER file, their shape (ny, nx) and the camera's own notes (XML, or empty)."""

    path: Path
    shape: tuple[int, int]
    frames: tuple[EerFrame, ...]
    metadata: str

    def events(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixel index int64 [n] (row-major) and raw sub-pixel bits uint8 [n] of internal frame `index`. ValueError if damaged."""
        frame = self.frames[index]
        with self.path.open("rb") as file:
            data = b"".join(os.pread(file.fileno(), size, offset) for offset, size in frame.strips)
        if len(data) != sum(size for _, size in frame.strips):
            raise ValueError("the file ends within the frame")
        return decode_events(data, self.shape[0] * self.shape[1], frame.codec)

    def add_frame(self, index: int, image: np.ndarray) -> None:
        """Add internal frame `index` to float32 `image`, which is as large as the detector or twice that (sub-pixels by their top bit)."""
        position, sub = self.events(index)
        if image.shape == self.shape:
            np.add.at(image.reshape(-1), position, np.float32(1))
            return
        codec, nx = self.frames[index].codec, self.shape[1]
        x = 2 * (position % nx) + 1 - (sub >> (codec.x - 1) & 1)
        y = 2 * (position // nx) + 1 - (sub >> (codec.x + codec.y - 1) & 1)
        np.add.at(image.reshape(-1), 2 * nx * y + x, np.float32(1))


def is_eer(page: tifffile.TiffPage) -> bool:
    """True for a page of electron events."""
    return int(page.compression) in (*CODECS, COMPRESSION_VARIABLE)


def open_eer(path: PathName, tiff: tifffile.TiffFile) -> EerFile:
    """The internal frames of an open TIFF with EER pages; pages of other kinds (a summed image) are left out."""
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and is_eer(page)]
    frames = tuple(EerFrame(tuple(zip(page.dataoffsets, page.databytecounts, strict=True)), _codec(page)) for page in pages)
    shapes = {(page.imagelength, page.imagewidth) for page in pages}
    if len(shapes) != 1:
        raise ValueError(f"frames of {len(shapes)} different sizes")
    tag = tiff.pages.first.tags.get(65001)
    metadata = bytes(tag.value).decode("utf-8", "replace") if tag is not None and isinstance(tag.value, bytes) else ""
    return EerFile(Path(path), shapes.pop(), frames, metadata)


def eer_fractions(frames: int, per_fraction: int, keep_rest: bool = False) -> list[range]:
    """Internal frames of each fraction, by the number of internal frames *per fraction* (not the number of fractions).

    A remainder is left out, as RELION does, or becomes a last, shorter fraction with `keep_rest`.
    Raises InputError where not even one fraction is full.
    """
    if not 1 <= per_fraction <= frames:
        raise InputError("eer_grouping", f"{per_fraction} frames per fraction of {frames} internal frames", f"Choose 1 to {frames}")
    starts = range(0, frames if keep_rest else frames - frames % per_fraction, per_fraction)
    return [range(start, min(start + per_fraction, frames)) for start in starts]


def write_eer(
    path: PathName, frames: list[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int], compression: int = COMPRESSION_7BIT
) -> None:
    """Write electron events as a BigTIFF: for each internal frame pixel indices (ascending, distinct) and raw sub-pixel bits."""
    pixels = shape[0] * shape[1]
    metadata = f'<metadata><item name="numberOfFrames">{len(frames)}</item></metadata>'.encode()
    with Path(path).open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16))
        at = 16
        for number, (position, sub) in enumerate(frames):
            data = encode_events(position, sub, pixels, CODECS[compression])
            data += bytes(-len(data) % 8)
            tags = [
                *((256, 4, 1, shape[1]), (257, 4, 1, shape[0]), (258, 3, 1, 1), (259, 3, 1, compression), (262, 3, 1, 1)),
                *((277, 3, 1, 1), (278, 4, 1, shape[0])),
            ]
            directory = 8 + 20 * (len(tags) + 2 + (number == 0)) + 8
            start = at + directory
            extra = metadata + bytes(-len(metadata) % 8) if number == 0 else b""
            tags += [(273, 16, 1, start + len(extra)), (279, 16, 1, len(data))]
            if number == 0:
                tags.append((65001, 7, len(metadata), start))
            following = start + len(extra) + len(data) if number + 1 < len(frames) else 0
            entries = b"".join(struct.pack("<HHQQ", *tag) for tag in sorted(tags))
            file.write(struct.pack("<Q", len(tags)) + entries + struct.pack("<Q", following) + extra + data)
            at = following


def _codec(page: tifffile.TiffPage) -> EerCodec:
    if int(page.compression) != COMPRESSION_VARIABLE:
        return CODECS[int(page.compression)]
    skip, x, y = (int(page.tags.valueof(tag, default)) for tag, default in ((_SKIP_BITS, 7), (_X_BITS, 2), (_Y_BITS, 2)))
    return EerCodec(skip, x, y)
