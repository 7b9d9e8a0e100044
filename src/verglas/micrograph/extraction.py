"""Particle images cut from a micrograph, and where to cut them.

A box starts at trunc(coordinate) − box//2, so the coordinate, its fraction dropped, comes to lie on index box//2 (RELION's rule; the
fraction goes nowhere). When particles are cut again after an alignment, nothing is dropped: see `recentred`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from verglas.micrograph.normalisation import Normalised, normalise
from verglas.volume.fourier import fourier_crop
from verglas.volume.rotations import euler_to_matrix

_PIXELS_AT_ONCE = 1 << 24


def cut_boxes(image: torch.Tensor, centres: np.ndarray, box: int) -> torch.Tensor:
    """Boxes [n, box, box] around the pixels `centres` int64 [n, 2] (x, y); beyond the edge the nearest edge pixel is repeated."""
    offset = torch.arange(box, device=image.device) - box // 2
    x, y = (torch.from_numpy(np.ascontiguousarray(c)).to(image.device)[:, None] + offset for c in np.asarray(centres, np.int64).T)
    height, width = image.shape
    return image[y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]]


def centre_pixels(coordinates: np.ndarray) -> np.ndarray:
    """Pixels int64 [n, 2] that coordinates [n, 2] are cut around: their fraction is dropped, as RELION does."""
    return np.trunc(coordinates).astype(np.int64)


def beyond_edge(centres: np.ndarray, shape: tuple[int, int], box: int) -> np.ndarray:
    """Pixels by which each box [n] reaches over the edge of an image of `shape` (y, x) at most; 0 inside."""
    start = np.asarray(centres) - box // 2
    over = np.maximum(-start, start + box - np.array(shape[::-1]))
    return np.maximum(over, 0).max(axis=1, initial=0)


def centre_inside(centres: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Mask [n] of the centres that lie on an image of `shape` (y, x)."""
    centres = np.asarray(centres)
    return np.all((centres >= 0) & (centres < np.array(shape[::-1])), axis=1)


def recentred(coordinates: np.ndarray, origins: np.ndarray, pixel_size: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """New coordinates (whole pixels) and origins (Å) of aligned particles, each [n, 2], so that they sit nearest to the box's centre.

    A particle cut around trunc(coordinate) sits at trunc(coordinate) − origin / pixel. That place is rounded to the new coordinate,
    and what rounding changes becomes the new origin, at most half a pixel. (RELION 3.1 rounds the shift instead, and keeps the
    fraction of the old coordinate, which it then drops when it cuts.)
    """
    pixel = np.broadcast_to(np.asarray(pixel_size, np.float64), (len(coordinates),))[:, None]
    place = np.trunc(coordinates) - origins / pixel
    new = np.rint(place)
    return new, (new - place) * pixel


def moved_to_point(origins: np.ndarray, angles: np.ndarray, point: tuple[float, float, float]) -> np.ndarray:
    """Origins [n, 2] in Å that put `point` (x, y, z from the map's centre, Å) on the image's centre, for angles [n, 3] in degrees."""
    matrices = euler_to_matrix(torch.from_numpy(np.asarray(angles, np.float64))).numpy()
    return origins - matrices[:, :2] @ np.asarray(point, np.float64)


def particle_images(
    image: torch.Tensor,
    centres: np.ndarray,
    box: int,
    *,
    rescale: int | None = None,
    invert: bool = True,
    normalise_radius: float | None = None,
    ramp: bool = True,
    white_dust: float = -1.0,
    black_dust: float = -1.0,
    seed: int = 1,
) -> Iterator[Normalised]:
    """Batches of images around `centres` [n, 2], in order: cut, rescaled to `rescale` px by Fourier cropping, normalised, inverted.

    normalise_radius: radius of the particle in px of the rescaled box, None to leave values as they are (then an image is unsound
    only where it holds NaN).
    """
    step = max(1, _PIXELS_AT_ONCE // box**2)
    for first in range(0, len(centres), step):
        images = cut_boxes(image, centres[first : first + step], box).float()
        if rescale is not None and rescale != box:
            images = fourier_crop(images, rescale)
        if normalise_radius is None:
            batch = Normalised(images, torch.isfinite(images).all(dim=-1).all(dim=-1))
        else:
            batch = normalise(images, normalise_radius, ramp=ramp, white_dust=white_dust, black_dust=black_dust, seed=seed + first)
        yield Normalised(-batch.images if invert else batch.images, batch.sound)
