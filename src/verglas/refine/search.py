"""What a pass over the particles compares, and everything that it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from verglas.refine.assignments import Assignments
from verglas.refine.candidates import Candidates
from verglas.refine.grids import GivenPoses, PoseGrid, Shifts
from verglas.refine.model import Model
from verglas.refine.observations import Batch, Observations
from verglas.volume.slices import Pixels

Fit = Literal["", "found", "last"]


@dataclass(frozen=True)
class Search:
    """What an iteration compares, and how finely.

    coarse, score, full: pixels of the coarse pass, of the fine pass, and of the sums (each list begins with the one before).
    local_sigma: degrees, of the Gaussian prior about each particle's pose; None searches everywhere.
    fit: "found" fits poses from the best candidates on (see `pose_fit`), "last" from the last poses, with no search; "" does not.
    correlation: normalised cross-correlation, winner takes all. fraction: of the weight that is kept, in at most `at_most` candidates.
    """

    grid: PoseGrid
    shifts: Shifts
    coarse: Pixels
    score: Pixels
    full: Pixels
    symmetry: str = "C1"
    padding: int = 2
    offset_step: float = 1.0
    local_sigma: float | None = None
    correlation: bool = False
    fraction: float = 0.999
    at_most: int = 500
    half_precision: bool = False
    fit: Fit = ""

    @property
    def max_shell(self) -> int:
        """The last shell of the sums."""
        return int(self.full.shell.max())

    @property
    def given(self) -> bool:
        """Whether each particle keeps its own pose."""
        return isinstance(self.grid, GivenPoses)

    @property
    def cell(self) -> float:
        """Volume of a cell of the fine grid, radians³ px²."""
        angle, offset = math.radians(self.grid.step / 2), self.offset_step / 2
        return angle**3 * offset**2

    @property
    def everywhere(self) -> bool:
        """Whether all images share one list of candidates."""
        return self.local_sigma is None and not self.given


@dataclass
class Found:
    """What a pass found for each of its rows, see `Assignments`; `residual` is Σ|X − CP|² over what the noise explains, [n]."""

    matrices: torch.Tensor
    origins: torch.Tensor
    classes: torch.Tensor
    log_likelihood: torch.Tensor
    max_probability: torch.Tensor
    significant: torch.Tensor
    residual: torch.Tensor


@dataclass(frozen=True)
class Pass:
    """Operands of one pass over particles of one half."""

    seen: Observations
    assignments: Assignments
    model: Model
    search: Search
    candidates: Candidates

    def origins(self, batch: Batch, shifts: torch.Tensor) -> torch.Tensor:
        """Whole origins in Å [b, t, 2] of the batch's images at shifts [t, 2] (pixels, after the whole-pixel move)."""
        whole = self.assignments.whole_shifts(batch.rows, self.seen.pixel_size)
        return (whole[:, None] + shifts[None]) * self.seen.pixel_size

    def log_shift(self, batch: Batch, shifts: torch.Tensor) -> torch.Tensor:
        """Log of the Gaussian prior of the origins [b, t], not normalised; 0 where there is but one shift."""
        if len(shifts) == 1:
            return torch.zeros(len(batch), 1, device=shifts.device)
        return -self.origins(batch, shifts).square().sum(-1) / (2 * self.model.offset_sigma**2)

    def log_class(self) -> torch.Tensor:
        """Log prior of each class [classes], float32."""
        return torch.log(self.model.class_weight.clamp(min=1e-30)).float()
