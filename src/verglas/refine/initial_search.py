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
_NEGLIGIBLE = 60.0  # below the best: e⁻⁶⁰ of its weight


class PoseSearch:
    """Slices of maps [K, N, N, N] at `rotations` [r, 3, 3] and the `shifts` [t, 2] (pixels) that images are tried at.

    `shares` [K] are the classes' priors; weights are of the posterior raised to `exponent`, with even classes while that is below 1.
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

    def posterior(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights [b, t, K r]; the shifted images in real pairs [b, t, 2k]; and of each image [b, 2 + K]: the log-likelihood that it
        gains over an empty image, its largest weight, its classes' weights.
        """
        moved = shifted(batch.masked, batch.ctf, self.factors)
        scores = (moved.flatten(0, 1) @ self.slices.T).view(len(batch), len(self.shifts), -1)
        scores += (self.prior - 0.5 * batch.ctf.square() @ self.power.T)[:, None]
        flat = scores.flatten(1)
        best = flat.amax(dim=1)
        # products with numbers next to nothing take a processor far longer: what no sum can notice stays above them
        flat.sub_(best[:, None]).clamp_(min=-_NEGLIGIBLE / self.exponent)
        total = flat.exp().sum(dim=1) if self.exponent < 1 else None
        weights = (flat.mul_(self.exponent) if self.exponent < 1 else flat).exp_()
        share = weights.sum(dim=1)
        gain = best + torch.log(share if total is None else total) - math.log(len(self.shifts))
        weights /= share[:, None]
        classes, largest = torch.ones_like(best)[:, None], 1 / share
        if len(self.slices) > len(self.rotations):
            by_class = weights.unflatten(1, (len(self.shifts), -1, len(self.rotations)))
            classes = by_class.sum(dim=(1, 3))
            if self.exponent < 1:
                factor = _balancing(classes)
                by_class *= factor[:, None, :, None]
                classes = classes * factor
                largest = weights.amax(dim=1)
        return weights.view_as(scores), moved, torch.cat([gain[:, None], largest[:, None], classes], dim=1)


def _balancing(classes: torch.Tensor, rounds: int = 30) -> torch.Tensor:
    """Factors [b, K] on class weights [b, K] after which every image has weight 1 and every class an even share of the images.

    While shapes form, the first class to hold one would explain every image best and take them all.
    """
    of_class = torch.ones(classes.shape[1], device=classes.device)
    for _ in range(rounds):
        share = (classes * of_class / (classes @ of_class)[:, None]).mean(dim=0)
        of_class = of_class / (share * len(share)).clamp(min=1e-6)
    return of_class / (classes @ of_class)[:, None]


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
