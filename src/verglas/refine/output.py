"""Files of a run, named as RELION names them; the optimiser is written last and marks its iteration as complete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from verglas.errors import VerglasError
from verglas.io.atomic import write_text
from verglas.io.mrc import read_map, read_stack, write_map, write_stack
from verglas.io.relion_iterations import number_of, optimisers
from verglas.io.star import write_star
from verglas.particles import ParticleSet, write_particles
from verglas.refine.classify import class_shell
from verglas.refine.model import Model
from verglas.refine.observations import Observations
from verglas.refine.relion_tables import NO_RESOLUTION, model_tables, optimiser_table, sampling_tables, with_results
from verglas.refine.settings import Settings
from verglas.refine.state import State, load_state, save_state
from verglas.volume.fsc import shell_to_resolution
from verglas.volume.sampling import healpix_directions, healpix_pixels, view_directions

_BILD_ORDER = 3


class Output:
    """Writes the iterations of one run into `folder`; `particles` are those of `seen`, written in the order `order`.

    `begun_from` tells what else the run began from than its settings and particles, so that no other run's iterations are gone on from.
    """

    def __init__(
        self,
        folder: Path,
        particles: ParticleSet,
        order: np.ndarray,
        seen: Observations,
        settings: Settings,
        mask: Path | None = None,
        begun_from: str = "",
    ) -> None:
        self.folder, self.particles, self.order = folder, particles, order
        self.seen, self.settings, self.mask, self._device = seen.layout(), settings, mask, seen.device
        self._begun_from = begun_from

    @cached_property
    def key(self) -> str:
        """What a state must have been made with to be gone on from: settings (a run may be made longer) and particles."""
        same = {name: value for name, value in asdict(self.settings).items() if name != "iterations"}
        return run_key(repr(sorted(same.items())) + self._begun_from, self.particles)

    def last_state(self) -> State | None:
        """The state of the last complete iteration of the same run that is not past `settings.iterations`, or None."""
        whole, own = optimisers(self.folder), self.key
        for number in sorted((number for number in whole if number <= self.settings.iterations), reverse=True):
            root = whole[number].with_name(f"run_it{number:03d}")
            key = Path(f"{root}_state.key")
            if not (Path(f"{root}_state.pt").exists() and key.exists() and key.read_text() == own):
                continue
            try:
                return self._read_references(root, load_state(Path(f"{root}_state.pt"), self._device))
            except (VerglasError, OSError):  # a map of it is gone, or it is damaged, or another version's
                continue
        return None

    def write_iteration(self, state: State) -> None:
        """Every file of iteration `state.iteration`; with its exact state, so that the run may go on from any of them.

        The state's references are the maps beside it, and what only the end of a run needs is made anew.
        """
        root = self.folder / f"run_it{state.iteration:03d}"
        self._write_particles(Path(f"{root}_data.star"), state)
        models = self._write_models(root, state)
        names = {"rlnExperimentalDataStarFile": f"{root}_data.star", "rlnOrientSamplingStarFile": f"{root}_sampling.star"}
        write_star(f"{root}_sampling.star", sampling_tables(state, self.settings, self.seen))
        save_state(Path(f"{root}_state.pt"), _without_maps(state))
        write_text(f"{root}_state.key", self.key)
        mask = str(self.mask) if self.mask else None
        table = optimiser_table(state, self.settings, self.seen, str(self.folder / "run"), models, names, mask)
        write_star(f"{root}_optimiser.star", {"optimiser_general": table})

    def write_final(self, state: State) -> None:
        """The files that a finished automatic refinement leaves beside its iterations."""
        assert state.joined is not None
        run = self.folder / "run"
        pixel_size = self.seen.pixel_size
        for half, volume in enumerate(state.unfiltered, start=1):
            write_map(f"{run}_half{half}_class001_unfil.mrc", volume.cpu().numpy(), pixel_size)
        write_map(f"{run}_class001.mrc", state.joined.references[0].cpu().numpy(), pixel_size)
        self._write_directions(Path(f"{run}_class001_angdist.bild"), state, 0)
        write_star(f"{run}_sampling.star", sampling_tables(state, self.settings, self.seen))
        resolution = [shell_to_resolution(state.progress.resolution_shell, self.seen.box, pixel_size)]
        images = [f"{run}_class001.mrc"]
        write_star(f"{run}_model.star", model_tables(state, state.joined, state.weights[-1], resolution, images, self.seen, self.settings))
        self._write_particles(Path(f"{run}_data.star"), state)

    def _write_particles(self, path: Path, state: State) -> None:
        write_particles(path, with_results(self.particles, state, self.seen).subset(self.order))

    def _write_models(self, root: Path, state: State) -> list[str]:
        halves = len(state.models) > 1
        names = []
        for number, (model, weight) in enumerate(zip(state.models, state.weights)):
            half = number if halves else None
            stem = str(root) if half is None else f"{root}_half{half + 1}"
            images = self._write_references(stem, model)
            resolutions = [self._resolution(model, k) for k in range(model.classes)]
            names.append(f"{stem}_model.star")
            write_star(names[-1], model_tables(state, model, weight, resolutions, images, self.seen, self.settings, half))
            if self.settings.dims == 3:
                for k in range(model.classes):
                    self._write_directions(Path(f"{stem}_class{k + 1:03d}_angdist.bild"), state, k, half)
        return names

    def _write_references(self, stem: str, model: Model) -> list[str]:
        references = model.references.cpu().numpy()
        if model.dims == 2:
            write_stack(f"{stem}_classes.mrcs", references, self.seen.pixel_size)
            return [f"{k:06d}@{stem}_classes.mrcs" for k in range(1, len(references) + 1)]
        names = map_names(stem, len(references))
        for name, reference in zip(names, references):
            write_map(name, reference, self.seen.pixel_size)
        return names

    def _read_references(self, root: Path, state: State) -> State:
        """The state with the references of its iteration, from the files that `_write_references` made."""
        halves = len(state.models) > 1
        for number, model in enumerate(state.models, start=1):
            stem = f"{root}_half{number}" if halves else str(root)
            if self.settings.dims == 2:
                references = read_stack(f"{stem}_classes.mrcs")
            else:
                references = np.stack([read_map(name)[0] for name in map_names(stem, len(model.class_weight))])
            model.references = torch.from_numpy(references).to(self._device)
        return state

    def _resolution(self, model: Model, number: int) -> float:
        """Å, of the last shell where the SSNR is 1, as RELION estimates it; its 999 for a class that shows nothing."""
        shell = class_shell(model.ssnr[number])
        return shell_to_resolution(shell, self.seen.box, self.seen.pixel_size) if shell else NO_RESOLUTION

    def _write_directions(self, path: Path, state: State, number: int, half: int | None = None) -> None:
        """Angular distribution of a class (in one half) as cylinders for ChimeraX: longer and redder where more particles look."""
        angles = state.assignments.angles()[state.assignments.of_class(number, half)].cpu()
        counts = torch.bincount(healpix_pixels(_BILD_ORDER, angles[:, 0], angles[:, 1]), minlength=12 * 4**_BILD_ORDER).double()
        share = (counts / counts.max().clamp(min=1)).tolist()
        views = view_directions(*healpix_directions(_BILD_ORDER))
        centre = self.seen.box * self.seen.pixel_size / 2
        radius = 0.55 * self.seen.box * self.seen.pixel_size
        lines = []
        for view, part in zip(views.tolist(), share):
            if part > 0:
                start, end = ([centre + radius * length * x for x in view] for length in (1.0, 1.0 + 0.3 * part))
                lines.append(f".color {part:.3f} 0 {1 - part:.3f}")
                lines.append(".cylinder " + " ".join(f"{x:.3f}" for x in (*start, *end)) + f" {0.02 * radius:.3f}")
        write_text(path, "\n".join(lines) + "\n")


def run_key(made_with: str, particles: ParticleSet) -> str:
    """By which a saved state is known again: how it was made, and the names of its images in their order."""
    return sha256("\n".join([made_with, *particles.column("image_name").astype(str)]).encode()).hexdigest()


def map_names(stem: str, classes: int) -> list[str]:
    """Files of the maps of so many classes."""
    return [f"{stem}_class{k:03d}.mrc" for k in range(1, classes + 1)]


def _without_maps(state: State) -> State:
    """What is left of a state to be written when its references are files of their own."""
    models = [replace(model, references=model.references.new_zeros(0)) for model in state.models]
    return replace(state, models=models, unfiltered=[])


def intermediate_files(folder: Path) -> Iterator[Path]:
    """Files of all iterations but the last, as RELION's gentle clean removes them: `--continue` goes on from what stays."""
    numbered = [(number, path) for path in folder.iterdir() if (number := number_of(path)) is not None]
    last = max((number for number, _ in numbered), default=0)
    return (path for number, path in sorted(numbered) if number < last)
