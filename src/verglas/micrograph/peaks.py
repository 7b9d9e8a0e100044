"""Peaks of a score map, one a particle."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree


def local_maxima(score: torch.Tensor, lowest: float, reach: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of `score` [y, x] that are the maximum of the (2 reach + 1)² pixels around them and above `lowest`.

    -> (rows [n], columns [n]), int64, from the highest down. -inf marks pixels that cannot be peaks.
    """
    size = 2 * reach + 1
    highest = torch.nn.functional.max_pool2d(score[None, None], size, stride=1, padding=reach)[0, 0]
    rows, columns = torch.nonzero((score == highest) & (score > lowest), as_tuple=True)
    order = torch.argsort(score[rows, columns], descending=True, stable=True)
    return rows[order], columns[order]


def refine_peaks(score: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Positions [n, 2] (x, y) of peaks to a fraction of a pixel, by a parabola along each axis through the peak and its neighbours."""
    height, width = score.shape
    centre = score[rows, columns]

    def offset(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        curvature = before - 2 * centre + after
        step = 0.5 * (before - after) / curvature
        return torch.where(torch.isfinite(step) & (curvature < 0), step, 0.0).clamp(-0.5, 0.5)

    x = offset(score[rows, (columns - 1).clamp(min=0)], score[rows, (columns + 1).clamp(max=width - 1)])
    y = offset(score[(rows - 1).clamp(min=0), columns], score[(rows + 1).clamp(max=height - 1), columns])
    return torch.stack([columns + x, rows + y], dim=1)


def keep_separate(positions: np.ndarray, scores: np.ndarray, distance: float) -> np.ndarray:
    """Indices of the positions [n, 2] to keep so that no two are closer than `distance`, best scores first."""
    order = np.argsort(-scores, kind="stable")
    neighbours = cKDTree(positions).query_ball_point(positions, distance, return_sorted=False) if len(positions) else []
    open_ = np.ones(len(positions), bool)
    kept = []
    for index in order:
        if open_[index]:
            kept.append(index)
            open_[neighbours[index]] = False
    return np.asarray(kept, np.int64)


def inside(positions: np.ndarray, shape: tuple[int, int], margin: float) -> np.ndarray:
    """Mask of the positions [n, 2] (x, y) that lie at least `margin` px from every edge of an image of `shape` (y, x)."""
    height, width = shape
    x, y = positions[:, 0], positions[:, 1]
    return (x >= margin) & (y >= margin) & (x <= width - 1 - margin) & (y <= height - 1 - margin)
