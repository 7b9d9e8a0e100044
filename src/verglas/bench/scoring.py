"""A run of the recipe on simulated movies against the truth beside them: reads files, scores, decides nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from verglas.bench.measurement import Measurement
from verglas.io.coordinates import read_coordinates
from verglas.io.mrc import read_header, read_map
from verglas.io.star import numbers, read_star
from verglas.micrograph.motion_files import read_motion
from verglas.particles import Micrographs, ParticleSet, read_micrographs, read_particles
from verglas.particles.duplicates import positions_angstrom
from verglas.scores.classes import class_purity, orientation_spread
from verglas.scores.ctf import ctf_errors
from verglas.scores.maps import MapScore, map_fsc_to_truth
from verglas.scores.motion import MotionScore, mean_score, motion_rms
from verglas.scores.picks import PickScore, match_picks, total_score
from verglas.scores.poses import pose_errors
from verglas.volume.fsc import fsc, resolution_shell, shell_to_resolution
from verglas.volume.masks import soft_sphere
from verglas.volume.resample import rescale_map
from verglas.volume.rotations import euler_to_matrix
from verglas.volume.symmetry import normaliser, symmetry_operators

PICK_DISTANCE = 25.0  # Å
SPHERE_EDGE = 10.0  # Å, of the fixed soft sphere that maps are compared in


class Truth:
    """The truth of a simulation, and what all scores share."""

    def __init__(self, simulation: Path) -> None:
        facts = json.loads((simulation / "simulation.json").read_text())
        self.folder = simulation / "truth"
        self.pixel_size, self.symmetry = float(facts["recipe"]["pixel_size"]), str(facts["recipe"]["symmetry"])
        self.diameter = float(facts["recipe"]["diameter"])
        self.field = (facts["settings"]["width"] * self.pixel_size, facts["settings"]["height"] * self.pixel_size)
        self.particles = read_particles(self.folder / "particles.star")
        self.stems = np.array([Path(name).stem for name in self.particles.column("micrograph_name")])
        self.positions = positions_angstrom(self.particles)

    @property
    def radius(self) -> float:
        """Å, of the fixed soft sphere: the particle's half diameter and 10 Å."""
        return self.diameter / 2 + 10.0


def score_run(folders: dict[str, Path], simulation: Path) -> list[Measurement]:
    """Every measurement for which the step's job is in `folders` (step name → job folder, which must exist)."""
    truth = Truth(simulation)
    scorers: dict[str, Callable[[Path, Truth, str], list[Measurement]]] = {
        "motion": score_motion,
        "ctf": score_ctf,
        "pick_log": score_picks,
        "pick_template": score_picks,
        "class2d": score_views,
        "class3d": score_structures,
        "refine_4x": score_refinement,
        "refine_2x": score_final,
    }
    return [line for step, scorer in scorers.items() if step in folders for line in scorer(folders[step], truth, step)]


def score_motion(job: Path, truth: Truth, step: str) -> list[Measurement]:
    """Shifts of the whole model on a grid of 5 × 5 places, each place's mean over the frames removed."""
    scores: list[MotionScore] = []
    for path in sorted((truth.folder / "motion").glob("*.star")):
        found = [file for file in job.rglob(path.name) if file.is_file()]
        if found:
            places, true = _true_motion(path)
            shifts = read_motion(found[0]).shifts_at(torch.from_numpy(places)).numpy().swapaxes(0, 1)
            scores.append(motion_rms(shifts * truth.pixel_size, true * truth.pixel_size))
    total = mean_score(scores)
    return [
        Measurement(step, "motion, rms error over the field", total.rms, "Å", high=1.5),
        Measurement(step, "motion, error as a share of the motion", 100 * total.share, "%", high=10.0),
    ]


