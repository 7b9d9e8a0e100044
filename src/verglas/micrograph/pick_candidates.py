"""Peaks that may be particles: one micrograph's list, before it is decided where noise ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from verglas.micrograph.peaks import inside, keep_separate, local_maxima, refine_peaks
from verglas.micrograph.pick_prepare import Coarse, disc, sums_within
from verglas.micrograph.pick_templates import Match, TemplateBank, match_templates


@dataclass(frozen=True)
class Candidates:
    """Peaks of one micrograph, best first.

    xy: float64 [n, 2], pixels of the micrograph. score: float64 [n]. class_number: int64 [n], from 1. psi: degrees [n].
    noise_deviation: deviation of the pixels around the particle over the micrograph's usual one [n]; noise_mean: their mean, in
    deviations of the micrograph's pixels [n].
    """

    xy: np.ndarray
    score: np.ndarray
    class_number: np.ndarray
    psi: np.ndarray
    noise_deviation: np.ndarray
    noise_mean: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def subset(self, keep: np.ndarray) -> Candidates:
        """Those of a mask [n] or index array."""
        return Candidates(*(values[keep] for values in vars(self).values()))


def find_candidates(coarse: Coarse, score: torch.Tensor, diameter: float, min_distance: float, margin: float) -> Candidates:
    """Peaks of `score` [y, x] on the usable pixels, at least `min_distance` Å apart and `margin` Å from the edges.

    `diameter` of the particle in Å tells where its surroundings begin. Class 1 and psi 0 are set for all.
    """
    score = torch.where(coarse.usable & torch.isfinite(score), score, -torch.inf)
    reach = max(1, int(0.35 * min_distance / coarse.pixel_size))
    rows, columns = local_maxima(score, -torch.inf, reach)
    xy = coarse.to_fine(refine_peaks(score, rows, columns)).double().cpu().numpy()
    values = score[rows, columns].double().cpu().numpy()
    fine_pixel = coarse.pixel_size * coarse.values.shape[1] / coarse.shape[1]
    within = np.flatnonzero(inside(xy, coarse.shape, margin / fine_pixel))
    kept = within[keep_separate(xy[within], values[within], min_distance / fine_pixel)]
    at = torch.from_numpy(kept).to(rows.device)
    deviation, mean = surroundings(coarse, diameter)
    n = len(kept)
    return Candidates(
        xy[kept],
        values[kept],
        np.ones(n, np.int64),
        np.zeros(n),
        deviation[rows[at], columns[at]].double().cpu().numpy(),
        mean[rows[at], columns[at]].double().cpu().numpy(),
    )


def template_candidates(
    coarse: Coarse, bank: TemplateBank, min_distance: float, margin: float, ctf: dict[str, float] | None = None
) -> Candidates:
    """Peaks of the best template's correlation, with that template's class number and psi. Arguments as in `find_candidates`."""
    match = match_templates(coarse, bank, ctf)
    found = find_candidates(coarse, match.score, bank.diameter, min_distance, margin)
    return _with_templates(found, coarse, match, bank)


def surroundings(coarse: Coarse, diameter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Deviation (over its median) and mean of the ring from 1/2 to 1 diameter (Å) around each pixel, [y, x] each."""
    outer = disc(diameter / coarse.pixel_size, coarse.values.device)
    inner = disc(0.5 * diameter / coarse.pixel_size, coarse.values.device)
    gap = (outer.shape[0] - inner.shape[0]) // 2
    ring = outer - torch.nn.functional.pad(inner, (gap, gap, gap, gap))
    here = coarse.usable.float()
    count, total, square = sums_within(torch.stack([here, coarse.values, coarse.values**2]), ring)
    mean = total / count.clamp(min=1)
    deviation = (square / count.clamp(min=1) - mean * mean).clamp(min=0).sqrt()
    return deviation / deviation.median().clamp(min=1e-6), mean


def _with_templates(found: Candidates, coarse: Coarse, match: Match, bank: TemplateBank) -> Candidates:
    height, width = coarse.values.shape
    scale = np.array([width / coarse.shape[1], height / coarse.shape[0]])
    pixel = torch.from_numpy(np.rint(found.xy * scale).astype(np.int64))
    best = match.template.cpu()[pixel[:, 1].clamp(0, height - 1), pixel[:, 0].clamp(0, width - 1)]
    return Candidates(
        found.xy, found.score, bank.class_number[best].numpy(), bank.psi[best].numpy(), found.noise_deviation, found.noise_mean
    )
