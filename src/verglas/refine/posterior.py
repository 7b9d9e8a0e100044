"""From scores to weights: the normaliser as a pair, and the few candidates that hold nearly all of the weight."""

from __future__ import annotations

from typing import NamedTuple

import torch

from verglas.volume.fourier import sum_by

_NEGLIGIBLE = 25.0  # candidates this far below the best hold less than 1e-4 of the weight, even a million of them
_STEPS = 2.0**48  # of an image's weight: those of thirty thousand images add up in 64 bits


class Kept(NamedTuple):
    """Candidates that are kept, sorted by image and, within it, by falling weight; [m] each.

    image: row of the scores; place: candidate's place in the row; weight: share of the weight, float32, 1 in sum for each image.
    """

    image: torch.Tensor
    place: torch.Tensor
    weight: torch.Tensor


class Normaliser(NamedTuple):
    """Logarithm of Σ exp(score) as a float32 pair [b]: the largest score, and the logarithm of the sum of exp(score − largest)."""

    largest: torch.Tensor
    log_sum: torch.Tensor


def keep_weight(scores: torch.Tensor, fraction: float, at_most: int) -> tuple[Kept, Normaliser]:
    """The smallest set of candidates of each image that holds `fraction` of its weight; scores [b, m], −inf where there is none.

    Where the weight is spread over more than `at_most` candidates (nothing is told apart yet), only the best ones are kept.

    Equal candidates are taken in the order of their places, so the result does not depend on the machine's sort.
    """
    largest = scores.amax(dim=1)
    cut = largest - _NEGLIGIBLE
    image, place = torch.nonzero(scores > cut[:, None], as_tuple=True)
    weight = torch.exp(scores[image, place] - largest[image])
    total = sum_by(image, weight, len(scores))
    # whatever is below an even share of the part that may be lost is lost in any case
    counts = torch.bincount(image, minlength=len(scores))
    floor = total * (1 - fraction) / counts
    enough = weight > floor[image]
    image, place, weight = image[enough], place[enough], weight[enough] / total[image[enough]]
    order = torch.argsort(weight, descending=True, stable=True)
    order = order[torch.argsort(image[order], stable=True)]
    image, place, weight = image[order], place[order], weight[order]
    before, number = _sum_before(image, weight, len(scores))
    keep = (before < fraction) & (number < at_most)
    image, place, weight = image[keep], place[keep], weight[keep]
    share = sum_by(image, weight, len(scores))
    return Kept(image, place, weight / share[image]), Normaliser(largest, torch.log(total))


def winner(scores: torch.Tensor) -> tuple[Kept, Normaliser]:
    """The best candidate alone, with all of the weight."""
    largest, place = scores.max(dim=1)
    image = torch.arange(len(scores), device=scores.device)
    return Kept(image, place, torch.ones_like(largest)), Normaliser(largest, torch.zeros_like(largest))


def _sum_before(image: torch.Tensor, weight: torch.Tensor, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each candidate the weight and the number of those before it in its image; the list is sorted by image."""
    counts = torch.bincount(image, minlength=images)
    first = torch.cumsum(counts, 0) - counts
    steps = (weight.double() * _STEPS).round().long()  # a card adds floats of one long list in any order
    running = torch.cumsum(steps, 0) - steps
    start = first[image]
    return (running - running[start]).double() / _STEPS, torch.arange(len(image), device=image.device) - start
