"""Small maps with known content."""

import numpy as np
import torch

from verglas.volume.atoms import density_from_atoms
from verglas.volume.masks import radius_grid


def chain(size: int, pixel_size: float, seed: int = 0, atoms: int = 600, radius: float = 24.0, bfactor: float = 120.0) -> torch.Tensor:
    """A lopsided random chain of atoms within about `radius` Å of the centre, of no symmetry."""
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.normal(size=(atoms, 3)) * 3, axis=0)
    place = steps - steps.mean(axis=0)
    place *= radius / np.sqrt((place**2).sum(axis=1)).max()
    density = density_from_atoms(torch.as_tensor(place), torch.ones(atoms), size, pixel_size, bfactor)
    return density / density.max()


def gaussian(size: int, pixel_size: float, centre: tuple[float, float, float], sigma: float) -> torch.Tensor:
    """exp(-|r - centre|² / 2 sigma²), `centre` = (x, y, z) in Å from index N//2."""
    axis = (torch.arange(size, dtype=torch.float64) - size // 2) * pixel_size
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    squared = sum((grid - c) ** 2 for grid, c in zip((x, y, z), centre, strict=True))
    return torch.exp(-squared / (2 * sigma**2)).float()


def centre_of_mass(density: torch.Tensor, pixel_size: float) -> torch.Tensor:
    """(x, y, z) in Å from index N//2."""
    axis = (torch.arange(density.shape[-1], dtype=torch.float64) - density.shape[-1] // 2) * pixel_size
    weight = density.double()
    sums = torch.stack([(weight.sum(dim=dims) * axis).sum() for dims in ((0, 1), (0, 2), (1, 2))])
    return sums / weight.sum()


def ball(size: int, radius: float) -> torch.Tensor:
    """1 within `radius` px of the centre, else 0."""
    return (radius_grid(size) <= radius).float()
