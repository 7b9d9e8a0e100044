"""All orientations, shifts and classes of one iteration of a first map, compared with a batch as one matrix product."""

from __future__ import annotations

import math

import torch

from verglas.refine.observations import Batch, shift_factors
from verglas.refine.score import power, reals, shifted
from verglas.volume.rotations import quaternion_to_matrix
from verglas.volume.sampling import asymmetric_unit
from verglas.volume.slices import Pixels, Projector

_SCORES_AT_ONCE = 1 << 23  # numbers of a chunk's score matrix
_NEGLIGIBLE = 60.0  # below the best pose of a class: e⁻⁶⁰ of its weight
_LEAST_CLASS = 1e-8  # of an image's weight


class PoseSearch:
    """Slices of maps [K, N, N, N] at `rotations` [r, 3, 3] and the `shifts` [t, 2] (pixels) that images are tried at.

    `shares` [K] are the classes' priors; weights are of the posterior raised to `exponent`.
    """

    def __init__(
        self, maps: torch.Tensor, shares: torch.Tensor, rotations: torch.Tensor, shifts: torch.Tensor, pixels: Pixels, exponent: float
    ) -> None:
        self.rotations, self.shifts, self.exponent = rotations.to(maps.device), shifts.to(maps), exponent
        self.factors = shift_factors(pixels, self.shifts)
        max_shell = int(pixels.shell.max())
        which = torch.arange(len(maps), device=maps.device).repeat_interleave(len(rotations))
        self.slices = reals(Projector(maps, max_shell).project(self.rotations.repeat(len(maps), 1, 1), pixels, which))
        self.power = power(self.slices)
        prior = (shares / len(rotations)).clamp(min=1e-12).log().to(maps)
        self.prior = prior.repeat_interleave(len(rotations))
        self.chunk = max(1, _SCORES_AT_ONCE // (len(shifts) * len(self.slices)))  # images at once

    def log_class(self, batch: Batch) -> torch.Tensor:
        """Logarithms of the classes' weights [b, K], up to a number of each image's own."""
        _, scores, best = self._scores(batch)
        return self.exponent * best + torch.log(scores.mul_(self.exponent).exp_().sum(dim=(1, 3)))

    def posterior(self, batch: Batch, favour: torch.Tensor | float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights [b, t, K r]; the shifted images in real pairs [b, t, 2k]; and of each image [b, 2 + K]: the log-likelihood that it
        gains over an empty image, its largest weight, its classes' weights. `favour` [K] is added to the classes' log weights.
        """
        moved, scores, best = self._scores(batch)
        total = scores.exp().sum(dim=(1, 3)) if self.exponent < 1 else None
        weights = (scores.mul_(self.exponent) if self.exponent < 1 else scores).exp_()
        share = weights.sum(dim=(1, 3))
        gain = torch.logsumexp(best + torch.log(share if total is None else total), dim=1) - math.log(len(self.shifts))
        classes = torch.softmax(self.exponent * best + torch.log(share) + favour, dim=1).clamp(min=_LEAST_CLASS)
        largest = classes / share
        weights *= largest[:, None, :, None]
        return weights.flatten(2), moved, torch.cat([gain[:, None], largest.amax(dim=1, keepdim=True), classes], dim=1)

    def _scores(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The shifted images [b, t, 2k]; scores [b, t, K, r] below the best of each class; that one [b, K]."""
        moved = shifted(batch.masked, batch.ctf, self.factors)
        scores = (moved.flatten(0, 1) @ self.slices.T).view(len(batch), len(self.shifts), -1)
        scores += (self.prior - 0.5 * batch.ctf.square() @ self.power.T)[:, None]
        of_class = scores.unflatten(2, (-1, len(self.rotations)))
        best = of_class.amax(dim=(1, 3))
        # products with numbers next to nothing take a processor far longer: what no sum can notice stays above them
        return moved, of_class.sub_(best[:, None, :, None]).clamp_(min=-_NEGLIGIBLE / self.exponent), best


def evening(log_class: torch.Tensor, rounds: int = 30) -> torch.Tensor:
    """What to add to the logarithms of class weights [n, K] so that every class has an even share of the images [K].

    While shapes form, the first class to hold one would explain every image best and take them all.
    """
    added = torch.zeros(log_class.shape[1], device=log_class.device)
    for _ in range(rounds):
        share = torch.softmax(log_class + added, dim=1).mean(dim=0)
        added = added - torch.log((share * len(share)).clamp(min=1e-6))
    return added


def rotations_apart(degrees: float, turn: torch.Tensor, group: str) -> torch.Tensor:
    """Rotations [n, 3, 3], float32, about `degrees` apart, evenly over one unit of `group`; the whole set is turned by `turn` [3, 3].

    Super-Fibonacci spirals over SO(3) (Alexa, CVPR 2022): any number of them, more even than a product of grids.
    """
    count = round(8 * math.pi**2 / math.radians(degrees) ** 3)  # SO(3) holds 8 pi² rad³
    place = torch.arange(count, dtype=torch.float64) + 0.5
    part, angle = place / count, 2 * math.pi * place
    alpha, beta = angle / math.sqrt(2), angle / 1.533751168755204288118041
    low, high = part.sqrt(), (1 - part).sqrt()
    spiral = torch.stack([low * alpha.sin(), low * alpha.cos(), high * beta.sin(), high * beta.cos()], dim=-1)
    rotations = quaternion_to_matrix(spiral) @ turn.double()
    unit = asymmetric_unit(rotations, group)
    return rotations[(unit - rotations).abs().amax(dim=(1, 2)) < 1e-9].float()
