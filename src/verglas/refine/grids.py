"""The poses and shifts that an iteration compares: a coarse grid, and the finer children inside each of its cells.

Poses: one unit of SO(3) (3D), angles in the plane (2D), or each particle's own pose (alignment skipped). All are turned by one
random rotation an iteration, so that successive grids do not repeat each other's gaps. Shifts are in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from verglas.volume.rotations import euler_to_matrix
from verglas.volume.sampling import (
    RotationGrid,
    angular_step,
    psi_children,
    psi_grid,
    random_perturbation,
    rotation_grid,
    shift_children,
    shift_grid,
)


class PoseGrid(Protocol):
    """A list of coarse poses with `fan` children each."""

    fan: int
    step: float  # degrees between coarse poses

    def __len__(self) -> int:
        """Number of coarse poses."""

    def matrices(self, poses: torch.Tensor) -> torch.Tensor:
        """Rotation matrices [m, 3, 3], float32, of coarse poses [m]."""

    def children(self, poses: torch.Tensor) -> torch.Tensor:
        """Rotation matrices [m, fan, 3, 3], float32, of the children of coarse poses [m]."""


class SpaceGrid:
    """One unit of SO(3) under a symmetry group at a HEALPix order; `perturbation` turns it as a whole, P @ matrices."""

    fan = 8

    def __init__(self, order: int, symmetry: str, generator: torch.Generator | None) -> None:
        self._grids = {torch.device("cpu"): rotation_grid(order, symmetry)}
        self.order, self.step = order, angular_step(order)
        self.perturbation = torch.eye(3, dtype=torch.float64)
        if generator is not None:
            self.perturbation = random_perturbation(self.step, generator)

    def __len__(self) -> int:
        return len(self.on(torch.device("cpu")))

    def on(self, device: torch.device) -> RotationGrid:
        """The grid, not turned, with its tensors on `device`."""
        if device not in self._grids:
            self._grids[device] = self.on(torch.device("cpu")).to(device)
        return self._grids[device]

    def matrices(self, poses: torch.Tensor) -> torch.Tensor:
        """See `PoseGrid.matrices`."""
        return (self.perturbation.to(poses.device) @ euler_to_matrix(self.on(poses.device).angles_of(poses))).float()

    def children(self, poses: torch.Tensor) -> torch.Tensor:
        """See `PoseGrid.children`."""
        return (self.perturbation.to(poses.device) @ euler_to_matrix(self.on(poses.device).children(poses))).float()


class PlaneGrid:
    """Angles in the plane, `step` degrees apart, each with two children."""

    fan = 2

    def __init__(self, step: float, generator: torch.Generator | None) -> None:
        turn = (float(torch.rand((), generator=generator, dtype=torch.float64)) - 0.5) if generator is not None else 0.0
        psi = psi_grid(step)
        self.step = 360.0 / len(psi)
        self._psi = psi + turn * self.step

    def __len__(self) -> int:
        return len(self._psi)

    def matrices(self, poses: torch.Tensor) -> torch.Tensor:
        """See `PoseGrid.matrices`."""
        return _in_plane(self._psi[poses.cpu()]).to(poses.device)

    def children(self, poses: torch.Tensor) -> torch.Tensor:
        """See `PoseGrid.children`."""
        return _in_plane(psi_children(self._psi[poses.cpu()], self.step)).to(poses.device)


class GivenPoses:
    """The particles' own poses [n, 3, 3]: pose i belongs to particle i, and is its own only child."""

    fan = 1
    step = 0.0

    def __init__(self, matrices: torch.Tensor) -> None:
        self._matrices = matrices.float()

    def __len__(self) -> int:
        return len(self._matrices)

    def matrices(self, poses: torch.Tensor) -> torch.Tensor:
        """See `PoseGrid.matrices`."""
        return self._matrices[poses.cpu()].to(poses.device)

    def children(self, poses: torch.Tensor) -> torch.Tensor:
        """See `PoseGrid.children`."""
        return self.matrices(poses)[:, None]


@dataclass(frozen=True)
class Shifts:
    """Coarse shifts [t, 2] and their children [t * fan, 2] (x, y), pixels, float32; children of shift j are j * fan …"""

    coarse: torch.Tensor
    fine: torch.Tensor
    fan: int


def shifts_within(offset_range: float, offset_step: float, generator: torch.Generator | None, device: torch.device | str = "cpu") -> Shifts:
    """Shifts on a grid of `offset_step` px within `offset_range` px, moved as a whole by up to half a step, with 4 children each."""
    coarse = shift_grid(offset_range, offset_step)
    if generator is not None:
        coarse = coarse + (torch.rand(2, generator=generator, dtype=torch.float64) - 0.5) * 0.5 * offset_step
    fine = shift_children(coarse, offset_step).reshape(-1, 2)
    return Shifts(coarse.float().to(device), fine.float().to(device), 4)


def no_shift(device: torch.device | str = "cpu") -> Shifts:
    """The one shift of 0."""
    zero = torch.zeros(1, 2, device=device)
    return Shifts(zero, zero, 1)


def _in_plane(psi: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros_like(psi)
    return euler_to_matrix(torch.stack([zero, zero, psi], dim=-1)).float()
