"""How far a pose can be off before the data tell: RELION's expected angular and translational errors, at 99 %."""

from __future__ import annotations

import torch

from verglas.refine.assignments import Assignments
from verglas.refine.candidates import Candidates
from verglas.refine.grids import GivenPoses
from verglas.refine.model import Model
from verglas.refine.observations import Observations, shift_factors
from verglas.refine.score import power
from verglas.volume.rotations import axis_rotation
from verglas.volume.slices import Pixels

_TOLD_APART = 4.605  # difference of log-likelihoods: one in a hundred
_PARTICLES = 100
_ANGLES = torch.logspace(-0.7, 1.5, 12)  # 0.2 to 32 degrees
_SHIFTS = torch.logspace(-1.3, 1.0, 12)  # 0.05 to 10 pixels


def expected_errors(
    seen: Observations, rows: torch.Tensor, assignments: Assignments, model: Model, pixels: Pixels, padding: int = 2
) -> tuple[float, float]:
    """Rotation (degrees) and shift (Å) that lower the log-likelihood of a perfect image by 4.605, mean over about 100 particles.

    A spread of the particles `rows` is taken; each is turned about the three axes of its image, and moved along two.
    """
    rows = rows[torch.linspace(0, len(rows) - 1, min(_PARTICLES, len(rows))).long().to(rows.device)]
    batch = seen.batch(rows, assignments, model.sigma2, pixels)
    axes = torch.eye(3, dtype=torch.float64)
    turns = torch.stack([axis_rotation(axes, float(angle)) for angle in _ANGLES]).float().to(seen.device)
    if model.dims == 2:
        turns = turns[:, 2:]
    poses = assignments.matrices[rows]
    turned = (turns @ poses[:, None, None]).flatten(0, 2)
    best = _slices(model, assignments.classes[rows], poses, pixels, padding)
    classes = assignments.classes[rows].repeat_interleave(turns.shape[0] * turns.shape[1])
    moved = _slices(model, classes, turned, pixels, padding).view(len(rows), len(_ANGLES), -1, 2 * len(pixels))
    weight = batch.ctf.square()
    by_angle = 0.5 * torch.einsum("iajk,ik->ia", power(moved - best[:, None, None]), weight) / moved.shape[2]
    along = torch.stack([_SHIFTS, torch.zeros_like(_SHIFTS)], dim=1).to(seen.device)
    differences = torch.stack([(shift_factors(pixels, shifts) - 1).abs().square() for shifts in (along, along.flip(1))]).mean(0)
    by_shift = 0.5 * (power(best) * weight) @ differences.T
    rotation, shift = _crossing(by_angle.mean(0).cpu(), _ANGLES), _crossing(by_shift.mean(0).cpu(), _SHIFTS)
    return rotation, shift * seen.pixel_size


def _slices(model: Model, classes: torch.Tensor, matrices: torch.Tensor, pixels: Pixels, padding: int) -> torch.Tensor:
    order = torch.argsort(classes, stable=True)
    candidates = Candidates(model.references, GivenPoses(matrices.cpu()), int(pixels.shell.max()), padding)
    out = torch.empty(len(classes), 2 * len(pixels), device=matrices.device)
    out[order] = candidates.coarse(classes[order] * len(matrices) + order, pixels)
    return out


def _crossing(differences: torch.Tensor, steps: torch.Tensor) -> float:
    """The step at which the difference reaches what can be told apart; the largest step where it never does."""
    above = torch.nonzero(differences > _TOLD_APART)[:, 0]
    if not len(above):
        return float(steps[-1])
    i = int(above[0])
    if i == 0:
        return float(steps[0] * (_TOLD_APART / differences[0]).sqrt())
    low, high = differences[i - 1].clamp(min=1e-6).log(), differences[i].log()
    part = (torch.log(torch.tensor(_TOLD_APART)) - low) / (high - low)
    return float(torch.exp(steps[i - 1].log() + part * (steps[i] / steps[i - 1]).log()))
