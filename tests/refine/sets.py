"""Small simulated sets, the engine's view of them, and scores of what it found."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from verglas.particles import ArrayImages, ParticleSet
from verglas.refine.assignments import Assignments, from_particles, split_halves
from verglas.refine.observations import Observations
from verglas.scores.poses import PoseErrors, pose_errors
from verglas.simulate.particles import simulate_particles
from verglas.simulate.specimen import Specimen
from verglas.simulate.stand_in import stand_in
from verglas.volume.rotations import axis_rotation
from verglas.volume.symmetry import symmetry_operators

DIAMETER = 140.0


@cache
def particles(count: int, box: int, pixel_size: float, snr: float, groups: int = 1) -> tuple[torch.Tensor, ParticleSet, torch.Tensor]:
    """Images, true parameters and the true map."""
    return simulate_particles(count, box, pixel_size, snr=snr, optics_groups=groups)


@cache
def two_states(count: int, box: int, pixel_size: float, snr: float) -> tuple[torch.Tensor, ParticleSet, torch.Tensor]:
    """Half of the particles have their subunits turned by 40° about axes of their own."""
    return simulate_particles(count, box, pixel_size, snr=snr, specimen=[stand_in(), _turned(stand_in())])


def _turned(specimen: Specimen) -> Specimen:
    place = torch.as_tensor(specimen.position)
    one = place[specimen.chain == specimen.chain[0]]
    own = (one - one.mean(0)) @ axis_rotation(torch.tensor([1.0, 2.0, 0.5]).double(), 40.0).T + one.mean(0)
    return replace(specimen, position=torch.cat([own @ operator.T for operator in symmetry_operators("D2")]).numpy())


def seen(images: torch.Tensor, table: ParticleSet, device: str = "cpu") -> Observations:
    """The engine's view of a set."""
    return Observations(table, ArrayImages(images, table.optics.pixel_size), mask_diameter=DIAMETER, device=device)


def without_poses(table: ParticleSet) -> ParticleSet:
    """The set as an extraction would leave it."""
    return table.with_columns(rot=None, tilt=None, psi=None, origin_x=None, origin_y=None)


def unknown(table: ParticleSet, *, halves: bool = False) -> Assignments:
    """Assignments without a pose, a shift or a class."""
    half: np.ndarray | None = split_halves(table, 1)[0] if halves else None
    return from_particles(without_poses(table), len(np.unique(table.column("micrograph_name"))), half)


def errors(found: Assignments, table: ParticleSet, group: str) -> PoseErrors:
    """Pose and shift errors against the truth, modulo the group."""
    true = torch.as_tensor(table.angles()), torch.as_tensor(table.origins())
    return pose_errors(found.angles(), true[0], group, found_origins=found.origins.double(), true_origins=true[1])
