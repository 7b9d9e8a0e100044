"""The files that a job left against the truth of its set: figures by name, whichever engine wrote the files.

Lengths are Å, angles degrees, resolutions Fourier shells of the set's box. Maps are compared in a fixed soft sphere with the
particle mask's radius. See `measures` for what each figure means.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from verglas.errors import InputError
from verglas.io.mrc import read_map
from verglas.particles import ParticleSet, read_particles
from verglas.scores.classes import class_purity, class_shift_errors, orientation_spread
from verglas.scores.maps import fsc_area, fsc_in_sphere, map_fsc_to_truth
from verglas.scores.poses import pose_errors
from verglas.simulate.particle_sets import FACTS
from verglas.volume.fsc import resolution_shell
from verglas.volume.rotations import euler_to_matrix
from verglas.volume.symmetry import normaliser, symmetry_operators

Scores = dict[str, float]
EDGE = 10.0  # Å, of the soft sphere
NEAR_VIEW = 20.0  # degrees within which a view belongs to the middle one of its 2D class


@dataclass(frozen=True)
class Truth:
    """A set's folder, opened."""

    folder: Path

    @cached_property
    def facts(self) -> dict[str, object]:
        """What `set.json` says."""
        return json.loads((self.folder / FACTS).read_text())  # type: ignore[no-any-return]

    @property
    def symmetry(self) -> str:
        """Point group of every state."""
        return str(self.facts["symmetry"])

    @property
    def radius(self) -> float:
        """Of the sphere in which maps are compared, Å."""
        return float(str(self.facts["mask_diameter"])) / 2

    @cached_property
    def particles(self) -> ParticleSet:
        """True rows."""
        return read_particles(self.folder / "truth.star")

    def state(self, number: int) -> tuple[torch.Tensor, float]:
        """True map of a state, counted from 1, and its pixel size."""
        return load(self.folder / f"truth/state{number}.mrc")

    def partners(self, found: ParticleSet, where: Path) -> ParticleSet:
        """The true row of each particle, by its image. Raises InputError for an image that is not of the set."""
        rows = {name: row for row, name in enumerate(self.particles.column("image_name"))}
        try:
            return self.particles.subset(np.array([rows[name] for name in found.column("image_name")], np.int64))
        except KeyError as error:
            raise InputError(where, f"holds image {error}, which is not of {self.folder}", "Score a job with its own set") from error


def score_job(job: str, folder: Path, set_folder: Path) -> Scores:
    """All figures of a finished job. Raises InputError where its files are not those of the set, FileNotFoundError where some miss."""
    scorers: dict[str, Callable[[Path, Truth], Scores]] = {
        "Class2D": score_classes_2d,
        "Class3D": score_classes_3d,
        "Refine3D": score_refinement,
        "InitialModel": score_initial_model,
    }
    return scorers[job](folder, Truth(set_folder))


def score_refinement(folder: Path, truth: Truth) -> Scores:
    """Poses, the half maps against each other, and their mean against the true map (of the commonest state)."""
    half1, pixel = load(folder / "run_half1_class001_unfil.mrc")
    half2, _ = load(folder / "run_half2_class001_unfil.mrc")
    halves = fsc_in_sphere(half1, half2, pixel, radius=truth.radius, edge=EDGE)
    states = truth.particles.column("class_number").astype(np.int64)
    commonest = int(np.bincount(states).argmax())
    poses = pose_figures(folder / "run_data.star", truth)
    return poses | {"half_shell": resolution_shell(halves, 0.143)} | map_figures((half1 + half2) / 2, truth, commonest)


def score_classes_3d(folder: Path, truth: Truth) -> Scores:
    """Purity, poses, and for each true state the map of the class that holds most of its particles."""
    path = last_data(folder)
    found = read_particles(path)
    states = truth.partners(found, path).column("class_number").astype(np.int64)
    score = class_purity(found.column("class_number").astype(np.int64), states)
    figures = {"purity": 100 * score.purity, "chance": 100 * score.chance} | pose_figures(path, truth)
    for column, state in enumerate(score.true):
        number = int(score.found[score.confusion[:, column].argmax()])
        density, _ = load(folder / path.name.replace("_data.star", f"_class{number:03d}.mrc"))
        figures |= {f"state{state}_{name}": value for name, value in map_figures(density, truth, int(state)).items()}
    return figures


