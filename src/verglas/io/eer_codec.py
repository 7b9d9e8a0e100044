"""The run-length code of EER frames: bytes ↔ list of electron events.

A frame is a stream of bits, lowest first. Each code of `skip` bits says how many pixels to step over; below its maximum it is
followed by an electron and its sub-pixel position (`x` and `y` bits), at the maximum by the next code. The 8-bit code exists in two
forms: RELION reads fixed words of 12 bits, unused position bits after the maximum included, other programs leave these out.
Which one a frame is in shows by where its stream ends. Format: https://github.com/fei-company/EerReaderLib.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EerCodec:
    """Bits of a code: `skip`, and `x` and `y` of the sub-pixel position; `fixed`: position bits follow every code."""

    skip: int
    x: int = 2
    y: int = 2
    fixed: bool = False

    @property
    def event_bits(self) -> int:
        """Bits of an electron with its skip code."""
        return self.skip + self.x + self.y

    @property
    def longest(self) -> int:
        """The skip code that is followed by no electron."""
        return (1 << self.skip) - 1


COMPRESSION_8BIT, COMPRESSION_7BIT, COMPRESSION_VARIABLE = 65000, 65001, 65002
CODECS = {COMPRESSION_8BIT: EerCodec(8, fixed=True), COMPRESSION_7BIT: EerCodec(7)}


def decode_events(data: bytes, pixels: int, codec: EerCodec) -> tuple[np.ndarray, np.ndarray]:
    """Electrons of one frame: pixel index int64 [n] (row-major, ascending) and the raw sub-pixel bits uint8 [n].

    Raises ValueError for a stream that ends before the frame's last pixel.
    """
    if codec.fixed and (found := _decode_fixed(data, pixels, codec)) is not None:
        return found
    # Zeros behind the end complete the last code, which steps past the last pixel and has no electron.
    padded = np.frombuffer(data + bytes(8), np.uint8)
    bits = 8 * len(data) + codec.event_bits
    long_codes = _long_codes(padded, bits, codec)
    run_starts = np.concatenate([[0], long_codes + codec.skip])
    run_ends = np.concatenate([long_codes, [bits]])
    counts = (run_ends - run_starts) // codec.event_bits
    run = np.repeat(np.arange(len(counts)), counts)
    ordinal = np.arange(len(run))
    at = run_starts[run] + codec.event_bits * (ordinal - np.repeat(np.cumsum(counts) - counts, counts))
    words = _words(padded, at)
    position = np.cumsum(words & codec.longest) + ordinal + codec.longest * run
    stepped = (position[-1] + 1 if len(position) else 0) + codec.longest * (len(long_codes) - (run[-1] if len(run) else 0))
    if stepped < pixels:
        raise ValueError(f"the stream covers {stepped} of {pixels} pixels")
    inside = int(np.searchsorted(position, pixels))
    sub = (words >> codec.skip) & ((1 << (codec.x + codec.y)) - 1)
    return position[:inside], sub[:inside].astype(np.uint8)


def encode_events(position: np.ndarray, sub: np.ndarray, pixels: int, codec: EerCodec) -> bytes:
    """The stream for electrons at ascending, distinct pixel indices with raw sub-pixel bits; the inverse of `decode_events`."""
    gaps = np.diff(np.concatenate([[-1], position, [pixels]])) - 1
    long_codes = gaps // codec.longest
    electrons = np.concatenate([np.ones(len(position), bool), [False]])
    lengths = (codec.event_bits if codec.fixed else codec.skip) * long_codes + np.where(electrons, codec.event_bits, codec.skip)
    ends = np.cumsum(lengths)
    bits = np.ones(int(ends[-1]), np.uint8)
    words = (gaps % codec.longest) | (np.concatenate([sub, [0]]).astype(np.int64) << codec.skip)
    for bit in range(codec.event_bits):
        has_bit = electrons | (bit < codec.skip)
        first = ends - np.where(electrons, codec.event_bits, codec.skip)
        bits[(first + bit)[has_bit]] = (words >> bit)[has_bit] & 1
    # Readers take the stream in words of 4 bytes.
    bits = np.pad(bits, (0, -len(bits) % 32))
    return np.packbits(bits, bitorder="little").tobytes()


def _decode_fixed(data: bytes, pixels: int, codec: EerCodec) -> tuple[np.ndarray, np.ndarray] | None:
    """Electrons of a stream of fixed words, or None when it does not end exactly at the frame's last pixel and the data's end."""
    words = _words(np.frombuffer(data + bytes(8), np.uint8), np.arange(0, 8 * len(data), codec.event_bits))
    skip = words & codec.longest
    electron = skip < codec.longest
    position = np.cumsum(skip + electron) - electron
    end = int(np.searchsorted(position, pixels))
    if end == len(words) or position[end] != pixels or (len(words) - end) * codec.event_bits > 128:
        return None
    sub = (words >> codec.skip) & ((1 << (codec.x + codec.y)) - 1)
    return position[:end][electron[:end]], sub[:end][electron[:end]].astype(np.uint8)


def _words(padded: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The 16 or more bits that start at each bit offset, as int64."""
    byte = at >> 3
    word = padded[byte].astype(np.int64) | padded[byte + 1].astype(np.int64) << 8 | padded[byte + 2].astype(np.int64) << 16
    return word >> (at & 7)


def _long_codes(padded: np.ndarray, bits: int, codec: EerCodec) -> np.ndarray:
    """Bit offsets of the codes without an electron, int64.

    A run of `skip` ones anywhere is a candidate. From one code to the next electrons come in steps of `event_bits`, so its successor
    is the first candidate behind it in the same residue class: all successors are found at once, and the chain from offset 0 is walked.
    """
    ones = np.unpackbits(padded, bitorder="little")[: bits + codec.skip]
    run = ones[:bits].copy()
    for shift in range(1, codec.skip):
        run &= ones[shift : bits + shift]
    candidates = np.flatnonzero(run)
    step = codec.event_bits
    span = bits + codec.skip + step
    by_residue = np.argsort((candidates % step).astype(np.uint8), kind="stable")
    keys = (candidates % step)[by_residue] * span + candidates[by_residue]
    after = np.concatenate([[0], candidates + codec.skip])
    found = np.searchsorted(keys, after % step * span + after)
    inside = found < len(keys)
    following = np.full(len(after), -1)
    following[inside] = by_residue[found[inside]]
    same_class = following >= 0
    same_class[same_class] = candidates[following[same_class]] % step == after[same_class] % step
    chain = np.where(same_class, following, -1).tolist()
    walked, here = [], chain[0]
    while here >= 0:
        walked.append(here)
        here = chain[here + 1]
    return candidates[walked] if walked else np.empty(0, np.int64)
