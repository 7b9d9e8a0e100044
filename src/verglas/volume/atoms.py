"""Density of an atomic model, simple enough to compare a map with: every atom a Gaussian, weighted by its atomic number."""

from __future__ import annotations

import torch

from verglas.volume.filters import bfactor_weights
from verglas.volume.fourier import crop_transform, irfft_centred, rfft_centred


def density_from_atoms(
    position: torch.Tensor, weight: torch.Tensor, size: int, pixel_size: float, bfactor: float = 60.0, oversampling: int = 2
) -> torch.Tensor:
    """A map [size, size, size] of atoms at `position` [n, 3] (x, y, z in Å from the map's centre) of `weight` [n], B-factor in Å².

    Atoms are spread over the eight voxels around them on a finer grid, blurred, and cropped to the map's resolution.
    Atoms outside the box are left out.
    """
    fine = oversampling * size
    place = position.double() * (oversampling / pixel_size) + fine // 2
    corner = place.floor().long()
    part = (place - corner).float()
    inside = ((corner >= 0) & (corner < fine - 1)).all(dim=1)
    corner, part, weight = corner[inside], part[inside], weight[inside].float()
    density = torch.zeros(fine**3, device=position.device)
    for step in torch.cartesian_prod(*[torch.tensor([0, 1], device=position.device)] * 3):
        x, y, z = (corner + step).unbind(1)
        share = torch.where(step.bool(), part, 1 - part).prod(dim=1)
        density.index_add_(0, (z * fine + y) * fine + x, weight * share)
    blur = bfactor_weights(fine, pixel_size / oversampling, bfactor).to(density.device)
    transform = rfft_centred(density.reshape(fine, fine, fine), 3) * blur
    return irfft_centred(crop_transform(transform, fine, size, 3), size, 3)
