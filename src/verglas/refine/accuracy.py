"""How far a pose can be off before the data tell: RELION's expected angular and translational errors, at 99 %."""

from __future__ import annotations

import torch

from verglas.refine.assignments import Assignments
from verglas.refine.model import Model
from verglas.refine.observations import Observations, shift_factors
from verglas.refine.score import power, reals
from verglas.volume.rotations import axis_rotation
from verglas.volume.slices import Pixels, Projector

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
    weight = seen.batch(rows, assignments, model.sigma2, pixels).ctf.square()
    poses, classes = assignments.matrices[rows], assignments.classes[rows]
    projector = Projector(model.references, int(pixels.shell.max()), padding)
    best = reals(projector.project(poses, pixels, classes))
    axes = torch.eye(3, dtype=torch.float64)[2 if model.dims == 2 else 0 :]
    by_angle = torch.zeros(len(_ANGLES), device=seen.device)
    for step, angle in enumerate(_ANGLES):
        for turn in axis_rotation(axes, float(angle)).float().to(seen.device):
            moved = reals(projector.project(turn @ poses, pixels, classes))
            by_angle[step] += 0.5 * (power(moved - best) * weight).sum(1).mean() / len(axes)
    along = torch.stack([_SHIFTS, torch.zeros_like(_SHIFTS)], dim=1).to(seen.device)
    differences = torch.stack([(shift_factors(pixels, shifts) - 1).abs().square() for shifts in (along, along.flip(1))]).mean(0)
    by_shift = 0.5 * (power(best) * weight) @ differences.T
    rotation, shift = _crossing(by_angle.cpu(), _ANGLES), _crossing(by_shift.mean(0).cpu(), _SHIFTS)
    return rotation, shift * seen.pixel_size


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
