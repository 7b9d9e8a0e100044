"""Continuous refinement of poses: each image's posterior over rotation and shift, by Gauss–Newton steps and a Gaussian about the top.

Where the posterior is narrower than any grid that one would lay over it, it is close to a Gaussian: a few evaluations of slope and
curvature (see `curvature`) find its maximum and its covariance, and six nodes carry it into the sums (`nodes`).
Laplace's approximation; Levenberg–Marquardt steps; nodes: McNamee & Stenger 1967, Numer. Math. 10, 327.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from verglas.refine.curvature import local_shape
from verglas.refine.observations import shift_factors
from verglas.volume.rotations import axis_rotation, geodesic
from verglas.volume.slices import Pixels, Projector

_MOST_STEPS = 5
_GAIN = 0.005  # of the log posterior: less is not worth a step
_DAMPING, _EASIER, _HARDER = 1e-3, 0.2, 10.0  # Levenberg–Marquardt
_FARTHEST = math.radians(3.0)  # of one step; linear models hold no further
_FARTHEST_PX = 1.0
NODES = 6
_NODES_AT = 3**0.5  # deviations from the centre: a rule that is exact to the third order in three dimensions

Start = tuple[torch.Tensor, torch.Tensor]  # poses float32 [n, 3, 3] and shifts float32 [n, 2], pixels


@dataclass(frozen=True)
class Prior:
    """Gaussians about poses `matrices` float32 [n, 3, 3], `rotation` radians wide about each axis, and shifts `shifts` float32 [n, 2],
    `shift` pixels wide an axis.
    """

    rotation: float
    matrices: torch.Tensor
    shift: float
    shifts: torch.Tensor


@dataclass(frozen=True)
class Posterior:
    """Of n images: the most likely poses float32 [n, 3, 3] and shifts float32 [n, 2] (pixels), the logarithm of the posterior there,
    float64 [n] (priors not normalised), and the covariance, float64 [n, 5, 5], of rotation (radians, the image's frame) and shift.
    """

    matrices: torch.Tensor
    shifts: torch.Tensor
    log_top: torch.Tensor
    covariance: torch.Tensor

    def log_total(self, cell: float) -> torch.Tensor:
        """Logarithm of the posterior's sum over a grid with cells of this volume (radians³ px²) [n]."""
        dims = self.covariance.shape[-1]
        spread = 0.5 * (torch.logdet(self.covariance) + dims * math.log(2 * math.pi))
        return self.log_top + spread - math.log(cell)

    def largest_share(self, cell: float) -> torch.Tensor:
        """Share of the posterior near its top, between 0 and 1 [n]: that of one cell where cells are small, all where they are large."""
        return torch.sigmoid(self.log_top - self.log_total(cell))


def fit_poses(
    projector: Projector,
    pixels: Pixels,
    images: torch.Tensor,
    ctf: torch.Tensor,
    starts: Sequence[Start],
    prior: Prior,
    most_steps: int = _MOST_STEPS,
) -> Posterior:
    """The posterior of whitened images [n, ≥ k] with CTFs [n, ≥ k], from the most likely of some poses and shifts to start at.

    A step that does not raise the posterior is taken back and tried again, shorter; an image is done when no step promises a gain.
    """
    images, ctf = images[:, : len(pixels)], ctf[:, : len(pixels)]
    weighted = images * ctf
    precision = torch.cat([torch.full((3,), prior.rotation**-2.0), torch.full((2,), prior.shift**-2.0)]).double().to(ctf.device)

    def look(rows: torch.Tensor, matrices: torch.Tensor, shifts: torch.Tensor) -> list[torch.Tensor]:
        """Pose, shift, log posterior, slope and curvature (float64) of a trial of some images."""
        moved = weighted[rows] * shift_factors(pixels, shifts)
        seen = local_shape(projector, pixels, moved, ctf[rows], matrices)
        turned = torch.deg2rad(geodesic(matrices.double() @ prior.matrices[rows].double().mT))
        away = torch.cat([turned, (shifts - prior.shifts[rows]).double()], dim=1)
        value = seen.value.double() - 0.5 * (precision * away.square()).sum(1)
        return [matrices, shifts, value, seen.slope.double() - precision * away, seen.curvature.double() + torch.diag(precision)]

    active = torch.arange(len(images), device=ctf.device)
    best = [values.clone() for values in look(active, *starts[0])]
    for other in starts[1:]:
        _improve(best, look(active, *other), active)
    damping = torch.full_like(best[2], _DAMPING)
    for _ in range(most_steps):
        matrices, shifts, top, slope, curvature = (values[active] for values in best)
        change, gain = _step(slope, curvature, damping[active])
        going = gain > _GAIN
        active, change = active[going], change[going]
        if not len(active):
            break
        trial = look(active, _turned(matrices[going], change[:, :3]), shifts[going] + change[:, 3:].float())
        better = _improve(best, trial, active)
        before = damping[active]
        damping[active] = torch.where(better, _EASIER * before, (_HARDER * before).clamp(min=1.0))
    matrices, shifts, top, _, curvature = best
    return Posterior(matrices, shifts, top, torch.linalg.inv(curvature))


def nodes(posterior: Posterior) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Six equally likely poses that stand for each posterior: matrices [n, 6, 3, 3], shifts [n, 6, 2] and the shifts' variances [n, 2].

    They lie √3 deviations along the axes of the rotation's covariance on both sides, each with the shift that goes with it; the
    variances are of what is left of the shift when the rotation is known.
    """
    rotation, mixed, shift = (
        posterior.covariance[:, a, b] for a, b in ((slice(3), slice(3)), (slice(3, 5), slice(3)), (slice(3, 5), slice(3, 5)))
    )
    lengths, axes = torch.linalg.eigh(rotation)
    along = (axes * lengths.clamp(min=0).sqrt()[:, None]).mT * _NODES_AT
    vectors = torch.cat([along, -along], dim=1)
    follow = mixed @ torch.linalg.inv(rotation)
    left = (shift - follow @ mixed.mT).diagonal(dim1=1, dim2=2).clamp(min=0)
    matrices = _turned(posterior.matrices[:, None].expand(-1, NODES, -1, -1), vectors)
    return matrices, posterior.shifts[:, None] + (vectors @ follow.mT).float(), left.float()


def _improve(best: list[torch.Tensor], trial: list[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Take over a trial of the images `rows` where its log posterior is no less (in place); where that was [rows]."""
    better = trial[2] >= best[2][rows]
    for values, new in zip(best, trial):
        values[rows[better]] = new[better]
    return better


def _step(slope: torch.Tensor, curvature: torch.Tensor, damping: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The damped Gauss–Newton step [n, 5], not longer than a linear model holds, and what it promises to gain [n]."""
    diagonal = torch.diag_embed(curvature.diagonal(dim1=1, dim2=2) * damping[:, None])
    change = torch.linalg.solve(curvature + diagonal, slope)
    length = torch.maximum(change[:, :3].norm(dim=1) / _FARTHEST, change[:, 3:].norm(dim=1) / _FARTHEST_PX)
    return change / length.clamp(min=1.0)[:, None], 0.5 * (slope * change).sum(1)


def _turned(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """axis_rotation(w) A for rotation vectors w [..., 3] in radians."""
    angle = vectors.norm(dim=-1)
    axis = vectors + torch.nn.functional.one_hot(vectors.new_zeros(()).long(), 3) * (angle == 0)[..., None]
    return (axis_rotation(axis, torch.rad2deg(angle)) @ matrices.double()).float()
