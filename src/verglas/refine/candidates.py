"""Slices of the candidates: the references' projector and a pose grid under one numbering.

Coarse candidate c stands for class c // len(grid) in pose c % len(grid); its children are c * fan … c * fan + fan − 1.
"""

from __future__ import annotations

import torch

from verglas.refine.grids import PoseGrid
from verglas.refine.score import reals
from verglas.volume.slices import Pixels, Projector


class Candidates:
    """Slices of `references` [classes, N, …] at the poses of a grid, up to `max_shell`."""

    def __init__(self, references: torch.Tensor, grid: PoseGrid, max_shell: int, padding: int) -> None:
        self.grid, self.classes = grid, len(references)
        self.projector = Projector(references, max_shell, padding)

    def __len__(self) -> int:
        return self.classes * len(self.grid)

    def class_of(self, coarse: torch.Tensor) -> torch.Tensor:
        """Class of coarse candidates [m]."""
        return coarse // len(self.grid)

    def coarse(self, candidates: torch.Tensor, pixels: Pixels) -> torch.Tensor:
        """Slices of coarse candidates [m] as real pairs [m, 2k]."""
        return self._project(*self.families(candidates, 1), pixels)

    def slices(self, candidates: torch.Tensor, fan: int, pixels: Pixels) -> torch.Tensor:
        """Slices of coarse candidates [m], or of all their `fan` children, as real pairs [m * fan, 2k]."""
        return self._project(*self.families(candidates, fan), pixels)

    def families(self, candidates: torch.Tensor, fan: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrices [m * fan, 3, 3] and classes [m * fan] of coarse candidates (fan 1) or of all their children."""
        poses, classes = candidates % len(self.grid), self.class_of(candidates)
        if fan == 1:
            return self.grid.matrices(poses), classes
        return self.grid.children(poses).flatten(0, 1), classes.repeat_interleave(fan)

    def fine(self, candidates: torch.Tensor, pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Slices [m, 2k], matrices [m, 3, 3] and classes [m] of single children."""
        matrices, classes = self.fine_poses(candidates)
        return self._project(matrices, classes, pixels), matrices, classes

    def fine_poses(self, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrices [m, 3, 3] and classes [m] of single children."""
        parents = candidates // self.grid.fan
        fan = self.grid.children(parents % len(self.grid))
        return fan[torch.arange(len(parents), device=fan.device), candidates % self.grid.fan], self.class_of(parents)

    def _project(self, matrices: torch.Tensor, classes: torch.Tensor, pixels: Pixels) -> torch.Tensor:
        return reals(self.projector.project(matrices, pixels, classes))
