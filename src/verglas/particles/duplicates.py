"""Particles that were picked more than once."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from verglas.particles.tables import ParticleSet


def positions_angstrom(particles: ParticleSet) -> np.ndarray:
    """Centres of the particles in their micrographs after alignment, Å, float64 [particles, 2] (x, y).

    A particle sits at its coordinate minus its origin (RELION's sign of `rlnOriginXAngst`).
    """
    column = "micrograph_pixel_size" if "micrograph_pixel_size" in particles.optics.table else "movie_pixel_size"
    picked = np.stack([particles.column(f"coordinate_{axis}").astype(np.float64) for axis in "xy"], axis=1)
    return picked * particles.optics_value(column)[:, None] - particles.origins()


def keep_one_of_duplicates(particles: ParticleSet, distance: float) -> np.ndarray:
    """Mask [particles] of those to keep so that no two of a micrograph are closer than `distance` Å.

    Of two neighbours the one with the larger `max_probability` stays (then the larger `pick_score`, then the first).
    """
    quality = np.lexsort(
        (
            np.arange(len(particles)),
            -particles.column("pick_score", 0.0).astype(np.float64),
            -particles.column("max_probability", 0.0).astype(np.float64),
        )
    )
    rank = np.empty(len(particles), np.int64)
    rank[quality] = np.arange(len(particles))
    keep = np.ones(len(particles), bool)
    where = positions_angstrom(particles)
    names = particles.column("micrograph_name").astype(str)
    order = np.argsort(names, kind="stable")
    for rows in np.split(order, np.flatnonzero(names[order][1:] != names[order][:-1]) + 1):
        pairs = cKDTree(where[rows]).query_pairs(distance, output_type="ndarray")
        # From the best down: a particle goes only if a better one that itself stays is too close.
        worse, better = _by_rank(rows[pairs], rank)
        for row, neighbour in zip(worse, better):
            keep[row] &= not keep[neighbour]
    return keep


def _by_rank(pairs: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(worse, better) of each pair, in the order in which they must be decided."""
    swapped = rank[pairs[:, 0]] < rank[pairs[:, 1]]
    worse, better = np.where(swapped, pairs[:, 1], pairs[:, 0]), np.where(swapped, pairs[:, 0], pairs[:, 1])
    order = np.argsort(rank[worse], kind="stable")
    return worse[order], better[order]
