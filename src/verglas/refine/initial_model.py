"""A first map from nothing but the particles: stochastic expectation maximisation from random poses (METHOD.md §6).

Every iteration compares a random batch of particles with slices of the present map in all orientations and shifts, sums them back
with their posterior weights, and moves the map half-way to the result. Resolution and trust in the posterior rise together, so that
the shape settles before the detail; the symmetry is imposed from the start, in RELION's setting.

    model = InitialModel(seen, settings)
    state = model.start()
    for _ in range(settings.iterations):
        state = model.step(state)
    assignments = model.assign(state)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from verglas.compute.ranks import ALONE, Ranks
from verglas.particles import reading_order
from verglas.refine.assignments import Assignments, from_particles
from verglas.refine.initial_search import PoseSearch, evening, rotations_apart
from verglas.refine.observations import Batch, Observations
from verglas.refine.start import starting_noise
from verglas.volume.fourier import irfft_centred, radial_average, rfft_centred, shell_index
from verglas.volume.masks import soft_sphere
from verglas.volume.reconstruct import add_symmetric, reconstruct, symmetrise
from verglas.volume.resample import centre_of_density, shift_map
from verglas.volume.rotations import random_rotations
from verglas.volume.sampling import shift_grid
from verglas.volume.slices import FourierSums, Pixels, pixel_list
from verglas.volume.symmetry import has_free_axis, symmetry_operators

TAU2_FUDGE = 4.0  # RELION's for initial models and classes


@dataclass(frozen=True)
class Settings:
    """How a first map is made. Resolutions, offsets and the diameter in Å; `angle` is the spacing of the rotations in degrees.

    Over the first two thirds of the iterations the resolution goes from `ini_resolution` to `fin_resolution` (evenly in frequency)
    and the posterior's exponent from `ini_exponent` to 1; over the first half negative density is set to zero.
    """

    mask_diameter: float
    symmetry: str = "C1"
    classes: int = 1
    iterations: int = 24
    ini_resolution: float = 40.0
    fin_resolution: float = 20.0
    ini_batch: int = 150
    fin_batch: int = 500
    ini_exponent: float = 0.3
    offset_range: float = 17.0
    offset_step: float = 6.7
    angle: float = 12.2
    seed: int = 1


@dataclass(frozen=True)
class State:
    """Where a run stands: after `iteration`, maps [K, N, N, N] and the classes' shares [K].

    `log_likelihood` (gained over empty images) and `max_probability` are means over the last batch.
    """

    iteration: int
    maps: torch.Tensor
    shares: torch.Tensor
    log_likelihood: float = 0.0
    max_probability: float = 0.0


@dataclass(frozen=True)
class Stage:
    """What an iteration does: finest resolution in Å and its shell, particles of the batch, posterior exponent, negatives to zero."""

    resolution: float
    shell: int
    batch: int
    exponent: float
    positive: bool


def stage(iteration: int, settings: Settings, box: int, pixel_size: float) -> Stage:
    """The settings of `iteration`, counted from 1."""
    ramp = max(1, round(settings.iterations * 2 / 3))
    part = min(1.0, (iteration - 1) / max(1, ramp - 1))
    frequency = (1 - part) / settings.ini_resolution + part / settings.fin_resolution
    shell = min((box - 1) // 2, max(2, round(box * pixel_size * frequency)))
    third = min(2, 3 * (iteration - 1) // settings.iterations)
    batch = (settings.ini_batch, min(settings.fin_batch, 2 * settings.ini_batch), settings.fin_batch)[third]
    exponent = settings.ini_exponent + part * (1 - settings.ini_exponent)
    return Stage(1 / frequency, shell, batch, exponent, 2 * iteration <= settings.iterations)


class InitialModel:
    """Particles and settings, ready to be iterated.

    Everything random hangs on seed and iteration alone, and on the particles' names, not their order: a run that goes on from a
    written iteration ends as one that was never stopped.
    """

    def __init__(self, seen: Observations, settings: Settings, ranks: Ranks = ALONE) -> None:
        self.seen, self.settings, self.ranks = seen, settings, ranks
        self.known = from_particles(seen.particles, len(seen.micrographs), device=seen.device)
        self._as_read = torch.as_tensor(reading_order(seen.particles), device=seen.device)
        self.noise = ranks.told(lambda: starting_noise(seen, self._as_read, self.known))

    def stage(self, iteration: int) -> Stage:
        """What iteration number `iteration`, from 1, does."""
        return stage(iteration, self.settings, self.seen.box, self.seen.pixel_size)

    def start(self) -> State:
        """The maps before the first iteration: a batch for each class back-projected in random orientations."""
        return self.ranks.told(self._start)

    def _start(self) -> State:
        first, generator, classes = self.stage(1), self._generator(0), self.settings.classes
        pixels = pixel_list(self.seen.box, first.shell, device=self.seen.device)
        sums = self._sums(first.shell)
        for number in range(classes):
            batch = self.seen.batch(self._draw(first.batch, generator), self.known, self.noise, pixels)
            turned = random_rotations(len(batch), generator, torch.float32).to(self.seen.device)
            which = torch.full((len(batch),), number, device=self.seen.device)
            add_symmetric(sums, self.settings.symmetry, turned, pixels, batch.masked * batch.ctf, batch.ctf.square(), which)
        symmetrise(sums, self.settings.symmetry)
        maps = torch.stack([self._shaped(density, positive=True) for density in reconstruct(sums)])
        return State(0, maps, torch.full((classes,), 1 / classes))

    def step(self, state: State) -> State:
        """One iteration: a batch compared with the maps, and the maps moved half-way to what it gives."""
        now, generator = self.stage(state.iteration + 1), self._generator(state.iteration + 1)
        pixels = pixel_list(self.seen.box, now.shell, device=self.seen.device)
        search = self._search(state, pixels, generator, now.exponent)
        numerator, weight = torch.zeros_like(search.slices), torch.zeros_like(search.power)
        rows = self._draw(now.batch, generator)
        quality = torch.zeros(2 + len(state.maps), dtype=torch.float64, device=self.seen.device)
        batches = self._batches(self.ranks.share(rows), pixels, search.chunk)
        favour: torch.Tensor | float = 0.0
        if len(state.maps) > 1 and now.exponent < 1:
            batches = list(batches)
            favour = self._favour(search, batches)
        for batch in batches:
            weights, moved, found = search.posterior(batch, favour)
            numerator += weights.flatten(0, 1).T @ moved.flatten(0, 1)
            weight += weights.sum(dim=1).T @ batch.ctf.square()
            quality += found.double().sum(dim=0)
        self.ranks.sum_up([numerator, weight, quality])
        return self.ranks.told(lambda: self._next(state, search, numerator, weight, (quality / len(rows)).float().cpu(), now))

    def _next(
        self, state: State, search: PoseSearch, numerator: torch.Tensor, weight: torch.Tensor, found: torch.Tensor, now: Stage
    ) -> State:
        """The state after a batch, from its weighted slices and mean quality."""
        pixels = pixel_list(self.seen.box, now.shell, device=self.seen.device)
        maps = self._moved(state.maps, search.rotations, pixels, numerator, weight, now)
        shares = 0.5 * state.shares + 0.5 * found[2:]
        return State(state.iteration + 1, maps, shares / shares.sum(), float(found[0]), float(found[1]))

    def assign(self, state: State, rows: torch.Tensor | None = None) -> Assignments:
        """Best pose, shift and class of every particle (or of `rows`, the others left as they were), at the final resolution.

        `log_likelihood` is what each particle gains over an empty image, summed over poses, shifts and classes.
        """
        last = self.stage(self.settings.iterations)
        pixels = pixel_list(self.seen.box, last.shell, device=self.seen.device)
        search = self._search(state, pixels, None, 1.0)
        out, pixel_size = self.known.copy(), self.seen.pixel_size
        rows = self._as_read if rows is None else rows
        for batch in self._batches(self.ranks.share(rows), pixels, search.chunk):
            weights, _, quality = search.posterior(batch)
            largest, place = weights.flatten(1).max(dim=1)
            shift, pose = place // weights.shape[2], place % weights.shape[2]
            at = batch.rows.to(out.matrices.device)
            out.matrices[at] = search.rotations[pose % len(search.rotations)]
            # the images were moved by whole pixels before the search
            out.origins[at] = (self.known.whole_shifts(at, pixel_size).float() + search.shifts[shift]) * pixel_size
            out.classes[at] = pose // len(search.rotations)
            out.log_likelihood[at], out.max_probability[at] = quality[:, 0], largest
            out.significant[at] = (weights.flatten(1) > 0.001 * largest[:, None]).sum(dim=1)
        return self._together(out, rows)

    def _together(self, own: Assignments, rows: torch.Tensor) -> Assignments:
        """What all ranks found for their shares of `rows`."""
        if self.ranks.size == 1:
            return own
        of_particles = [name for name in vars(own) if name != "scale"]
        shares = self.ranks.everyones([getattr(own, name)[self.ranks.share(rows)].cpu() for name in of_particles])
        for name, *parts in zip(of_particles, *shares):
            values = getattr(own, name)
            values[rows.to(values.device)] = torch.cat(parts).to(values.device)
        return own

    def mean_log_likelihood(self, state: State, rows: torch.Tensor) -> float:
        """Mean log-likelihood that the particles `rows` gain over empty images."""
        return float(self.assign(state, rows).log_likelihood[rows].double().mean())

    def sample(self, count: int) -> torch.Tensor:
        """Rows of up to `count` particles to judge maps by; the same for every state."""
        return self._draw(count, torch.Generator().manual_seed(0))

    def _search(self, state: State, pixels: Pixels, generator: torch.Generator | None, exponent: float) -> PoseSearch:
        """All poses and shifts; with a generator the grids are moved, so that they don't meet the same places every time."""
        turn, wander = torch.eye(3), torch.zeros(2)
        if generator is not None:
            turn, wander = random_rotations(1, generator)[0], torch.rand(2, generator=generator) - 0.5
        step = self.settings.offset_step
        shifts = (shift_grid(self.settings.offset_range, step) + wander * step) / self.seen.pixel_size
        rotations = rotations_apart(self.settings.angle, turn, self.settings.symmetry)
        return PoseSearch(state.maps, state.shares, rotations, shifts, pixels, exponent)

    def _favour(self, search: PoseSearch, batches: list[Batch]) -> torch.Tensor:
        """What makes the classes even over the `batches` of all ranks."""
        found = [search.log_class(batch).cpu() for batch in batches]
        everyones = self.ranks.everyones(torch.cat([torch.zeros(0, self.settings.classes), *found]))
        return evening(torch.cat(everyones)).to(self.seen.device)

    def _batches(self, rows: torch.Tensor, pixels: Pixels, chunk: int) -> Iterable[Batch]:
        return (self.seen.batch(part, self.known, self.noise, pixels) for part in rows.split(chunk) if len(part))

    def _draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Rows of `count` different particles (all, where there are fewer), in the order of their stacks."""
        drawn = torch.randperm(len(self._as_read), generator=generator)[:count].sort().values
        return self._as_read[drawn.to(self._as_read.device)]

    def _generator(self, iteration: int) -> torch.Generator:
        return torch.Generator().manual_seed(1_000_003 * (self.settings.seed + 1) + iteration)

    def _sums(self, shell: int) -> FourierSums:
        return FourierSums(self.seen.box, 3, shell, maps=self.settings.classes, device=self.seen.device)

    def _moved(
        self, old: torch.Tensor, rotations: torch.Tensor, pixels: Pixels, slices: torch.Tensor, weights: torch.Tensor, now: Stage
    ) -> torch.Tensor:
        """The maps half-way from `old` to the Wiener-filtered maps of a batch's slices (real pairs [K r, 2k]) and weights [K r, k]."""
        sums, classes = self._sums(now.shell), len(old)
        numerators = torch.view_as_complex(slices.unflatten(-1, (-1, 2)))
        which = torch.arange(classes, device=old.device).repeat_interleave(len(rotations))
        add_symmetric(sums, self.settings.symmetry, rotations.repeat(classes, 1, 1), pixels, numerators, weights, which)
        symmetrise(sums, self.settings.symmetry)
        signal = radial_average(rfft_centred(old, 3).abs().square(), self.seen.box, 3)[:, : now.shell + 1]
        tau2 = TAU2_FUDGE / 2 * torch.maximum(signal, 1e-2 * signal[:, 1:].amax(1, keepdim=True))
        return torch.stack([self._shaped(density, now.positive) for density in 0.5 * old + 0.5 * reconstruct(sums, tau2)])

    def _shaped(self, density: torch.Tensor, positive: bool) -> torch.Tensor:
        """The map within the mask's sphere, without negative density if `positive`, and centred where the group leaves that open."""
        if has_free_axis(self.settings.symmetry):
            density = _centred(density, along_z_only=len(symmetry_operators(self.settings.symmetry)) > 1)
        radius = self.settings.mask_diameter / 2 / self.seen.pixel_size
        density = density * soft_sphere(self.seen.box, radius, 3.0, density.device)
        return density.clamp(min=0) if positive else density


def _centred(density: torch.Tensor, along_z_only: bool) -> torch.Tensor:
    """The map moved so that the centre of its density lies at index N//2."""
    centre = centre_of_density(density)
    if along_z_only:
        centre[:2] = 0
    return shift_map(density, -centre)


def spherical(state: State) -> State:
    """The same state with every map replaced by its average over all directions, in Fourier space: what no orientation can improve on."""
    size = state.maps.shape[-1]
    transform = rfft_centred(state.maps, 3)
    shells = shell_index(size, 3, state.maps.device)
    mean = radial_average(transform.real, size, 3, int(shells.max()) + 1)
    return replace(state, maps=irfft_centred(mean.float()[:, shells].to(transform.dtype), size, 3))
