"""Where a map's symmetry axes are, when only the group is known: the map is compared with turned copies of itself."""

from __future__ import annotations

import math

import torch

from verglas.volume.align import Alignment, MapPair, all_rotations, nearby_rotations, unit_steps
from verglas.volume.masks import soft_sphere
from verglas.volume.resample import centre_of_density, shift_map
from verglas.volume.symmetry import symmetry_operators

_OPERATORS_AT_MOST, _CANDIDATES = 5, 8


def find_axes(density: torch.Tensor, group: str, *, radius: float, max_shell: int, coarse_shell: int = 8) -> Alignment:
    """The turn and shift that bring a map [N, N, N] of symmetry `group`, lying anyhow, into RELION's setting of it.

    A rotation R is scored by the mean correlation of the map with its copies turned by Rᵀ g R, each at its own best shift, for up to
    5 operators g; where the axes meet follows from those shifts. `radius` px of the sphere looked through; shells up to `max_shell`.
    The alignment's `correlation` is that score at `max_shell`; it says how well the map obeys the group.
    Raises ValueError for C1, which has no axes.
    """
    operators = _generating(group).to(density)
    if len(operators) == 0:
        raise ValueError("C1 has no axes to find")
    size = density.shape[-1]
    coarse_shell = min(coarse_shell, max_shell)
    centre = centre_of_density(density)
    masked = shift_map(density, -centre) * soft_sphere(size, radius, max(2.0, 0.06 * size), density.device)
    pair = MapPair(masked, masked, max_shell)
    starts = all_rotations().to(density)
    scores, _ = _scores(pair, starts, operators, coarse_shell, size / coarse_shell / 4)
    best = [_refined(pair, starts[place], operators, coarse_shell, max_shell, radius) for place in scores.topk(_CANDIDATES).indices]
    score, rotation, shifts = max(best, key=lambda found: found[0])
    turns = (rotation.T @ operators @ rotation).double()
    # a copy turned about an axis through c is moved by (1 - g) c; along the axis of a cyclic group c is open, and left as it is
    meet = torch.linalg.pinv((torch.eye(3).to(turns) - turns).flatten(0, 1), rtol=1e-3) @ shifts.flatten().double()
    return Alignment(rotation.double(), -rotation.double() @ (centre.double() + meet), False, score)


def _generating(group: str) -> torch.Tensor:
    """Operators without the identity, thinned out where there are many."""
    others = symmetry_operators(group)[1:]
    return others[:: math.ceil(len(others) / _OPERATORS_AT_MOST)] if len(others) > _OPERATORS_AT_MOST else others


def _scores(
    pair: MapPair, rotations: torch.Tensor, operators: torch.Tensor, shell: int, length: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean self-correlation [n] for each rotation, and the best shift [n, g, 3] of each copy among 27 of `length` px."""
    turns = (rotations.mT[:, None] @ operators @ rotations[:, None]).flatten(0, 1)
    shifts = length * unit_steps().to(turns)
    value, place = pair.scores(turns, shifts, shell).max(dim=0)
    return value.view(len(rotations), -1).mean(dim=1), shifts[place].view(len(rotations), -1, 3)


def _refined(
    pair: MapPair, rotation: torch.Tensor, operators: torch.Tensor, shell: int, max_shell: int, radius: float
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Score, rotation and shifts after a walk on grids that halve, to ever higher shells."""
    step, score = 8.0, -1.0
    shifts = torch.zeros(len(operators), 3).to(rotation)
    while step > 0.3:
        shell = min(max_shell, max(shell, int(0.25 * pair.size / (radius * math.radians(step)))))
        score = -1.0
        for _ in range(4):
            near = nearby_rotations(rotation, step)
            scores, _ = _scores(pair, near, operators, shell, pair.size / shell / 4)
            place = int(scores.argmax())
            if float(scores[place]) <= score + 1e-7:
                break
            score, rotation = float(scores[place]), near[place]
        step /= 2
    turns = rotation.T @ operators @ rotation
    for level in range(5):
        length = pair.size / max_shell / 4 / 2**level
        tries = [
            pair.best(turn[None], shift + length * unit_steps().to(shift), max_shell) for turn, shift in zip(turns, shifts, strict=True)
        ]
        shifts = torch.stack([shift for _, _, shift in tries])
    return sum(value for value, _, _ in tries) / len(tries), rotation, shifts