def score_ctf(job: Path, truth: Truth, step: str) -> list[Measurement]:
    """Mean defocus and astigmatism of each micrograph."""
    found, true = read_micrographs(job / "micrographs_ctf.star"), read_micrographs(truth.folder / "micrographs.star")
    rows = {Path(name).stem: row for name, row in zip(true.names(), _defocus(true))}
    errors = ctf_errors(_defocus(found), np.array([rows[Path(name).stem] for name in found.names()]))
    return [
        Measurement(step, "defocus, median error", errors.median_defocus, "Å", high=150.0),
        Measurement(step, "defocus, largest error", errors.worst_defocus, "Å", high=600.0),
        Measurement(step, "astigmatism as a vector, median error", float(np.median(errors.astigmatism_vector)), "Å"),
        Measurement(step, "astigmatism's angle, median error", float(np.median(errors.angle)), "°"),
    ]


def score_picks(job: Path, truth: Truth, step: str) -> list[Measurement]:
    """Picks one to one within 25 Å; what lies within the particle's diameter of the border counts neither way."""
    scores: list[PickScore] = []
    for stem in np.unique(truth.stems):
        files = list(job.rglob(f"{stem}_autopick.star"))
        if files:
            picks = read_coordinates(files[0])[["coordinate_x", "coordinate_y"]].to_numpy(np.float64) * truth.pixel_size
            scores.append(match_picks(picks, truth.positions[truth.stems == stem], PICK_DISTANCE, truth.field, truth.diameter))
    total, bar = total_score(scores), 0.85 if step == "pick_template" else None
    return [
        Measurement(step, "picks, precision", total.precision, ""),
        Measurement(step, "picks, recall", total.recall, ""),
        Measurement(step, "picks, F1", total.f1, "", low=bar),
    ]


def score_views(job: Path, truth: Truth, step: str) -> list[Measurement]:
    """How far the true views of a 2D class lie apart, over the particles that are true ones."""
    found, partners = _classes(job, truth)
    directions = euler_to_matrix(torch.from_numpy(truth.particles.subset(partners).angles()))[:, 2].numpy()
    spread = orientation_spread(found, directions, symmetry_operators(truth.symmetry).numpy())
    return [Measurement(step, "views within a class, median distance", float(np.median(spread)), "°")]


def score_structures(job: Path, truth: Truth, step: str) -> list[Measurement]:
    """Purity of the 3D classes, where there is more than one structure."""
    if len(np.unique(truth.particles.column("class_number"))) < 2:
        return []
    found, partners = _classes(job, truth)
    score = class_purity(found, truth.particles.subset(partners).column("class_number").astype(np.int64))
    return [
        Measurement(step, "class purity", 100 * score.purity, "%"),
        Measurement(step, "class purity of one class for all", 100 * score.chance, "%"),
    ]


