"""Small movies with known motion, made without any of the code under test: every atom is drawn where it is in each frame."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class MadeMovie:
    counts: torch.Tensor  # float32 [frames, y, x]
    pixel_size: float
    undo: Callable[[torch.Tensor], torch.Tensor]  # points [n, 2] px -> shifts that undo the motion [n, frames, 2] px, frame 1 = 0


def drift(frames: int, total: float) -> np.ndarray:
    """A curved path [frames, 2] of about `total` px, fast at first."""
    time = np.arange(frames) / (frames - 1)
    return total * np.stack([1 - np.exp(-3 * time), 0.6 * time**2 - 0.3 * time], axis=1)


def local_field(points: np.ndarray, shape: tuple[int, int], frames: int, size: float) -> np.ndarray:
    """Displacements [n, frames, 2]: a dome that opens quickly and then rests, `size` px at the most."""
    place = points / np.array(shape[::-1]) - 0.5
    course = 1 - np.exp(-np.arange(frames) / (frames / 4))
    bent = np.stack([place[:, 0] + place[:, 0] * place[:, 1], place[:, 1] - 0.5 * place[:, 0] ** 2 + 0.1], axis=1)
    return 1.4 * size * course[None, :, None] * bent[:, None, :]


def make_movie(
    shape: tuple[int, int] = (384, 448),
    frames: int = 12,
    pixel_size: float = 2.5,
    dose: float = 9.0,
    contrast: float = 0.25,
    drift_px: float = 8.0,
    local_px: float = 1.5,
    blobs: int = 1500,
    seed: int = 1,
) -> MadeMovie:
    """Dark blobs of 1.3 to 3 px sigma, in clusters, on a bright ground of `dose` counts a pixel and frame; Poisson noise."""
    rng = np.random.default_rng(seed)
    height, width = shape
    clusters = rng.uniform(0, 1, (max(1, blobs // 25), 2)) * [width, height]
    points = clusters[rng.integers(len(clusters), size=blobs)] + rng.normal(0, 12 / pixel_size * 2.5, (blobs, 2))
    sigma = rng.uniform(1.3, 3.0, blobs)

    def displacement(places: np.ndarray) -> np.ndarray:
        return drift(frames, drift_px) + local_field(places, shape, frames, local_px)

    paths = points[:, None] + displacement(points)
    movie = np.ones((frames, height, width))
    reach = np.arange(-10, 11)
    for index in range(frames):
        for (x, y), s in zip(paths[:, index], sigma):
            xs, ys = round(x) + reach, round(y) + reach
            inside_x, inside_y = (xs >= 0) & (xs < width), (ys >= 0) & (ys < height)
            blob = np.exp(-((ys[:, None] - y) ** 2 + (xs[None, :] - x) ** 2) / (2 * s * s))
            movie[index][np.ix_(ys[inside_y], xs[inside_x])] -= contrast * blob[np.ix_(inside_y, inside_x)]
    counts = rng.poisson(dose * np.clip(movie, 0.05, None)).astype(np.float32)

    def undo(places: torch.Tensor) -> torch.Tensor:
        moved = displacement(places.numpy().astype(float))
        return torch.from_numpy(moved[:, :1] - moved)

    return MadeMovie(torch.from_numpy(counts), pixel_size, undo)


def field_points(shape: tuple[int, int], side: int = 9) -> torch.Tensor:
    """A grid of points [side^2, 2] (x, y) over the field."""
    y, x = torch.meshgrid(torch.linspace(0.03, 0.97, side) * shape[0], torch.linspace(0.03, 0.97, side) * shape[1], indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def motion_rms(found: torch.Tensor, true: torch.Tensor) -> float:
    """rms difference of paths [n, frames, 2], px, after the mean over the frames is removed from each."""
    difference = found.double() - true.double()
    difference = difference - difference.mean(dim=1, keepdim=True)
    return float(difference.square().sum(dim=-1).mean().sqrt())
