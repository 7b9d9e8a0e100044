"""The electrostatic potential of a specimen in ice, absolute, and its projections.

V(r) = 47.88 V·Å² · Σ f(r), f the electron scattering factor (five Gaussians: Peng 1999; International Tables C, 4.3.2.2),
widened by the B factor, less the mean inner potential of the ice that the atoms displace (Gaussians of the atom's volume:
Fraser, MacRae & Suzuki 1978; 1.212 Å³ a dalton).
"""

from __future__ import annotations

from functools import cache

import gemmi
import numpy as np
import torch

from verglas.simulate.specimen import Specimen
from verglas.volume.fourier import fourier_crop

VOLT_ANGSTROM_SQUARED = 47.878  # h² / (2π m e)
ICE_POTENTIAL = 4.5  # V, mean inner potential of amorphous ice
VOLUME_PER_DALTON = 1.212  # Å³
CHUNK = 64  # atoms laid on the grid at once: few enough to stay in the cache
FINEST_STEP = 0.75  # Å: atoms with B of 20 Å² and more are sampled without aliasing
WATER_FACTOR = 3.04  # Å, electron scattering factor of a water molecule at zero angle
WATER_DENSITY = 0.0311  # molecules a Å³ of amorphous ice


def potential_map(specimen: Specimen, box: int, pixel_size: float) -> torch.Tensor:
    """The specimen's potential above that of the ice, V, float32 [box, box, box] (z, y, x), centre at index box // 2.

    Atoms are laid on a finer grid (0.75 Å or less), whose spectrum is then cut, so that the map holds no aliased frequencies.
    """
    factor = max(2, int(np.ceil(pixel_size / FINEST_STEP)))
    fine, step = factor * box, pixel_size / factor
    grid = torch.zeros(fine**3, dtype=torch.float32)
    weights, widths = _gaussians(specimen)
    half = int(np.ceil(3.7 * widths.max() / step))
    for first in range(0, len(specimen.position), CHUNK):
        part = slice(first, first + CHUNK)
        _splat(grid, specimen.position[part] / step + fine // 2, weights[part], widths[part] / step, half, fine, step)
    return fourier_crop(grid.view(fine, fine, fine), box, 3)


def scattering_factor(element: str) -> tuple[np.ndarray, np.ndarray]:
    """Electron scattering factor as Σ a exp(−b k²/4), k in 1/Å: a (Å) and b (Å²), [5] each."""
    coefficients = np.array(gemmi.Element(element).c4322.get_coefs())
    return coefficients[:5], coefficients[5:]


class Projector:
    """Central slices of a map, on the CPU or a GPU: [z, y, x] map → projections through Fourier space, padded twice."""

    def __init__(self, volume: torch.Tensor) -> None:
        self.box = volume.shape[-1]
        size = 2 * self.box
        offset = torch.arange(self.box, device=volume.device) - self.box // 2
        sinc2 = torch.sinc(offset / size) ** 2
        padded = torch.zeros(size, size, size, device=volume.device)
        low = size // 2 - self.box // 2
        inside = slice(low, low + self.box)
        padded[inside, inside, inside] = volume / (sinc2[:, None, None] * sinc2[:, None] * sinc2)
        transform = torch.fft.rfftn(torch.fft.ifftshift(padded))
        transform = torch.fft.fftshift(transform, dim=(0, 1))
        self._grid = torch.view_as_real(transform).permute(3, 0, 1, 2)[None].contiguous()

    def slices(self, matrices: torch.Tensor) -> torch.Tensor:
        """Transforms of the projections for rotations A [n, 3, 3], complex64 [n, box, box//2 + 1]; RELION's geometry.

        Half layout (ky in FFT order, kx ≥ 0), origin at box // 2, in units of map value · pixels.
        """
        device = self._grid.device
        ky = torch.fft.fftfreq(self.box, 1 / self.box, device=device)
        kx = torch.arange(self.box // 2 + 1, device=device, dtype=torch.float32)
        k = torch.stack([kx.expand(self.box, -1), ky[:, None].expand(-1, len(kx))], dim=-1)
        points = 2.0 * torch.einsum("ykd,ndj->nykj", k, matrices[:, :2].to(device, torch.float32))
        flip = points[..., 0] < 0
        points = torch.where(flip[..., None], -points, points)
        return self._sample(points, flip) * (k.norm(dim=-1) < self.box // 2)

    def _sample(self, points: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        """Trilinear values at points [n, y, x, 3] (kx ≥ 0, ky, kz in padded Fourier pixels), conjugated where `flip`."""
        size = self._grid.shape[2]
        high = torch.tensor([size // 2, size - 1, size - 1], device=points.device)
        origin = torch.tensor([0, size // 2, size // 2], device=points.device)
        where = 2.0 * (points + origin) / high - 1.0
        values = torch.nn.functional.grid_sample(self._grid, where[None].flatten(1, 1), align_corners=True)[0]
        return torch.complex(values[0], torch.where(flip, -values[1], values[1]))


@cache
def _element_gaussians(element: str) -> tuple[np.ndarray, np.ndarray]:
    return scattering_factor(element)


def _gaussians(specimen: Specimen) -> tuple[np.ndarray, np.ndarray]:
    """Each atom as Gaussians: integrals (V·Å³) and standard deviations (Å), [n, 11]: five of its own, five of H, one of ice."""
    hydrogen_a, hydrogen_b = scattering_factor("H")
    own = [_element_gaussians(str(element)) for element in specimen.element]
    a = np.concatenate([np.stack([pair[0] for pair in own]), specimen.hydrogens[:, None] * hydrogen_a], axis=1)
    b = np.concatenate([np.stack([pair[1] for pair in own]), np.tile(hydrogen_b, (len(own), 1))], axis=1)
    widths = np.sqrt((b + specimen.b_factor[:, None]) / (8 * np.pi**2))
    volume = VOLUME_PER_DALTON * specimen.atom_masses
    ice_width = np.sqrt(volume ** (2 / 3) / (2 * np.pi) + specimen.b_factor / (8 * np.pi**2))
    weights = np.concatenate([VOLT_ANGSTROM_SQUARED * a, -ICE_POTENTIAL * volume[:, None]], axis=1)
    return weights, np.concatenate([widths, ice_width[:, None]], axis=1)


def _splat(grid: torch.Tensor, position: np.ndarray, weights: np.ndarray, widths: np.ndarray, half: int, size: int, step: float) -> None:
    """Add Gaussians to a flat grid [size³]: positions in grid indices [n, 3] (x, y, z), widths in grid steps [n, terms].

    Atoms that reach over the edge of the grid are left out.
    """
    base = np.floor(position).astype(np.int64) - half
    whole = (base >= 0).all(axis=1) & (base + 2 * half + 2 <= size).all(axis=1)
    base, position, weights, widths = base[whole], position[whole], weights[whole], widths[whole]
    reach = torch.arange(2 * half + 2)
    offset = (torch.from_numpy(base - position)[:, :, None] + reach).float()
    width = torch.from_numpy(widths).float()[:, None, :, None]
    x, y, z = (torch.exp(-0.5 * (offset[:, :, None] / width) ** 2) / (width * (2 * np.pi) ** 0.5)).unbind(1)
    amount = torch.from_numpy(weights).float() / step**3
    planes = torch.einsum("ntz,nty->nzyt", z * amount[:, :, None], y).flatten(1, 2)
    values = torch.bmm(planes, x)
    first = torch.from_numpy((base[:, 2] * size + base[:, 1]) * size + base[:, 0])
    cube = ((reach[:, None, None] * size + reach[:, None]) * size + reach).flatten()
    grid.index_add_(0, (first[:, None] + cube).flatten(), values.flatten())
