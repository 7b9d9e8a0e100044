"""The starts of an InitialModel run: each made or gone on with, compared with the best, and turned to its symmetry.

A start has a folder: `state.pt`, exact and of its last iteration, is what the same command goes on from; the maps are to be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.jobs.declaration import Job

if TYPE_CHECKING:
    import torch

    from verglas.refine.initial_model import InitialModel, Settings, State
    from verglas.refine.observations import Observations

_JUDGED = 500  # particles that starts are compared by


@dataclass
class Start:
    """A finished start: its settings, final state, and mean log-likelihood gained by the maps and by their spherical averages."""

    model: InitialModel
    state: State
    gain: float
    spherical: float


def run_start(job: Job, seen: Observations, number: int) -> Start:
    """All iterations of one start."""
    from verglas.refine.initial_model import InitialModel, spherical

    model = InitialModel(seen, settings_of(job.params, number), job.ranks)
    state = _iterated(job, model, model.start(), job.params.iterations, f"start {number + 1}")
    rows = model.sample(_JUDGED)
    gain, sphere = model.mean_log_likelihood(state, rows), model.mean_log_likelihood(spherical(state), rows)
    job.say(f"start {number + 1}: mean log-likelihood gained {gain:.2f}, by its spherical average {sphere:.2f}")
    return Start(model, state, gain, sphere)


def _iterated(job: Job, model: InitialModel, state: State, last: int, name: str, begun_from: str = "") -> State:
    """The state after iteration `last`, from `state` or from the last of the same run that was saved; each is saved.

    `begun_from` tells what else the run began from than its settings and particles. The maps are left every `write_every` iterations.
    """
    from verglas.refine.state import save_tensors

    folder, key = job.out / name.replace(" ", ""), _key(job, model, begun_from)
    saved = job.ranks.told(lambda: _load(folder / "state.pt", key, state))
    if saved is not None:
        job.say(f"{name}: going on after iteration {saved.iteration}")
        state = saved
    with job.progress(name, last) as bar:
        bar.advance(state.iteration)
        while state.iteration < last:
            job.check_stop()
            state = model.step(state)
            bar.advance()
            if job.ranks.first:
                if state.iteration % job.params.write_every == 0 or state.iteration == last:
                    _write_maps(folder, state, model.seen.pixel_size)
                save_tensors(folder / "state.pt", {"key": key, **vars(state)})
    return state


def _key(job: Job, model: InitialModel, begun_from: str) -> str:
    """What a saved state must have been made with to be gone on from."""
    from verglas.refine.output import run_key

    how = (model.settings, job.params.do_ctf_correction, job.params.ctf_intact_first_peak, begun_from)
    return run_key(repr(how), model.seen.particles)


def _load(path: Path, key: str, like: State) -> State | None:
    """The state in a file that was written under this key, on the devices of `like`; None without one that can be read."""
    from verglas.errors import FileFormatError
    from verglas.refine.initial_model import State
    from verglas.refine.state import load_tensors

    if not path.exists():
        return None
    try:
        content = load_tensors(path, "cpu")
        return None if content.pop("key") != key else State(**(content | {"maps": content["maps"].to(like.maps)}))
    except (FileFormatError, KeyError, TypeError):  # damaged, or another version's
        return None


def _write_maps(folder: Path, state: State, pixel_size: float) -> None:
    from verglas.io.mrc import write_map
    from verglas.refine.output import map_names

    for name, density in zip(map_names(str(folder / f"run_it{state.iteration:03d}"), len(state.maps)), state.maps.cpu().numpy()):
        write_map(name, density, pixel_size)


def digest_of(maps: torch.Tensor) -> str:
    """By which maps [K, N, N, N] are known again."""
    from hashlib import sha256

    return sha256(maps.cpu().numpy().tobytes()).hexdigest()


def largest_class(state: State) -> torch.Tensor:
    """The map of the class with most particles, on the CPU."""
    return state.maps[int(state.shares.argmax())].cpu()


def agreement(start: Start, best: Start) -> tuple[float, bool]:
    """Resolution in Å to which the map of a start agrees with the best one's (FSC 0.5 in the mask's sphere), and whether mirrored.

    No finer than that of the starts; `NO_RESOLUTION` where they have nothing in common.
    """
    from verglas.refine.relion_tables import NO_RESOLUTION
    from verglas.scores.maps import map_fsc_to_truth
    from verglas.volume.symmetry import has_free_axis, normaliser

    if start is best:
        return start.model.settings.fin_resolution, False
    settings, pixel_size = start.model.settings, start.model.seen.pixel_size
    rotations = None if has_free_axis(settings.symmetry) else normaliser(settings.symmetry)
    radius = settings.mask_diameter / 2
    score = map_fsc_to_truth(
        largest_class(start.state),
        largest_class(best.state),
        pixel_size,
        radius=radius,
        rotations=rotations,
        align_to=1.5 * settings.fin_resolution,
    )
    return min(max(score.resolution, settings.fin_resolution), NO_RESOLUTION), score.mirrored


def symmetrised_start(job: Job, start: Start, last_iteration: int) -> Start:
    """The maps of a start in C1 turned to the axes of the wanted group, and iterated under it."""
    from dataclasses import replace

    from verglas.refine.initial_model import InitialModel

    model, seen, group = start.model, start.model.seen, job.params.symmetry
    radius, shell = job.params.mask_diameter / 2 / seen.pixel_size, model.stage(job.params.iterations).shell
    model = InitialModel(seen, replace(model.settings, symmetry=group), job.ranks)
    state = job.ranks.told(lambda: _turned(job, start, radius, shell))
    state = _iterated(job, model, state, last_iteration, "symmetrised", digest_of(start.state.maps))
    return Start(model, state, start.gain, start.spherical)


def _turned(job: Job, start: Start, radius: float, shell: int) -> State:
    """The state of a start whose maps are turned to their symmetry's axes and averaged over it; `radius` in pixels."""
    import torch

    from verglas.refine.initial_model import State
    from verglas.volume.axes import find_axes
    from verglas.volume.symmetry import symmetrise_map

    group, maps = job.params.symmetry, []
    for number, density in enumerate(start.state.maps.cpu(), start=1):
        found = find_axes(density, group, radius=radius, max_shell=shell)
        job.say(f"class {number}: axes of {group} found with a mean self-correlation of {found.correlation:.2f}")
        job.record[f"axes_correlation_class{number}"] = found.correlation
        maps.append(symmetrise_map(found.apply(density), group).to(start.state.maps))
    return State(start.state.iteration, torch.stack(maps), start.state.shares)


def settings_of(params: Any, number: int) -> Settings:
    """The engine's settings for start `number`, from 0, which has a seed of its own."""
    from math import degrees

    from verglas.refine.initial_model import Settings

    # an arc of 1.6 times the resolution at the particle's rim, seen from its centre
    angle = params.angle or min(15.0, max(7.5, degrees(1.6 * params.sgd_fin_resol / params.mask_diameter)))
    return Settings(
        mask_diameter=params.mask_diameter,
        symmetry="C1" if params.do_run_C1 else params.symmetry,
        classes=params.classes,
        iterations=params.iterations,
        ini_resolution=params.sgd_ini_resol,
        fin_resolution=params.sgd_fin_resol,
        ini_batch=params.sgd_ini_subset,
        fin_batch=max(params.sgd_ini_subset, params.sgd_fin_subset),
        offset_range=params.offset_range,
        offset_step=params.offset_step or params.sgd_fin_resol / 3,
        angle=angle,
        seed=params.random_seed + 7919 * number,
    )