def score_classes_2d(folder: Path, truth: Truth) -> Scores:
    """How far apart the true views of a class lie, and the origins after each average's own offset."""
    path = last_data(folder)
    found = read_particles(path)
    label, true = found.column("class_number").astype(np.int64), truth.partners(found, path)
    return {"particles": len(found)} | class_figures_2d(label, found.angles()[:, 2], found.origins(), true, truth.symmetry)


def class_figures_2d(label: np.ndarray, psi: np.ndarray, origins: np.ndarray, true: ParticleSet, symmetry: str) -> Scores:
    """Views and shifts of 2D classes: found label, psi (degrees) and origins (Å) [n, …] of the particles whose true rows are `true`."""
    directions = euler_to_matrix(torch.from_numpy(true.angles()))[:, 2].numpy()
    spread = orientation_spread(label, directions, symmetry_operators(symmetry).numpy())
    shifts = class_shift_errors(label, psi, origins, true.origins())
    return {
        "classes": len(np.unique(label)),
        "view_median": float(np.median(spread)),
        "view_90": float(np.quantile(spread, 0.9)),
        "near_views": 100 * float((spread < NEAR_VIEW).mean()),
        "shift_median": float(np.median(shifts)),
    }


def score_initial_model(folder: Path, truth: Truth) -> Scores:
    """The map against the true one wherever, however and in whichever hand it lies."""
    path = folder / "initial_model.mrc"
    if not path.exists():
        path = max(folder.glob("run_it*_class001.mrc"))
    density, _ = load(path)
    return map_figures(density, truth, 1, anywhere=True)


def pose_figures(path: Path, truth: Truth) -> Scores:
    """Errors of the poses and origins of a particle STAR, modulo the group, its normaliser and the mirror."""
    found = read_particles(path)
    true = truth.partners(found, path)
    return {"particles": len(found)} | pose_figures_of(found.angles(), found.origins(), true, truth.symmetry)


def pose_figures_of(angles: np.ndarray, origins: np.ndarray, true: ParticleSet, symmetry: str) -> Scores:
    """Errors of found angles (degrees) and origins (Å) [n, …] of the particles whose true rows are `true`."""
    found_angles, true_angles, found_origins, true_origins = (
        torch.from_numpy(values) for values in (angles, true.angles(), origins, true.origins())
    )
    errors = pose_errors(found_angles, true_angles, symmetry, found_origins=found_origins, true_origins=true_origins).summary()
    wanted = ("pose_median", "pose_90", "within_10_degrees", "shift_median", "shift_90")
    return {name: errors[name] for name in wanted}


def map_figures(density: torch.Tensor, truth: Truth, state: int, *, anywhere: bool = False) -> Scores:
    """Shells at FSC 0.5 and 0.143 against a true state, and the area under the FSC; `anywhere`: all rotations are tried."""
    true, pixel = truth.state(state)
    rotations = None if anywhere else normaliser(truth.symmetry)
    score = map_fsc_to_truth(density, true, pixel, radius=truth.radius, edge=EDGE, rotations=rotations)
    figures: Scores = {"truth_shell": score.shell, "truth_shell_143": resolution_shell(score.fsc, 0.143), "fsc_area": fsc_area(score.fsc)}
    return figures | ({"mirrored": float(score.mirrored)} if anywhere else {})


def last_data(folder: Path) -> Path:
    """The particle STAR of the last iteration. Raises FileNotFoundError where there is none."""
    found = sorted(folder.glob("run_it*_data.star"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no run_itNNN_data.star")
    return found[-1]


def load(path: Path) -> tuple[torch.Tensor, float]:
    """A map and its pixel size, Å."""
    density, pixel = read_map(path)
    return torch.from_numpy(density), pixel
