"""From scores to weights: the normaliser as a pair, and the few candidates that hold nearly all of the weight."""

from __future__ import annotations

from typing import NamedTuple

import torch

from verglas.compute.kernels import card_kernels, compiled_for
from verglas.refine import posterior_native
from verglas.volume.fourier import sum_by

_ON_CARDS = "verglas.refine.posterior_triton"
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


class Likely(NamedTuple):
    """Candidates that may hold weight, sorted by image and place: image, place int64 and score float32 [m]; each image's largest [b]."""

    image: torch.Tensor
    place: torch.Tensor
    score: torch.Tensor
    largest: torch.Tensor


class PoseTerms(NamedTuple):
    """What the scores of images with slices at shifts are made of.

    products [b, t, r]; energy [b, r]; log priors of shifts [b, t] and of slices [r]; the slices' classes int64 [r]; bound int64 [b]: the
    one class of an image, −1 for any.
    """

    products: torch.Tensor
    energy: torch.Tensor
    log_shift: torch.Tensor
    log_slice: torch.Tensor
    classes: torch.Tensor
    bound: torch.Tensor | None = None


def likely(scores: torch.Tensor) -> Likely:
    """Candidates of each image that are not negligible; scores [b, m], −inf where there is none."""
    largest = scores.amax(dim=1)
    image, place = torch.nonzero(scores > (largest - _NEGLIGIBLE)[:, None], as_tuple=True)
    return Likely(image, place, scores[image, place], largest)


def likely_poses(terms: PoseTerms) -> Likely:
    """`likely` of `pose_scores`."""
    kernels = card_kernels(terms.products, _ON_CARDS)
    if kernels is not None:
        return Likely(*kernels.likely_poses(*terms, _NEGLIGIBLE))
    return likely(pose_scores(terms))


def pose_scores(terms: PoseTerms) -> torch.Tensor:
    """Scores [b, t · r] products − energy + log_shift + log_slice, in the memory of the products."""
    scores = terms.products.sub_(terms.energy[:, None]).add_(terms.log_shift[:, :, None]).add_(terms.log_slice)
    return within_class(scores, terms.classes, terms.bound).flatten(1)


def within_class(scores: torch.Tensor, classes: torch.Tensor, bound: torch.Tensor | None) -> torch.Tensor:
    """The scores [b, t, r], in place, with −inf at slices whose class (of `classes` [r]) is not the one that an image is `bound` to."""
    if bound is not None:
        scores.masked_fill_(((bound >= 0)[:, None] & (bound[:, None] != classes))[:, None, :], -torch.inf)
    return scores


def keep_weight(found: Likely, fraction: float, at_most: int) -> tuple[Kept, Normaliser]:
    """The smallest set of candidates of each image that holds `fraction` of its weight.

    Where the weight is spread over more than `at_most` candidates (nothing is told apart yet), only the best ones are kept.

    Equal candidates are taken in the order of their places, so the result does not depend on the machine's sort.
    """
    image, place, score, largest = found
    weight = torch.exp(score - largest[image])
    total = sum_by(image, weight, len(largest))
    # whatever is below an even share of the part that may be lost is lost in any case
    counts = torch.bincount(image, minlength=len(largest))
    floor = total * (1 - fraction) / counts
    enough = weight > floor[image]
    image, place, weight = image[enough], place[enough], weight[enough] / total[image[enough]]
    # by image and, in it, by falling weight in one sort: positive floats are in the order of their bits
    falling = torch.iinfo(torch.int32).max - weight.view(torch.int32).long()
    order = torch.argsort((image << 32) + falling, stable=True)
    image, place, weight = image[order], place[order], weight[order]
    before, number = _sum_before(image, weight, len(largest))
    keep = (before < fraction) & (number < at_most)
    image, place, weight = image[keep], place[keep], weight[keep]
    share = sum_by(image, weight, len(largest))
    return Kept(image, place, weight / share[image]), Normaliser(largest, torch.log(total))


def weigh(scores: torch.Tensor, fraction: float, at_most: int) -> tuple[Kept, Normaliser]:
    """`keep_weight` of what is `likely`; scores [b, m], −inf where there is none."""
    native = compiled_for(scores, posterior_native)
    if native is None:
        return keep_weight(likely(scores), fraction, at_most)
    image, place, weight, largest, log_sum = native.weigh(scores, fraction, at_most, _NEGLIGIBLE)
    return Kept(image, place, weight), Normaliser(largest, log_sum)


def weigh_poses(terms: PoseTerms, fraction: float, at_most: int) -> Kept:
    """What `weigh` keeps of `pose_scores`; on a card without writing the scores, from the list of the likely."""
    if terms.products.is_cuda:
        return keep_weight(likely_poses(terms), fraction, at_most)[0]
    return weigh(pose_scores(terms), fraction, at_most)[0]


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
