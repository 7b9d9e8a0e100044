"""A reference from nothing: the mean radial profile of what the Laplacian of Gaussian finds, refined by picking with it.

A blob detector is blind to what the particles look like (a hollow shell answers at its rim as well as at its centre). The circular
average of its finds has their profile, fringes included, and no feature that could be picked into noise beyond a profile.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from verglas.errors import InputError
from verglas.micrograph.pick_candidates import Candidates, find_candidates, template_candidates
from verglas.micrograph.pick_log import log_diameters, log_score
from verglas.micrograph.pick_prepare import Coarse
from verglas.micrograph.pick_templates import TemplateBank, template_bank
from verglas.micrograph.pick_threshold import find_cut

_ROUNDS = 3
_FEWEST_SEEDS = 30
_SEED_SHARE = 0.25
_CLEAR = 2.5  # separation of the two populations below which the cut is not trusted for seeds
_MASK = 1.5  # templates see the particle and the ice around it


def blob_diameter(diam_min: float, diam_max: float) -> float:
    """Diameter in Å of the circle that a blob is compared in."""
    return _MASK * 0.5 * (diam_min + diam_max)


def log_candidates(coarse: Coarse, diam_min: float, diam_max: float, min_distance: float, margin: float) -> Candidates:
    """Peaks of the Laplacian of Gaussian; score in deviations. Å throughout."""
    score = log_score(coarse, log_diameters(diam_min, diam_max))
    return find_candidates(coarse, score, 0.5 * (diam_min + diam_max), min_distance, margin)


def blob_reference(micrographs: Sequence[Coarse], diam_min: float, diam_max: float, min_distance: float, low_pass: float) -> torch.Tensor:
    """Radial average [n, n], bright, of the particles of some micrographs of one pixel size, on their coarse pixels.

    Raises InputError where the micrographs hold nothing to average.
    """
    margin = 0.25 * diam_max
    found = [log_candidates(coarse, diam_min, diam_max, min_distance, margin) for coarse in micrographs]
    reference = torch.empty(0)
    for _ in range(_ROUNDS):
        reference = _radial_average(micrographs, _seeds(found), blob_diameter(diam_min, diam_max))
        bank = blob_bank(reference, micrographs[0].pixel_size, diam_min, diam_max, low_pass)
        found = [template_candidates(coarse, bank, min_distance, margin) for coarse in micrographs]
    return reference


def blob_bank(reference: torch.Tensor, pixel_size: float, diam_min: float, diam_max: float, low_pass: float) -> TemplateBank:
    """The template of a radial reference [n, n] of `pixel_size` Å: one image, no rotations."""
    diameter = blob_diameter(diam_min, diam_max)
    return template_bank(reference[None], pixel_size, pixel_size, diameter=diameter, low_pass=low_pass, psi_step=360)


def _seeds(found: Sequence[Candidates]) -> list[np.ndarray]:
    """Positions of the peaks to average: those above the cut; the best quarter where the cut tells little."""
    scores = np.concatenate([each.score for each in found])
    if not len(scores):
        raise InputError("AutoPick", "the micrographs have no place to pick from", "Check the diameters, and the micrographs' pixel size")
    cut = find_cut(scores)
    threshold = cut.threshold
    if cut.separation < _CLEAR or (scores > threshold).sum() < max(_FEWEST_SEEDS, 0.02 * len(scores)):
        threshold = np.quantile(scores, 1 - _SEED_SHARE)
    return [each.xy[each.score >= threshold] for each in found]


def _radial_average(micrographs: Sequence[Coarse], seeds: Sequence[np.ndarray], diameter: float) -> torch.Tensor:
    half = int(np.ceil(0.75 * diameter / micrographs[0].pixel_size)) + 1
    line = torch.arange(-half, half + 1, device=micrographs[0].values.device)
    radius = torch.hypot(line[:, None].float(), line[None, :].float())
    total, count = torch.zeros_like(radius), 0
    for coarse, xy in zip(micrographs, seeds, strict=True):
        height, width = coarse.values.shape
        x, y = np.rint(xy * [width / coarse.shape[1], height / coarse.shape[0]]).astype(np.int64).T
        whole = (x >= half) & (y >= half) & (x < width - half) & (y < height - half)
        rows = torch.from_numpy(y[whole]).to(line.device)[:, None, None] + line[:, None]
        columns = torch.from_numpy(x[whole]).to(line.device)[:, None, None] + line
        total -= coarse.values[rows, columns].sum(0)
        count += int(whole.sum())
    if count == 0:
        raise InputError("AutoPick", "no blob lies wholly inside a micrograph", "Check the diameters, and the micrographs' pixel size")
    ring = radius.round().long()
    sums = torch.zeros(int(ring.max()) + 1, device=line.device).index_add_(0, ring.flatten(), (total / count).flatten())
    return (sums / torch.bincount(ring.flatten()).clamp(min=1))[ring]
