"""The job that is measured: its images, its settings, where it starts, and a tiny one like it that compiles what it needs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from scale.kept import in_files, in_memory
from scale.rendered import RenderedParticles, drawn
from scale.truth import true_maps
from verglas.compute.device import has_fast_bf16
from verglas.errors import InputError
from verglas.particles import ArrayImages, ImageSource, ParticleSet
from verglas.refine.assignments import from_particles, split_halves
from verglas.refine.autorefine import refine
from verglas.refine.classify import classify
from verglas.refine.observations import Observations
from verglas.refine.settings import Settings
from verglas.refine.start import first_state, random_averages
from verglas.refine.state import Sampling, State, load_state
from verglas.volume.filters import lowpass
from verglas.volume.resample import rescale_map
from verglas.volume.sampling import angular_step

START = 40.0  # Å
MASK_DIAMETER = 150.0  # Å
_WARMING = 256  # particles


@dataclass(frozen=True)
class Task:
    """One job. `maps` [states, N, N, N]: the truth in the images' units, on the device; `particles`: the true rows."""

    given: argparse.Namespace
    settings: Settings
    maps: torch.Tensor
    particles: ParticleSet
    source: ImageSource

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.maps.device

    @property
    def kept(self) -> bool:
        """Whether the images are read, and not rendered on demand."""
        return not isinstance(self.source, RenderedParticles)

    @property
    def image_bytes(self) -> int:
        """Bytes of all images as they are kept."""
        one = self.source.read(np.arange(1))
        return len(self.source) * one.numel() * one.element_size()

    def observations(self) -> Observations:
        """The engine's view of the particles. Rendering is no part of the job and must not hide beside it: it is not done ahead."""
        return Observations(self.particles, self.source, mask_diameter=MASK_DIAMETER, device=self.device, read_ahead=self.kept)

    def steps(self, seen: Observations, state: State) -> Iterator[State]:
        """The states that follow."""
        return (refine if self.given.job == "Refine3D" else classify)(seen, state, self.settings)

    def start(self, seen: Observations) -> State:
        """The state before the first iteration, which knows nothing of the truth but a map at 40 Å."""
        bare = seen.particles.with_columns(rot=None, tilt=None, psi=None, origin_x=None, origin_y=None, class_number=None)
        if self.given.start_from:
            return _from_earlier(seen, load_state(self.given.start_from, seen.device), self.settings, self.given.ini_high)
        half = split_halves(bare, 1)[0] if self.given.job == "Refine3D" else None
        own = from_particles(bare, len(seen.micrographs), half, device=seen.device)
        if self.settings.dims == 2:
            rows = torch.arange(len(seen), device=seen.device)
            return first_state(seen, own, random_averages(seen, rows, own, self.settings.classes, 1), self.settings)
        return first_state(seen, own, self.maps[:1].repeat(self.settings.classes, 1, 1, 1), self.settings)

    def warm_up(self) -> None:
        """Two iterations of a few particles, then one of local searches and two of fits: what compiles at its first use compiles now."""
        few = np.arange(min(_WARMING, len(self.particles)))
        images = ArrayImages(self.source.read(few).cpu(), self.particles.optics.pixel_size)
        given = argparse.Namespace(**vars(self.given) | {"start_from": None})
        small = replace(self, given=given, particles=self.particles.subset(few), source=images)
        seen = small.observations()
        state = next(small.steps(seen, next(small.steps(seen, small.start(seen)))))
        if self.given.job == "Refine3D":
            for fit in ("", "found", "last"):
                state.sampling = replace(_local(state.sampling, self.settings.local_order), fit=fit)
                state = next(small.steps(seen, state))


def task_of(given: argparse.Namespace, device: torch.device) -> Task:
    """Maps and rows; the images are rendered on demand."""
    maps = true_maps(given.states, given.symmetry, given.box, given.pixel_size, device)
    particles = drawn(given.particles, given.box, given.pixel_size, classes=given.states)
    source = RenderedParticles(maps, given.pixel_size, particles, seed=1)
    return Task(given, _settings(given, device), maps * source.scale, particles, source)


def with_images_kept(task: Task) -> Task:
    """The same with all images made, in memory or in files."""
    where, source = task.given.images, task.source
    assert isinstance(source, RenderedParticles)
    kept = in_memory(source) if where == "memory" else in_files(source, task.particles, Path(where), task.given.mode)
    return replace(task, source=kept)


def _settings(given: argparse.Namespace, device: torch.device) -> Settings:
    shared = Settings(
        dims=2 if given.job == "Class2D" else 3,
        mask_diameter=MASK_DIAMETER,
        classes=given.classes,
        iterations=given.iterations,
        symmetry="C1" if given.job == "Class2D" else given.symmetry,
        limit_resolution=given.limit or None,
        ini_high=given.ini_high or START,
        half_precision=has_fast_bf16(device),  # as the jobs choose
    )
    if given.job == "Refine3D":
        return replace(shared, classes=1, iterations=40)
    return replace(shared, tau2_fudge=2.0 if given.job == "Class2D" else 4.0)


def _from_earlier(seen: Observations, earlier: State, settings: Settings, ini_high: float) -> State:
    """Poses, halves and half maps of an earlier refinement, whose box spans the same field of view; searched locally from there."""
    box = earlier.models[0].box
    pixel = seen.box * seen.pixel_size / box
    if len(earlier.assignments) != len(seen) or len(earlier.models) != 2:
        raise InputError("--start-from", f"is of {len(earlier.assignments)} particles", f"Give a refinement of these {len(seen)}")
    settings = replace(settings, ini_high=ini_high or earlier.history[-1]["resolution"])
    halves = [rescale_map(model.references[0], pixel, seen.pixel_size, seen.box) for model in earlier.models]
    state = first_state(seen, earlier.assignments, halves[0][None], settings)
    state.models[1].references = lowpass(halves[1], seen.pixel_size, settings.ini_high or START)[None]
    zoom = pixel / seen.pixel_size
    scaled = replace(earlier.sampling, offset_range=zoom * earlier.sampling.offset_range, offset_step=zoom * earlier.sampling.offset_step)
    state.sampling = _local(scaled, settings.local_order)
    return state


def _local(sampling: Sampling, least_order: int) -> Sampling:
    order = max(sampling.order, least_order)
    return replace(sampling, order=order, local_sigma=angular_step(order))
