"""Poses, classes and maps against the truth, in seconds at any size: of a sample of the particles, and of maps without empty frequencies.

Figures are named as in `comparison.measures`; shells are those of the set's box.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from comparison.scoring import EDGE, Scores, class_figures_2d, pose_figures_of
from verglas.particles import ParticleSet
from verglas.refine.state import State
from verglas.scores.classes import class_purity
from verglas.scores.maps import fsc_area, map_fsc_to_truth
from verglas.volume.fourier import fourier_crop
from verglas.volume.fsc import resolution_shell

SAMPLE = 20_000  # particles whose poses and classes are compared
RADIUS = 75.0  # Å, of the sphere in which maps are compared
_ALIGNED_TO = 10.0  # Å: finer detail tells no more about how maps lie on each other
_BEYOND = 1.3  # times the shell up to which images were compared: maps hold nothing beyond it


def score(state: State, maps: torch.Tensor, particles: ParticleSet, symmetry: str) -> Scores:
    """All figures of a job's state; `maps` [states, N, N, N], `particles` the true rows, `symmetry` that of the specimen."""
    rows = sampled(len(particles))
    true, own = particles.subset(rows), state.assignments
    label = own.classes.cpu().numpy()[rows]
    angles, origins = own.angles().cpu().numpy()[rows], own.origins.double().cpu().numpy()[rows]
    model = state.joined or state.models[0]
    if model.dims == 2:
        return class_figures_2d(label, angles[:, 2], origins, true, symmetry)
    states, figures = true.column("class_number").astype(np.int64), pose_figures_of(angles, origins, true, symmetry)
    compared = particles.optics.box_size * particles.optics.pixel_size / state.history[-1]["compared_to"]
    if model.classes == 1:
        density = torch.stack(state.unfiltered).sum(0) if state.unfiltered else model.references[0]
        return figures | map_figures(density, maps[np.bincount(states).argmax() - 1], particles.optics.pixel_size, compared)
    found = class_purity(label, states)
    figures |= {"purity": 100 * found.purity, "chance": 100 * found.chance}
    for column, number in enumerate(found.true.tolist()):
        density = model.references[int(found.found[found.confusion[:, column].argmax()])]
        of_state = map_figures(density, maps[number - 1], particles.optics.pixel_size, compared)
        figures |= {f"state{number}_{name}": value for name, value in of_state.items()}
    return figures


def sampled(count: int) -> np.ndarray:
    """Rows, in rising order, of the particles that are compared, of so many."""
    return np.sort(np.random.default_rng(0).permutation(count)[:SAMPLE])


def map_figures(density: torch.Tensor, true: torch.Tensor, pixel_size: float, compared: float) -> Scores:
    """A map against the true one [N, N, N], both cut in Fourier space at 1.3 times the shell `compared`, on the device of the true one.

    The map lies as the truth does but for a few degrees, or is its mirror image. The area counts the shells that are cut off as 0.
    """
    box = true.shape[-1]
    size = min(box, 2 * math.ceil(_BEYOND * compared))
    small, small_true = (fourier_crop(each.to(true).float(), size, 3) for each in (density, true))
    found = map_fsc_to_truth(
        small, small_true, pixel_size * box / size, radius=RADIUS, edge=EDGE, rotations=torch.eye(3)[None], align_to=_ALIGNED_TO
    )
    return {
        "truth_shell": found.shell,
        "truth_shell_143": resolution_shell(found.fsc, 0.143),
        "truth_resolution": found.resolution,
        "fsc_area": fsc_area(found.fsc) * (len(found.fsc) - 1) / (box // 2),
        "mirrored": float(found.mirrored),
    }
