"""What is known of each particle: pose, shift, class, half set, and its corrections of strength."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from verglas.particles import ParticleSet
from verglas.volume.rotations import euler_to_matrix, matrix_to_euler


@dataclass
class Assignments:
    """One row a particle, all on one device.

    matrices float32 [n, 3, 3]; origins float32 [n, 2] (Å, the shift that centres the particle); classes int64 [n] from 0;
    half int64 [n] (0 or 1); norm float32 [n], mean 1; scale float32 [micrographs], mean 1; log_likelihood, max_probability
    float32 [n]; significant int64 [n].
    """

    matrices: torch.Tensor
    origins: torch.Tensor
    classes: torch.Tensor
    half: torch.Tensor
    norm: torch.Tensor
    scale: torch.Tensor
    log_likelihood: torch.Tensor
    max_probability: torch.Tensor
    significant: torch.Tensor

    def __len__(self) -> int:
        return len(self.matrices)

    def whole_shifts(self, rows: torch.Tensor, pixel_size: float) -> torch.Tensor:
        """Origins in pixels, rounded, int64 [b, 2]: what images are moved by before they are masked."""
        return (self.origins[rows] / pixel_size).round().long()

    def part_shifts(self, rows: torch.Tensor, pixel_size: float) -> torch.Tensor:
        """The rest of the origins, less than half a pixel, float32 [b, 2]."""
        origins = self.origins[rows] / pixel_size
        return origins - origins.round()

    def angles(self) -> torch.Tensor:
        """rot, tilt, psi in degrees, float64 [n, 3]."""
        return matrix_to_euler(self.matrices.double())

    def of_class(self, number: int, half: int | None = None) -> torch.Tensor:
        """Whether each particle is in a class, from 0, and in a half (0 or 1; None: in either), bool [n]."""
        found = self.classes == number
        return found if half is None else found & (self.half == half)

    def copy(self) -> Assignments:
        """A copy with tensors of its own."""
        return replace(self, **{field.name: getattr(self, field.name).clone() for field in fields(self)})


def from_particles(
    particles: ParticleSet, scale_groups: int, half: np.ndarray | None = None, device: torch.device | str = "cpu"
) -> Assignments:
    """Poses and origins as the particles have them (0 where they have none), strengths 1, class 1."""
    n = len(particles)
    return Assignments(
        euler_to_matrix(torch.as_tensor(particles.angles())).float().to(device),
        torch.as_tensor(particles.origins(), dtype=torch.float32, device=device),
        torch.zeros(n, dtype=torch.long, device=device),
        torch.as_tensor(np.zeros(n, np.int64) if half is None else half, dtype=torch.long, device=device),
        torch.ones(n, device=device),
        torch.ones(scale_groups, device=device),
        torch.zeros(n, device=device),
        torch.zeros(n, device=device),
        torch.zeros(n, dtype=torch.long, device=device),
    )


def split_halves(particles: ParticleSet, seed: int) -> tuple[np.ndarray, str]:
    """Half set (0 or 1) of each particle, and what was done: a valid split is kept, otherwise a seeded one is made.

    A split is valid when it holds 1 and 2 only and the smaller half has at least a fifth of the particles. A new one depends on
    the seed and the images' names, not on the order of the rows.
    """
    if "half" in particles:
        given = particles.column("half").astype(np.int64)
        if np.isin(given, (1, 2)).all() and min((given == 1).sum(), (given == 2).sum()) * 5 >= len(given):
            return given - 1, "half sets kept as given"
        found = ", ".join(f"{value}: {count}" for value, count in zip(*np.unique(given, return_counts=True)))
        note = f"half sets in the particle file cannot be used ({found}); a new random split was made"
    else:
        note = "particles split into random halves"
    order = np.argsort(particles.column("image_name").astype(str), kind="stable")
    half = np.empty(len(particles), np.int64)
    half[order] = np.random.default_rng(seed).permutation(len(particles)) % 2
    return half, note
