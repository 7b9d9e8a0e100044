"""Where to cut a list of peak scores into noise and particles, without a person to look.

The peaks of all micrographs are taken together: a mixture of two normal distributions is fitted (EM, started from Otsu's split,
IEEE Trans. Syst. Man Cybern. 9 (1979) 62). The cut lies where a peak is as likely of either kind, or in the valley between the two
where that is lower. It is never inside the noise: without a second population only what stands out is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

_NOISE_LIMIT = 2.5  # deviations of the noise peaks above their median, the lowest cut
_APART = 2.0  # Ashman's D from which there are two populations
_SMOOTH = 0.5  # of the narrower population's deviation
_FLAT = 1.3  # what still is the valley's floor
_FEW = 0.03  # share of the peaks below which a population is suspected to be dirt
_CLEAR = 3.0  # separation of two populations that leaves no doubt
_FEWEST = 20  # scores that a mixture can be fitted to
_ITERATIONS = 200


@dataclass(frozen=True)
class Cut:
    """The threshold, mean and deviation of the noise's and of the particles' scores, and the share of particles among the peaks."""

    threshold: float
    noise: tuple[float, float]
    particles: tuple[float, float]
    share: float

    @property
    def separation(self) -> float:
        """Distance of the two means in units of their root mean square deviation (Ashman's D; above 2 the populations are apart)."""
        spread = np.hypot(self.noise[1], self.particles[1]) / np.sqrt(2)
        return float((self.particles[0] - self.noise[0]) / max(spread, 1e-12))


def find_cut(scores: np.ndarray) -> Cut:
    """The cut of peak scores [n] of all micrographs. With fewer than 20 scores all are kept."""
    scores = np.sort(np.asarray(scores, np.float64))
    if len(scores) < _FEWEST:
        return Cut(-float(np.inf), (0.0, 1.0), (0.0, 1.0), 1.0)
    scores = np.clip(scores, *np.quantile(scores, [0.002, 0.998]))
    cut = _cut(scores)
    if cut.share < _FEW:
        # a few very high scores (dirt that was not masked) can pass for the second population: look below them
        below = _cut(scores[scores < cut.threshold])
        cut = below if below.separation > _CLEAR and below.share > _FEW else cut
    return cut


def _cut(scores: np.ndarray) -> Cut:
    mean, spread, share = _fit(scores, _otsu(scores))
    cut = Cut(_equal_odds(mean, spread, share), (float(mean[0]), float(spread[0])), (float(mean[1]), float(spread[1])), share)
    if cut.separation < _APART:
        return replace(cut, threshold=max(cut.threshold, _above(scores)))
    # particles of less contrast trail off downwards and widen the fit of the noise: the valley knows better than the tails
    lowest = _above(scores[scores < cut.threshold]) if (scores < cut.threshold).sum() >= _FEWEST else -np.inf
    return replace(cut, threshold=min(cut.threshold, max(_valley(scores, mean, spread), lowest)))


def _above(noise: np.ndarray) -> float:
    """A score that hardly any noise reaches, judged by the half below its median, where no particles are."""
    centre = np.median(noise)
    below = noise[noise <= centre]
    return float(centre + _NOISE_LIMIT * np.sqrt(((below - centre) ** 2).mean()))


def _valley(scores: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> float:
    """The middle of where the density of the scores, smoothed, is least between the two means."""
    line = np.linspace(mean[0], mean[1], 201)
    width = _SMOOTH * float(spread.min())
    density = np.exp(-0.5 * ((line[:, None] - scores) / width) ** 2).sum(axis=1)
    low = line[density <= _FLAT * density.min()]
    return float(0.5 * (low[0] + low[-1]))


def _otsu(scores: np.ndarray) -> int:
    """Number of scores (sorted) in the lower group of the split with the largest variance between groups."""
    count = np.arange(1, len(scores))
    total = np.cumsum(scores)[:-1]
    low, high = total / count, (scores.sum() - total) / (len(scores) - count)
    return int(count[np.argmax(count * (len(scores) - count) * (high - low) ** 2)])


def _fit(scores: np.ndarray, split: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Means [2], deviations [2] and the share of the upper of two normal distributions, by expectation and maximisation."""
    upper = (np.arange(len(scores)) >= split).astype(np.float64)
    floor = 0.02 * scores.std() + 1e-12
    mean = spread = np.zeros(2)
    share = 0.5
    for _ in range(_ITERATIONS):
        weights = np.stack([1 - upper, upper])
        total = weights.sum(axis=1) + 1e-9
        share = float(total[1] / len(scores))
        mean = weights @ scores / total
        spread = np.sqrt((weights * (scores - mean[:, None]) ** 2).sum(axis=1) / total).clip(min=floor)
        new = _odds(scores, mean, spread, share)
        # above both means it is a particle, below both it is not, whatever the wider distribution says of the tails
        new = np.where(scores > mean[1], np.maximum.accumulate(new), new)
        new = np.where(scores < mean[0], 0.0, new)
        if np.abs(new - upper).max() < 1e-4:
            break
        upper = new
    return mean, spread, share


def _odds(scores: np.ndarray, mean: np.ndarray, spread: np.ndarray, share: float) -> np.ndarray:
    """Probability that each score is of the upper population."""
    log = -0.5 * ((scores - mean[:, None]) / spread[:, None]) ** 2 - np.log(spread)[:, None]
    log += np.log(np.array([1 - share, share]).clip(1e-9))[:, None]
    return 1 / (1 + np.exp(np.clip(log[0] - log[1], -60, 60)))


def _equal_odds(mean: np.ndarray, spread: np.ndarray, share: float) -> float:
    """The score between the two means where both populations are as likely."""
    line = np.linspace(mean[0], mean[1], 1001)
    return float(line[np.argmax(_odds(line, mean, spread, share) >= 0.5)])