def _classes(job: Path, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers after the last iteration of the particles that are true ones, and their rows in the truth."""
    particles = read_particles(max(job.glob("run*_it*_data.star"), key=lambda path: path.name.rpartition("_it")[2]))
    rows, partners = _match(particles, truth)
    return particles.column("class_number")[rows].astype(np.int64), partners


def score_refinement(job: Path, truth: Truth, step: str) -> list[Measurement]:
    """Poses of the refined particles that belong to a true one, and the map against the true map."""
    against, _ = map_scores(job, truth)
    return [*_score_poses(job, truth, step), *_map_lines(step, against)]


def score_final(job: Path, truth: Truth, step: str) -> list[Measurement]:
    """As `score_refinement`, and the half maps' resolution under the same soft sphere beside the truth's."""
    against, halves = map_scores(job, truth)
    header = read_header(job / "run_half1_class001_unfil.mrc")
    shell = resolution_shell(halves, 0.143)
    resolution = shell_to_resolution(shell, header.shape[-1], header.pixel_size)
    return [
        *_score_poses(job, truth, step),
        *_map_lines(step, against),
        Measurement(step, f"half maps, FSC 0.143 in a sphere of {truth.radius:.0f} Å", resolution, "Å", high=9.0),
        Measurement(step, "shells between half maps at 0.143 and truth at 0.5", abs(shell - against.shell), "", high=2.0),
    ]


def _score_poses(job: Path, truth: Truth, step: str) -> list[Measurement]:
    particles = read_particles(job / "run_data.star")
    rows, partners = _match(particles, truth)
    kept = particles.subset(rows)
    picked = np.stack([kept.column("coordinate_x"), kept.column("coordinate_y")], axis=1).astype(np.float64) * truth.pixel_size
    figures = pose_errors(
        torch.from_numpy(kept.angles()),
        torch.from_numpy(truth.particles.subset(partners).angles()),
        truth.symmetry,
        found_origins=torch.from_numpy(kept.origins()),
        true_origins=torch.from_numpy(picked - truth.positions[partners]),
    ).summary()
    return [
        Measurement(step, "particles", len(particles), ""),
        Measurement(step, "particles that are true ones", 100 * len(rows) / len(particles), "%"),
        Measurement(step, "pose, median error", figures["pose_median"], "°"),
        Measurement(step, "pose, 90 % below", figures["pose_90"], "°"),
        Measurement(step, "shift, median error", figures["shift_median"], "Å"),
    ]


def _map_lines(step: str, against: MapScore) -> list[Measurement]:
    return [
        Measurement(step, "mirror image (1) or not (0)", float(against.mirrored), ""),
        Measurement(step, "map against truth, FSC 0.5", against.resolution, "Å"),
    ]


def map_scores(job: Path, truth: Truth) -> tuple[MapScore, torch.Tensor]:
    """The mean of the half maps against the true map, and the FSC of the half maps, both in the fixed soft sphere."""
    half1, pixel = read_map(job / "run_half1_class001_unfil.mrc")
    half2, _ = read_map(job / "run_half2_class001_unfil.mrc")
    first, second = torch.from_numpy(half1), torch.from_numpy(half2)
    true_map, true_pixel = read_map(truth.folder / "map.mrc")
    box = len(first)
    true = rescale_map(torch.from_numpy(true_map), true_pixel, pixel, box)
    rotations = normaliser(truth.symmetry)
    score = map_fsc_to_truth((first + second) / 2, true, pixel, radius=truth.radius, edge=SPHERE_EDGE, rotations=rotations)
    sphere = soft_sphere(box, truth.radius / pixel, SPHERE_EDGE / pixel)
    return score, fsc(first * sphere, second * sphere)


def _match(particles: ParticleSet, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Rows of particles, and of the true particles that they are: the nearest within 25 Å in the same micrograph."""
    stems = np.array([Path(name).stem for name in particles.column("micrograph_name")])
    where = positions_angstrom(particles)
    rows, partners = [], []
    for stem in np.unique(stems):
        mine, theirs = np.flatnonzero(stems == stem), np.flatnonzero(truth.stems == stem)
        if len(theirs):
            distance, nearest = cKDTree(truth.positions[theirs]).query(where[mine])
            near = distance <= PICK_DISTANCE
            rows.append(mine[near])
            partners.append(theirs[nearest[near]])
    return np.concatenate(rows), np.concatenate(partners)


def _true_motion(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Places [n, 2] (px) and the shifts that undo the whole motion there [frames, n, 2] (px)."""
    blocks = read_star(path)
    drift, local = blocks["global_shift"], blocks["local_shift"]
    columns = ("rlnCoordinateX", "rlnCoordinateY", "rlnMicrographShiftX", "rlnMicrographShiftY")
    values = np.stack([numbers(local, label, path) for label in columns], axis=1)  # type: ignore[arg-type]
    overall = np.stack([numbers(drift, label, path) for label in columns[2:]], axis=1)  # type: ignore[arg-type]
    values = values.reshape(len(overall), -1, 4)
    return values[0, :, :2], values[..., 2:] + overall[:, None]


def _defocus(micrographs: Micrographs) -> np.ndarray:
    return np.stack([micrographs.column(name) for name in ("defocus_u", "defocus_v", "defocus_angle")], axis=1)
