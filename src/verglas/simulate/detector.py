"""A counting detector: MTF, gain, defects, and Poisson counts from a table (ten times faster than a general generator)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

LEVELS = 512  # rates in the table of Poisson quantiles
DRAWS = 65536
EER_FRAMES = 32  # internal frames of an EER movie for each frame: a pixel counts at most one electron in each
HOT_RATE = 25.0  # counts a frame of a hot pixel


@dataclass(frozen=True)
class Detector:
    """Gain (multiplies raw counts; 0 marks dead pixels), float32 [y, x], and the hot pixels as flat indices."""

    gain: np.ndarray
    hot: np.ndarray

    @property
    def dead(self) -> np.ndarray:
        """Flat indices of dead pixels."""
        return np.flatnonzero(self.gain == 0)


def draw_detector(shape: tuple[int, int], spread: float, hot: int, dead: int, random: np.random.Generator) -> Detector:
    """A detector whose gain differs by columns, by a slow gradient and by pixel, with mean 1 and deviation `spread`."""
    columns = random.normal(size=(1, shape[1])) * 0.5
    slope = np.linspace(-1, 1, shape[0])[:, None] * random.normal() + np.linspace(-1, 1, shape[1]) * random.normal()
    pattern = columns + 0.5 * slope + random.normal(size=shape) * 0.6
    gain = (1 + spread * (pattern - pattern.mean()) / pattern.std()).astype(np.float32)
    gain = np.clip(gain, 1 - 4 * spread, 1 + 4 * spread)
    defects = random.choice(gain.size, size=hot + dead, replace=False)
    gain.flat[defects[hot:]] = 0
    return Detector(gain, np.sort(defects[:hot]))


def mtf(frequency: torch.Tensor, at_nyquist: float) -> torch.Tensor:
    """Modulation transfer at `frequency` in cycles a pixel: a Gaussian that is 1 at 0 and `at_nyquist` at 0.5."""
    return torch.exp(4 * frequency**2 * float(np.log(at_nyquist)))


class PoissonTable:
    """Poisson counts of rates within a known range, from a table of quantiles at 512 rates.

    A rate between two of the table's is rounded to one of them at random, so that the mean is kept; counts are exact to
    a probability of 2⁻¹⁶.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.step = low, (high - low) / (LEVELS - 2)
        top = int(high + 8 * np.sqrt(high) + 8)
        self._table = np.empty((LEVELS, DRAWS), np.uint8)
        counts = np.arange(top + 1, dtype=np.uint8)
        for level in range(LEVELS):
            rate = low + level * self.step
            log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, top + 1)))])
            cumulative = np.cumsum(np.exp(np.arange(top + 1) * np.log(rate) - rate - log_factorial))
            edges = np.minimum(np.rint(DRAWS * cumulative), DRAWS).astype(np.int64)
            edges[-1] = DRAWS
            self._table[level] = np.repeat(counts, np.diff(edges, prepend=0))

    def draw(self, rate: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Counts uint8 of the shape of `rate` (float32); rates outside the range are taken at its ends."""
        bits = random.integers(0, 1 << 32, size=rate.shape, dtype=np.uint32)
        level = (rate - np.float32(self.low)) * np.float32(1 / self.step)
        level += (bits & 0xFFFF).astype(np.float32) * np.float32(1 / DRAWS)
        np.clip(level, 0, LEVELS - 1, out=level)
        return self._table.reshape(-1).take((level.astype(np.uint32) << np.uint32(16)) + (bits >> np.uint32(16)))


def electron_events(frame: np.ndarray, random: np.random.Generator) -> Iterator[np.ndarray]:
    """A frame of counts as 32 internal frames of zeros and ones that sum to it (to at most 32 a pixel), uint8 [y, x] each."""
    pixel = np.repeat(np.arange(frame.size), np.minimum(frame.ravel(), EER_FRAMES))
    first = np.concatenate([[True], pixel[1:] != pixel[:-1]])
    ordinal = np.arange(len(pixel)) - np.maximum.accumulate(np.where(first, np.arange(len(pixel)), 0))
    start = random.integers(0, EER_FRAMES, frame.size)
    slot = (start[pixel] + random.permutation(EER_FRAMES)[ordinal]) % EER_FRAMES
    for part in range(EER_FRAMES):
        events = np.zeros(frame.size, np.uint8)
        events[pixel[slot == part]] = 1
        yield events.reshape(frame.shape)
