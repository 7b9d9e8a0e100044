"""Picked positions against true ones, matched one to one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree


@dataclass(frozen=True)
class PickScore:
    """Counts of matched pairs, of picks and of true particles that took part, and the pairs' distances (in the unit given)."""

    matched: int
    picked: int
    true: int
    distances: np.ndarray

    @property
    def precision(self) -> float:
        """Share of the picks that are particles; 0 without picks."""
        return self.matched / self.picked if self.picked else 0.0

    @property
    def recall(self) -> float:
        """Share of the particles that were picked; 0 without particles."""
        return self.matched / self.true if self.true else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.matched / (self.picked + self.true) if self.picked + self.true else 0.0

    @property
    def centre_error(self) -> float:
        """Rms distance of the matched pairs; NaN without any."""
        return float(np.sqrt((self.distances**2).mean())) if self.matched else float("nan")


def match_picks(
    found: np.ndarray, true: np.ndarray, distance: float, field: tuple[float, float] | None = None, edge: float = 0.0
) -> PickScore:
    """Match picks to particles, (x, y) [n, 2] in one unit, as many pairs as can be within `distance`, then as near as can be.

    With `field` (width, height), what lies within `edge` of the border counts neither for nor against: a true particle there
    may still be matched, but a pair counts only when its true position is inside, and an unmatched pick only when it is.
    """
    found, true = _points(found), _points(true)
    rows, columns, distances = _assign(found, true, distance)
    inner_found, inner_true = _inside(found, field, edge), _inside(true, field, edge)
    counted = inner_true[columns]
    unmatched = np.ones(len(found), bool)
    unmatched[rows] = False
    matched = int(counted.sum())
    return PickScore(matched, matched + int((unmatched & inner_found).sum()), int(inner_true.sum()), distances[counted])


def total_score(scores: list[PickScore]) -> PickScore:
    """Counts over several micrographs together."""
    distances = np.concatenate([score.distances for score in scores]) if scores else np.zeros(0)
    return PickScore(
        sum(score.matched for score in scores), sum(score.picked for score in scores), sum(score.true for score in scores), distances
    )


def _assign(found: np.ndarray, true: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Largest one-to-one matching within `distance`, of least total distance: indices of both, and distances.

    Solved for each group of points that are linked, so that a crowded micrograph costs no cube of its size.
    """
    empty = np.zeros(0, np.int64)
    if not len(found) or not len(true):
        return empty, empty, np.zeros(0)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    near = cKDTree(found).sparse_distance_matrix(cKDTree(true), distance, output_type="coo_matrix")
    size = len(found) + len(true)
    graph = coo_array((np.ones(near.nnz), (near.row, near.col + len(found))), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    rows, columns, distances = [empty], [empty], [np.zeros(0)]
    for group in np.unique(label[near.row]):
        picks, particles = np.flatnonzero(label[: len(found)] == group), np.flatnonzero(label[len(found) :] == group)
        apart = np.linalg.norm(found[picks][:, None] - true[particles][None], axis=2)
        # a pair that is too far apart costs more than all near ones together
        cost = np.where(apart <= distance, apart, (1 + distance) * (1 + len(picks) + len(particles)))
        i, j = linear_sum_assignment(cost)
        keep = apart[i, j] <= distance
        rows.append(picks[i[keep]])
        columns.append(particles[j[keep]])
        distances.append(apart[i, j][keep])
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(distances)


def _points(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64).reshape(-1, 2)


def _inside(points: np.ndarray, field: tuple[float, float] | None, edge: float) -> np.ndarray:
    if field is None:
        return np.ones(len(points), bool)
    size = np.array(field)
    return np.all((points >= edge) & (points <= size - 1 - edge), axis=1)
