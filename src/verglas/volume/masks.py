"""Masks with soft edges: spheres, circles, and the solvent mask of a map after RELION's `relion_mask_create`.

Masks are 1 inside, 0 outside, and fall as a raised cosine over the edge: ½ + ½ cos(π d / edge) at distance d from the inside.
"""

from __future__ import annotations

import math

import torch

from verglas.errors import InputError
from verglas.volume.filters import lowpass

# Mean volume of a dalton of folded protein at 1.35 g/cm³, Å³ (Harpaz, Gerstein & Chothia, Structure 1994).
PROTEIN_VOLUME = 1.23


def radius_grid(size: int, dims: int = 3, device: torch.device | str | None = None) -> torch.Tensor:
    """Distance of every pixel from the centre (index N//2) in pixels, [size] * dims, float32."""
    axis = torch.arange(size, device=device, dtype=torch.float32) - size // 2
    grids = torch.meshgrid(*[axis] * dims, indexing="ij")
    return torch.stack([grid.square() for grid in grids]).sum(dim=0).sqrt()


def raised_cosine(distance: torch.Tensor, edge: float) -> torch.Tensor:
    """1 where `distance` <= 0, 0 from `edge` on, ½ + ½ cos(π distance / edge) between; a step where edge is 0."""
    if edge <= 0:
        return (distance <= 0).to(distance.dtype)
    return 0.5 + 0.5 * torch.cos(math.pi * (distance / edge).clamp(0, 1))


def soft_sphere(size: int, radius: float, edge: float, device: torch.device | str | None = None) -> torch.Tensor:
    """Sphere about index N//2, [size, size, size] float32: 1 up to `radius` px, 0 from `radius + edge` px on."""
    return raised_cosine(radius_grid(size, 3, device) - radius, edge)


def soft_circle(size: int, radius: float, edge: float, device: torch.device | str | None = None) -> torch.Tensor:
    """Circle about index N//2, [size, size] float32: 1 up to `radius` px, 0 from `radius + edge` px on."""
    return raised_cosine(radius_grid(size, 2, device) - radius, edge)


def solvent_mask(
    density: torch.Tensor, pixel_size: float, *, threshold: float, lowpass_resolution: float = 15.0, extend: float = 3.0, edge: float = 3.0
) -> torch.Tensor:
    """Mask around the density of a map [z, y, x], float32, by RELION's rule.

    Low-pass at `lowpass_resolution` Å (0: none), all voxels of at least `threshold`, grown by every voxel closer than `extend` px
    to them (shrunk if negative), then a raised cosine over `edge` px. Distances are Euclidean and don't wrap around the box.
    Raises InputError when nothing or everything is above the threshold.
    """
    if lowpass_resolution > 0:
        density = lowpass(density, pixel_size, lowpass_resolution)
    inside = density >= threshold
    if not inside.any() or inside.all():
        what = "no" if not inside.any() else "every"
        span = f"{density.min().item():.4g} to {density.max().item():.4g}"
        raise InputError("threshold", f"{what} voxel reaches {threshold:.4g}; the filtered map spans {span}", "Choose a value between")
    if extend > 0:
        inside = distance_to(inside) < extend
    elif extend < 0:
        inside = distance_to(~inside) >= -extend
    return raised_cosine(distance_to(inside), edge)


def distance_to(inside: torch.Tensor) -> torch.Tensor:
    """Euclidean distance in pixels from every voxel to the nearest True one (0 there); float32, computed on the CPU."""
    from scipy.ndimage import distance_transform_edt

    distance = distance_transform_edt(~inside.cpu().numpy())
    return torch.as_tensor(distance, dtype=torch.float32, device=inside.device)


def threshold_for_mass(density: torch.Tensor, pixel_size: float, mass: float, excess: float = 1.0) -> float:
    """The density above which a map holds the volume of `mass` kDa of protein (1.23 Å³ a dalton), times `excess`.

    The map should be low-passed first. Raises InputError when the protein would not fit into the box.
    """
    voxels = round(excess * 1000 * mass * PROTEIN_VOLUME / pixel_size**3)
    if not 0 < voxels < density.numel():
        raise InputError("mass", f"{mass:g} kDa of protein fill {voxels} of the {density.numel()} voxels", "Check mass and pixel size")
    return float(density.flatten().kthvalue(density.numel() - voxels + 1).values)


def otsu_threshold(density: torch.Tensor, bins: int = 512) -> float:
    """The density that best parts a map into particle and solvent: largest variance between the two (Otsu, IEEE Trans. SMC 1979).

    Values inside the sphere that fits in the box are counted; the map should be low-passed first.
    """
    values = density[radius_grid(density.shape[-1], 3, density.device) < density.shape[-1] / 2].double()
    low, high = values.min(), values.max()
    counts = torch.histc(values, bins, low.item(), high.item())
    levels = low + (torch.arange(bins, device=values.device) + 0.5) * (high - low) / bins
    below, mass = counts.cumsum(0), (counts * levels).cumsum(0)
    above = below[-1] - below
    gap = mass / below.clamp(min=1) - (mass[-1] - mass) / above.clamp(min=1)
    best = int((below * above * gap.square()).argmax())
    return float(low + (best + 1) * (high - low) / bins)


def share_of_box(mask: torch.Tensor) -> float:
    """The share of the box's voxels that the mask holds (mask >= ½), 0 to 1."""
    return float((mask >= 0.5).double().mean())
