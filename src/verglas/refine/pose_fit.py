"""Continuous refinement of poses: each image's posterior over rotation and shift, by Gauss–Newton steps and a Gaussian about the top.

Where the posterior is narrower than any grid that one would lay over it, it is close to a Gaussian: a few evaluations of slope and
curvature (see `curvature`) find its maximum and its covariance, and six nodes carry it into the sums (`nodes`). METHOD.md §2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from verglas.refine.curvature import Local, local_shape
from verglas.refine.observations import shift_factors
from verglas.volume.rotations import axis_rotation, geodesic
from verglas.volume.slices import Pixels, Projector

_STEPS = 4
_DAMPING, _EASIER, _HARDER = 1e-3, 0.2, 10.0  # Levenberg–Marquardt
_FARTHEST = math.radians(3.0)  # of one step; linear models hold no further
_FARTHEST_PX = 1.0
_NODES = 3**0.5  # deviations between the centre and the nodes of a rule that is exact to the third order in three dimensions


@dataclass(frozen=True)
class Prior:
    """Gaussians about the starting poses, ± `rotation` radians about each axis, and about `shifts` [n, 2] ± `shift`, pixels."""

    rotation: float
    shifts: torch.Tensor
    shift: float


@dataclass(frozen=True)
class Posterior:
    """Of n images: the most likely poses [n, 3, 3] and shifts [n, 2] (pixels), the logarithm of the posterior there [n] (priors not
    normalised), and the covariance [n, 5, 5] of rotation vector (radians, in the image's frame) and shift, float64."""

    matrices: torch.Tensor
    shifts: torch.Tensor
    log_top: torch.Tensor
    covariance: torch.Tensor

    def log_total(self, cell: float) -> torch.Tensor:
        """Logarithm of the posterior's sum over a grid with cells of this volume (radians³ px²) [n]."""
        dims = self.covariance.shape[-1]
        spread = 0.5 * (torch.logdet(self.covariance) + dims * math.log(2 * math.pi))
        return self.log_top + spread - math.log(cell)


def fit_poses(
    projector: Projector,
    pixels: Pixels,
    images: torch.Tensor,
    ctf: torch.Tensor,
    start: tuple[torch.Tensor, torch.Tensor],
    prior: Prior,
    steps: int = _STEPS,
) -> Posterior:
    """The posterior of whitened images [n, k] with CTFs [n, k], found from poses [n, 3, 3] and shifts [n, 2] (pixels) to `start` from.

    A step that does not raise the posterior is taken back and tried again, shorter.
    """
    weighted = images * ctf
    precision = torch.cat([torch.full((3,), prior.rotation**-2.0), torch.full((2,), prior.shift**-2.0)]).double().to(ctf.device)

    def look(matrices: torch.Tensor, shifts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log posterior, slope and curvature (both float64) of a trial."""
        seen: Local = local_shape(projector, pixels, weighted * shift_factors(pixels, shifts), ctf, matrices)
        away = torch.cat([torch.deg2rad(geodesic(matrices.double() @ start[0].double().mT)), (shifts - prior.shifts).double()], dim=1)
        value = seen.value.double() - 0.5 * (precision * away.square()).sum(1)
        return value, seen.slope.double() - precision * away, seen.curvature.double() + torch.diag(precision)

    matrices, shifts = start
    top, slope, curvature = look(matrices, shifts)
    damping = torch.full_like(top, _DAMPING)
    for _ in range(steps):
        change = _step(slope, curvature, damping)
        trial = _turned(matrices, change[:, :3]), shifts + change[:, 3:].float()
        found = look(*trial)
        better = found[0] >= top
        matrices, shifts = _chosen(better, trial[0], matrices), _chosen(better, trial[1], shifts)
        top, slope, curvature = (_chosen(better, new, old) for new, old in zip(found, (top, slope, curvature)))
        damping = damping * torch.where(better, _EASIER, _HARDER)
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
    along = (axes * lengths.clamp(min=0).sqrt()[:, None]).mT * _NODES
    vectors = torch.cat([along, -along], dim=1)
    follow = mixed @ torch.linalg.inv(rotation)
    left = (shift - follow @ mixed.mT).diagonal(dim1=1, dim2=2).clamp(min=0)
    matrices = _turned(posterior.matrices[:, None].expand(-1, 6, -1, -1), vectors)
    return matrices, posterior.shifts[:, None] + (vectors @ follow.mT).float(), left.float()


def _step(slope: torch.Tensor, curvature: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
    """The damped Gauss–Newton step [n, 5], not longer than a linear model holds."""
    diagonal = torch.diag_embed(curvature.diagonal(dim1=1, dim2=2) * damping[:, None])
    change = torch.linalg.solve(curvature + diagonal, slope)
    length = torch.maximum(change[:, :3].norm(dim=1) / _FARTHEST, change[:, 3:].norm(dim=1) / _FARTHEST_PX)
    return change / length.clamp(min=1.0)[:, None]


def _turned(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """axis_rotation(w) A for rotation vectors w [..., 3] in radians."""
    angle = vectors.norm(dim=-1)
    axis = vectors + torch.nn.functional.one_hot(vectors.new_zeros(()).long(), 3) * (angle == 0)[..., None]
    return (axis_rotation(axis, torch.rad2deg(angle)) @ matrices.double()).float()


def _chosen(better: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, old)
