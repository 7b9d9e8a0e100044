"""The state before the first iteration: references, noise, priors."""

from __future__ import annotations

import torch

from verglas.compute.ranks import ALONE, Ranks
from verglas.refine.assignments import Assignments
from verglas.refine.maximisation import first_noise, spectrum
from verglas.refine.model import Model
from verglas.refine.observations import Observations
from verglas.refine.settings import Settings
from verglas.refine.state import Progress, Sampling, State
from verglas.volume.filters import lowpass
from verglas.volume.sampling import angular_step

NOISE_PARTICLES = 1000
FIRST_OFFSET_SIGMA = 10.0  # Å, RELION's default
_DEFAULT_INI_SHELL = 0.07  # of the box, where no ini_high is given


def ini_high(settings: Settings, seen: Observations) -> float:
    """Resolution in Å that references are filtered to at the start."""
    return settings.ini_high or seen.pixel_size / _DEFAULT_INI_SHELL


def starting_noise(seen: Observations, rows: torch.Tensor, assignments: Assignments, most: int = NOISE_PARTICLES) -> torch.Tensor:
    """Noise spectra from about `most` of the particles `rows`, as many of each noise group; [noise groups, shells]."""
    groups = [rows[seen.noise_group[rows] == number] for number in range(seen.noise_groups)]
    rows = torch.cat([_spread(own, most // seen.noise_groups + 1) for own in groups])
    group = seen.noise_group[rows]
    powers = []
    mean = torch.zeros(seen.noise_groups, len(seen.all_pixels), dtype=torch.complex64, device=seen.device)
    for part in rows.split(200):
        power, transform = seen.power_spectra(part, assignments)
        powers.append(power)
        _add_rows(mean, seen.noise_group[part], transform)
    counts = torch.bincount(group, minlength=seen.noise_groups).clamp(min=1)
    return first_noise(seen, torch.cat(powers), mean / counts[:, None], group)


def _spread(rows: torch.Tensor, most: int) -> torch.Tensor:
    """Up to `most` of the rows, evenly spread over them."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long().to(rows.device)]


def random_averages(
    seen: Observations, rows: torch.Tensor, assignments: Assignments, classes: int, seed: int, ranks: Ranks = ALONE
) -> torch.Tensor:
    """Class averages of random shares of the particles as they lie, float32 [classes, N, N]: where 2D classification starts.

    Each of the `ranks` reads its share of the particles; the averages are right on the first alone.
    """
    member = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(rows.device) % classes
    total = torch.zeros(classes, seen.box, seen.box, device=seen.device)
    for part in ranks.share(torch.arange(len(rows), device=rows.device)).split(200):
        _add_rows(total, member[part], seen.images(rows[part], assignments) * seen.mask)
    ranks.sum_up([total])
    return total / torch.bincount(member, minlength=classes)[:, None, None]


def _add_rows(total: torch.Tensor, into: torch.Tensor, rows: torch.Tensor) -> None:
    """Add each of `rows` [n, ...] to the row `into` int64 [n] of `total`: on a card, which adds in any order, as a product."""
    if not total.is_cuda:
        total.index_add_(0, into, rows)
        return
    members = torch.nn.functional.one_hot(into, len(total)).T.to(rows.dtype)
    total += (members @ rows.flatten(1)).view_as(total)


def first_state(seen: Observations, assignments: Assignments, references: torch.Tensor, settings: Settings) -> State:
    """State 0 with low-passed `references` [classes, N, N(, N)]; one model, or one a half when the particles are split.

    A refinement that begins as finely as it would search locally does so from the start, about the given poses.
    """
    limit = ini_high(settings, seen)
    filtered = torch.stack([lowpass(reference, seen.pixel_size, limit, dims=settings.dims) for reference in references.to(seen.device)])
    shell = max(1, min(round(seen.box * seen.pixel_size / limit), settings.shell_limit(seen.box, seen.pixel_size)))
    halves = int(assignments.half.max()) + 1
    models = []
    for half in range(halves):
        noise = starting_noise(seen, torch.nonzero(assignments.half == half)[:, 0], assignments)
        tau2 = spectrum(filtered)[:, : seen.shells]
        weight = torch.full((len(filtered),), 1.0 / len(filtered), dtype=torch.float64, device=seen.device)
        models.append(Model(filtered.clone(), noise, tau2, torch.zeros_like(tau2), weight, FIRST_OFFSET_SIGMA))
    local_sigma = angular_step(settings.healpix_order) if halves > 1 and settings.begins_locally else settings.local_sigma
    sampling = Sampling(settings.healpix_order, settings.psi_step, settings.offset_range_px, settings.offset_step_px, local_sigma)
    fsc = torch.zeros(seen.shells, dtype=torch.float64)
    return State(0, assignments, models, sampling, Progress(shell), fsc, [])
