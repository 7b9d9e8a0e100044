"""Micrographs with known particles, cheap to make: lobed particles about 100 Å across, seen through a CTF, in white noise."""

from dataclasses import dataclass

import numpy as np
import torch

from verglas.optics.ctf import ctf

PIXEL = 2.0
CTF = {
    "defocus_u": 15200.0,
    "defocus_v": 14800.0,
    "defocus_angle": 20.0,
    "voltage": 200.0,
    "spherical_aberration": 2.7,
    "amplitude_contrast": 0.1,
}
# centres (Å), widths (Å) and weights of a particle's lobes, without any symmetry in the plane
LOBES = np.array([[-28, -20, 11, 1.0], [25, -22, 11, 1.0], [27, 24, 10, 0.8], [-22, 27, 12, 1.2], [2, 0, 9, 0.9], [38, 2, 7, 0.6]], float)


@dataclass
class Synthetic:
    image: torch.Tensor
    xy: np.ndarray  # px of the particles
    psi: np.ndarray  # degrees
    covered: np.ndarray  # px of dirt, [y, x]


def lobes(places: np.ndarray, psi: np.ndarray, shape: tuple[int, int]) -> torch.Tensor:
    """Bright particles at `places` (px), turned by psi in RELION's sense, without CTF or noise."""
    image = torch.zeros(shape)
    for (x, y), angle in zip(places, np.radians(psi)):
        c, s = np.cos(angle), np.sin(angle)
        for lx, ly, width, weight in LOBES:
            px, py, sigma = x + (c * lx + s * ly) / PIXEL, y + (-s * lx + c * ly) / PIXEL, width / PIXEL
            left, top, reach = int(px - 4 * sigma), int(py - 4 * sigma), int(8 * sigma) + 2
            rows = torch.arange(max(0, top), min(shape[0], top + reach))
            columns = torch.arange(max(0, left), min(shape[1], left + reach))
            bump = torch.exp(-0.5 * ((rows[:, None] - py) / sigma) ** 2) * torch.exp(-0.5 * ((columns - px) / sigma) ** 2)
            image[rows[:, None], columns] += (weight * bump).float()
    return image


def micrograph(
    seed: int = 1,
    shape: tuple[int, int] = (700, 760),
    particles: int = 40,
    *,
    noise: float = 0.7,
    crystal: bool = False,
    carbon: bool = False,
) -> Synthetic:
    """A micrograph with dark particles at least 130 Å apart; a crystal and a strip of carbon where asked for."""
    random = np.random.default_rng(seed)
    covered = np.zeros(shape, bool)
    y, x = np.mgrid[: shape[0], : shape[1]]
    if crystal:
        covered |= np.hypot(x - 0.7 * shape[1], y - 0.4 * shape[0]) < 90 / PIXEL
    if carbon:
        covered |= x + 0.3 * y < 0.22 * shape[1]
    xy: list[np.ndarray] = []
    for _ in range(20_000):
        place = random.uniform(0, [shape[1], shape[0]])
        near = covered[int(place[1]), int(place[0])] or any(np.hypot(*(place - other)) < 130 / PIXEL for other in xy)
        if not near:
            xy.append(place)
        if len(xy) == particles:
            break
    places, psi = np.array(xy), random.uniform(-180, 180, len(xy))
    ky, kx = torch.fft.fftfreq(shape[0], PIXEL)[:, None], torch.fft.rfftfreq(shape[1], PIXEL)[None]
    kx, ky = torch.broadcast_tensors(kx, ky)
    seen = torch.fft.irfft2(torch.fft.rfft2(lobes(places, psi, shape)) * ctf(kx, ky, **CTF), s=shape)
    grain = torch.from_numpy(random.normal(0, noise, shape)).float()
    illumination = torch.from_numpy(0.4 * ((x / shape[1] - 0.4) ** 2 + y / shape[0])).float()
    dirt = torch.from_numpy(covered).float() * 5 * noise
    return Synthetic(100 + illumination - seen + grain - dirt, places, psi, covered)
