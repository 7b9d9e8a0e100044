"""Amorphous ice behind the particles: a granular phase pattern that moves with the sample and slowly rearranges.

The spectrum of the projected potential of `t` Å of ice is t · n · f(k)² · S(k), with n molecules a Å³, f the scattering
factor of water and S its structure factor; it is seen through the CTF, as the particles are. The water diffuses under
the beam (McMullan et al. 2015), so that successive frames share a pattern only at low frequency.
"""

from __future__ import annotations

import numpy as np
import torch

from verglas.simulate.potential import VOLT_ANGSTROM_SQUARED, WATER_DENSITY, scattering_factor

TILE, OVERLAP = 512, 128
FINEST = 3.5  # Å: the pattern has nothing beyond, the water ring is at 3.7 Å


class Ice:
    """The pattern of one movie as tiles, each of which is shifted in Fourier space by the motion where it lies."""

    def __init__(
        self, shape: tuple[int, int], pixel_size: float, transfer: torch.Tensor, keep: torch.Tensor, random: np.random.Generator
    ) -> None:
        """`transfer`: amplitude of the pattern's intensity [TILE, TILE//2+1]; `keep`: share that stays from frame to frame."""
        self.shape, self.random = shape, random
        cut = min(TILE // 2 - 1, int(TILE * pixel_size / FINEST))
        self._rows = torch.cat([torch.arange(cut + 1), torch.arange(TILE - cut, TILE)])
        self._columns = cut + 1
        self._amplitude = transfer[self._rows, : self._columns] * (0.5 * TILE**2 / pixel_size**2) ** 0.5
        self._keep = keep[self._rows, : self._columns]
        self._fresh = (1 - self._keep**2).sqrt()
        self._starts = [_starts(extent) for extent in shape]
        self._window = _window()
        self._state = self._draw()

    @property
    def centres(self) -> np.ndarray:
        """Middle of each tile, px (x, y), [tiles, 2]."""
        y, x = np.meshgrid(*[np.array(starts) + TILE / 2 for starts in self._starts], indexing="ij")
        return np.stack([x.ravel(), y.ravel()], axis=1)

    def frame(self, displacement: np.ndarray) -> torch.Tensor:
        """Change of intensity in the next frame, float32 [y, x]; `displacement` of each tile in px [tiles, 2] (x, y)."""
        field = torch.zeros(self.shape)
        ky = torch.fft.fftfreq(TILE)[self._rows]
        kx = torch.arange(self._columns) / TILE
        spectrum = torch.zeros(TILE, TILE // 2 + 1, dtype=torch.complex64)
        places = [(y, x) for y in self._starts[0] for x in self._starts[1]]
        for state, (y, x), (dx, dy) in zip(self._state, places, displacement.tolist()):
            phase_y, phase_x = _turn(ky * dy), _turn(kx * dx)
            spectrum[self._rows, : self._columns] = state * self._amplitude * phase_y[:, None] * phase_x
            tile = torch.fft.irfft2(spectrum, s=(TILE, TILE)) * self._window
            add_patch(field, tile, y, x)
        self._state = self._state * self._keep + self._draw() * self._fresh
        return field

    def _draw(self) -> torch.Tensor:
        tiles = len(self._starts[0]) * len(self._starts[1])
        values = self.random.standard_normal((tiles, len(self._rows), self._columns, 2), dtype=np.float32)
        return torch.view_as_complex(torch.from_numpy(values))


def phase_spectrum(frequency: torch.Tensor, thickness: float, interaction: float) -> torch.Tensor:
    """Power spectral density (rad² Å²) of the phase that `thickness` Å of ice gives, at frequencies in 1/Å."""
    factor = sum(
        count * sum(a * torch.exp(-b * frequency**2 / 4) for a, b in zip(*scattering_factor(element)))
        for element, count in (("O", 1), ("H", 2))
    )
    structure = (
        0.05
        + 1.2 * torch.exp(-((frequency / 0.015) ** 2))  # uneven thickness
        + 1.6 * torch.exp(-(((frequency - 0.27) / 0.06) ** 2))  # the water ring
    )
    return thickness * WATER_DENSITY * (interaction * VOLT_ANGSTROM_SQUARED * factor) ** 2 * structure


def kept_between_frames(frequency: torch.Tensor, mean_square: float) -> torch.Tensor:
    """Share of the pattern's amplitude that survives water moving by `mean_square` Å² along each axis."""
    return torch.exp(-2 * np.pi**2 * frequency**2 * mean_square)


def _starts(extent: int) -> list[int]:
    hop = TILE - OVERLAP
    count = max(1, -(-(extent + OVERLAP) // hop)) if extent + OVERLAP > TILE else 1
    return [hop * i - OVERLAP // 2 for i in range(count)]


def _window() -> torch.Tensor:
    """Squares of neighbouring windows add up to one: patterns that don't know each other keep their power where they meet."""
    ramp = torch.sin(0.5 * np.pi * (torch.arange(OVERLAP) + 0.5) / OVERLAP)
    line = torch.cat([ramp, torch.ones(TILE - 2 * OVERLAP), ramp.flip(0)])
    return line[:, None] * line


def _turn(cycles: torch.Tensor) -> torch.Tensor:
    return torch.polar(torch.ones_like(cycles), -2 * np.pi * cycles)


def add_patch(field: torch.Tensor, tile: torch.Tensor, y: int, x: int) -> None:
    """Add a tile with its first pixel at (y, x) to `field` in place, cut at the edges of the field."""
    top, left = max(0, y), max(0, x)
    bottom, right = min(field.shape[0], y + tile.shape[0]), min(field.shape[1], x + tile.shape[1])
    if top < bottom and left < right:
        field[top:bottom, left:right] += tile[top - y : bottom - y, left - x : right - x]
