"""Maps on another grid, turned, shifted or mirrored, always about the centre (index N//2)."""

from __future__ import annotations

import torch

from verglas.volume.fourier import fourier_shift


def rescale_map(density: torch.Tensor, pixel_in: float, pixel_out: float, box_out: int) -> torch.Tensor:
    """A map [z, y, x] of `pixel_in` Å on a grid of exactly `box_out` voxels of exactly `pixel_out` Å, values and centre kept.

    Trigonometric interpolation along each axis, without what the new grid could not hold; 0 beyond the old box. A map that is on
    that grid already is returned as it is, so that a map handed round and round does not change.
    """
    size = density.shape[-1]
    if size == box_out and abs(pixel_in - pixel_out) < 1e-6 * pixel_out:
        return density
    weights = interpolation_matrix(size, pixel_in, pixel_out, box_out).to(density)
    for _ in range(3):  # one axis at a time: the last is interpolated and becomes the first
        density = (density @ weights.T).movedim(-1, 0)
    return density.contiguous()


def interpolation_matrix(size: int, pixel_in: float, pixel_out: float, box_out: int) -> torch.Tensor:
    """Weights [box_out, size] that take samples of `pixel_in` Å to samples of `pixel_out` Å with a common centre, float64.

    They are the periodic sinc of all frequencies below both Nyquist frequencies.
    """
    position = (torch.arange(box_out, dtype=torch.float64) - box_out // 2) * (pixel_out / pixel_in)
    distance = position[:, None] - (torch.arange(size, dtype=torch.float64) - size // 2)
    limit = min(size / 2, size * pixel_in / (2 * pixel_out))
    frequency = torch.arange(1, size // 2 + 1, dtype=torch.float64)
    strength = torch.where(frequency < limit - 1e-9, 2.0, 0.0).double()
    if size % 2 == 0 and limit > size / 2 - 1e-9:
        strength[-1] = 1.0  # the Nyquist frequency of an even size stands for both its signs
    waves = torch.cos(2 * torch.pi / size * distance[..., None] * frequency)
    weights = (1 + waves @ strength) / size
    # a pixel reaches half its width over the box's edge, no further: the box is not periodic
    inside = (position >= -(size // 2) - 0.5) & (position < size - size // 2 - 0.5)
    return weights * inside[:, None]


def rotate_map(density: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """The map [z, y, x] turned about its centre: density at r = (x, y, z) moves to `rotation` [3, 3] r. Cubic splines, on the CPU.

    What comes from outside the box is 0.
    """
    from scipy.ndimage import affine_transform

    # scipy asks for the input index of each output index, in z, y, x order: the inverse rotation with both axes reversed
    inverse = rotation.detach().double().cpu().T.flip(0, 1).numpy()
    centre = density.shape[-1] // 2
    offset = centre - inverse @ ([centre] * 3)
    turned = affine_transform(density.detach().cpu().numpy(), inverse, offset, order=3, mode="constant")
    return torch.as_tensor(turned, dtype=density.dtype, device=density.device)


def shift_map(density: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The map [z, y, x] moved by `shift` [3] = (x, y, z) pixels, around the edges of the box; any fraction of a pixel."""
    return fourier_shift(density, shift, dims=3)


def flip_hand(density: torch.Tensor) -> torch.Tensor:
    """The mirror image of a map [..., x]: x becomes -x about the centre (RELION's `--invert_hand`)."""
    flipped = density.flip(-1)
    return flipped.roll(1, dims=-1) if density.shape[-1] % 2 == 0 else flipped


def centre_of_density(density: torch.Tensor, least: float = 0.2) -> torch.Tensor:
    """Centre (x, y, z) in pixels from index N//2 of what is denser than `least` of a map's maximum, weighted by density, [3]."""
    weight = torch.where(density > least * density.max(), density, 0.0).clamp(min=0)
    line = torch.arange(density.shape[-1], device=density.device, dtype=density.dtype) - density.shape[-1] // 2
    sums = torch.stack([(weight.sum(dim=axes) * line).sum() for axes in ((0, 1), (0, 2), (1, 2))])
    return sums / weight.sum().clamp(min=1e-30)
