"""How the specimen moves while it is exposed: drift of the whole field, bending of the ice, and each particle's own path.

All displacements are in Å, (x, y), of the specimen on the detector, 0 in the first frame. The shift that undoes them is
their negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPATIAL_MODES = 7  # x, x², y, y², xy, and two waves that no quadratic fits


@dataclass(frozen=True)
class Motion:
    """Motion of one movie: `drift` Å [frames, 2]; `modes` [modes, 2, 2], weights of the shapes at two rates; `size` (height, width) px."""

    drift: np.ndarray
    modes: np.ndarray
    size: tuple[int, int]

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.drift)

    def local(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Local displacement at pixels (x, y) [n], Å, float64 [frames, n, 2]."""
        shapes = _shapes(x / self.size[1] - 0.5, y / self.size[0] - 0.5)
        return np.einsum("ft,mtd,mn->fnd", _rates(self.frames), self.modes, shapes)

    def total(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Drift and local displacement together, Å, float64 [frames, n, 2]."""
        return self.drift[:, None] + self.local(x, y)


def draw_motion(frames: int, size: tuple[int, int], drift: float, local: float, random: np.random.Generator) -> Motion:
    """A smooth drift of `drift` Å (0.75 to 1.25 of it, fastest at first) and a local motion of up to `local` Å in the last frame."""
    t = np.linspace(0, 1, frames)
    fast = (1 - np.exp(-5 * t)) / (1 - np.exp(-5))
    length, heading = drift * random.uniform(0.75, 1.25), random.uniform(0, 2 * np.pi)
    along = length * (0.6 * fast + 0.4 * t)
    across = 0.1 * length * np.sin(np.pi * t) * random.choice([-1, 1]) + 0.05 * length * np.sin(2 * np.pi * t) * random.normal()
    cos, sin = np.cos(heading), np.sin(heading)
    path = np.stack([along * cos - across * sin, along * sin + across * cos], axis=1)
    modes = random.normal(size=(SPATIAL_MODES, 2, 2)) * np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.06, 0.06])[:, None, None]
    modes[:, 1] *= 0.4
    motion = Motion(path, modes, size)
    grid = np.stack(np.meshgrid(np.linspace(0, size[1], 9), np.linspace(0, size[0], 9))).reshape(2, -1)
    largest = np.linalg.norm(motion.local(*grid)[-1], axis=1).max()
    return Motion(path, modes * (local / largest if largest > 0 else 0.0), size)


def particle_paths(frames: int, n: int, length: float, random: np.random.Generator) -> np.ndarray:
    """Own paths of `n` particles, smooth, about `length` Å from start to end, float64 [frames, n, 2]."""
    t = np.linspace(0, 1, frames)[:, None, None]
    first, second = random.normal(0, length / np.sqrt(2), (2, 1, n, 2))
    return first * (1 - np.exp(-3 * t)) / (1 - np.exp(-3)) + 0.3 * second * np.sin(np.pi * t)


def _rates(frames: int) -> np.ndarray:
    """Two courses in time, 0 in the first frame, [frames, 2]: fast at first, and steady."""
    t = np.linspace(0, 1, frames)
    return np.stack([(1 - np.exp(-3 * t)) / (1 - np.exp(-3)), t], axis=1)


def _shapes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Shapes of the field at fractions (u, v) of it from its middle, each with mean 0 over the field, [modes, n]."""
    wave_x, wave_y = np.sin(3 * np.pi * u), np.sin(3 * np.pi * v)
    return np.stack([2 * u, 4 * (u * u - 1 / 12), 2 * v, 4 * (v * v - 1 / 12), 4 * u * v, wave_x, wave_y])
