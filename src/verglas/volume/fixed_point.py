"""Sums that are the same to the last bit in whatever order a card adds: numbers as whole multiples of a power of two, in 64 bits.

sums = FixedPoint(maps, voxels, device)
factors = sums.make_room(most_added(numerators, weights))  # then add round(factor · number) to `sums.counts`
sums.floats()
"""

from __future__ import annotations

import math

import torch

_MOST_BITS = 62  # of a sum without its sign
_FIRST_BITS = 50  # of what is added first: four thousand times as much fits before the steps have to grow
_GROWTH_BITS = 8  # by which they then grow beyond need
_OVERLAP = 8  # pixels of a slice that share in one grid point: they lie a grid step apart or more, in a plane through a cube of two steps
_LARGEST_EXPONENT = 100  # of a factor: float32 ends at 2¹²⁷


class FixedPoint:
    """Sums of `voxels` of `maps` maps: `counts` int64 [maps, voxels, 3], steps of the numerators' two parts and of the weight.

    A step is a power of two: at first so small that what is added first takes 50 bits, and larger when the sums come to 62.
    """

    def __init__(self, maps: int, voxels: int, device: torch.device | str) -> None:
        self.counts = torch.zeros(maps, voxels, 3, dtype=torch.int64, device=device)
        self._exponents: list[int | None] = [None, None]
        self._most = [0.0, 0.0]

    def make_room(self, most: tuple[float, float]) -> tuple[float, float]:
        """What numerators and weights are multiplied by before they are rounded and added, after which no sum passes 63 bits.

        most: that any voxel gains of each, see `most_added`. Raises ValueError where it is not a number.
        """
        for kind, gain in enumerate(most):
            if not math.isfinite(gain):
                raise ValueError("slices to be summed hold values that are not finite numbers")
            if gain > 0:
                self._most[kind] += gain
                self._fit(kind)
        first, second = (2.0 ** (exponent or 0) for exponent in self._exponents)
        return first, second

    def _fit(self, kind: int) -> None:
        exponent, size = self._exponents[kind], math.frexp(self._most[kind])[1]
        if exponent is None:
            self._exponents[kind] = max(-_LARGEST_EXPONENT, min(_LARGEST_EXPONENT, _FIRST_BITS - size))
        elif exponent + size > _MOST_BITS:
            shift = exponent + size - _MOST_BITS + _GROWTH_BITS
            counts = self.counts[..., 2:] if kind else self.counts[..., :2]
            if shift < _MOST_BITS:
                counts.add_(1 << (shift - 1)).bitwise_right_shift_(shift)
            else:
                counts.zero_()
            self._exponents[kind] = exponent - shift

    def floats(self) -> torch.Tensor:
        """The sums as float32 [maps, voxels, 3], each rounded once."""
        numerator, weight = (2.0 ** -(exponent or 0) for exponent in self._exponents)
        return self.counts * torch.tensor([numerator, numerator, weight], device=self.counts.device)


def most_added(numerators: torch.Tensor, weights: torch.Tensor | None) -> tuple[float, float]:
    """The most that slices [n, k] of complex numerators and real weights may add to any grid point, of each."""
    if not len(numerators):
        return 0.0, 0.0
    given = [values for values in (numerators, weights) if values is not None]
    largest = [torch.linalg.vector_norm(values, math.inf, dim=1).sum(dtype=torch.float64) for values in given]
    of_numerators, *of_weights = (_OVERLAP * torch.stack(largest)).tolist()
    return of_numerators, of_weights[0] if of_weights else 0.0


def exact_sums(place: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """Sums float64 [..., count] of the values float64 [..., n] of each `place` int64 [n].

    Each value is two integers of 62 − log₂ n bits, so that values 2⁻⁷⁴ of a row's largest still count where a row has 2²⁵.
    """
    if not len(place):
        return values.new_zeros(*values.shape[:-1], count)
    bits = _MOST_BITS - len(place).bit_length()
    largest = values.abs().amax(-1, keepdim=True)
    exponent = torch.frexp(largest).exponent.double().clamp_(min=-900)
    scaled = values * torch.exp2(bits - exponent)
    whole = scaled.round()
    parts = (each.long() for each in (whole, (scaled - whole).mul_(2.0**bits)))
    place = place.expand_as(values)
    high, low = (part.new_zeros(*values.shape[:-1], count).scatter_add_(-1, place, part).double() for part in parts)
    found = (high + low * 2.0**-bits) * torch.exp2(exponent - bits)
    return torch.where(largest.isfinite(), found, torch.nan)
