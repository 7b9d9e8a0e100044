"""Particles that are rendered whenever they are read: sets of any size without a disk, each image made by (seed, index) alone."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch

from verglas.errors import InputError
from verglas.optics.ctf import ctf
from verglas.particles import OpticsGroups, ParticleSet, ctf_parameters
from verglas.refine.observations import shift_factors
from verglas.volume.fourier import irfft_centred
from verglas.volume.rotations import euler_to_matrix
from verglas.volume.slices import Projector, pixel_list

NOISE_CHUNK = 256  # images whose noise is drawn together
PER_MICROGRAPH = 400
_AT_ONCE = 1 << 29  # bytes of images whose signal is made together
ENVELOPE = 100.0  # Å², of the images, unknown to the engine
SNR, SNR_RESOLUTION = 0.15, 20.0  # of a Fourier component (METHOD.md §7)


class RenderedParticles:
    """An `ImageSource` of projections of `volumes` (class k of k) with CTF, envelope, offsets and white noise of deviation 1.

    The noise of `NOISE_CHUNK` images that follow each other is drawn whole, even where only a few of them are read. Nothing waits for
    the device.
    """

    def __init__(self, volumes: torch.Tensor, pixel_size: float, particles: ParticleSet, seed: int) -> None:
        self.box, self.pixel_size, self.seed, self.device = volumes.shape[-1], pixel_size, seed, volumes.device
        shell = (self.box - 1) // 2
        if self.box * pixel_size / SNR_RESOLUTION > shell:
            raise InputError("--box", f"{self.box} px of {pixel_size:.2f} Å hold no {SNR_RESOLUTION:g} Å", "Give a larger box")
        self.pixels = pixel_list(self.box, shell, device=self.device)
        self._class = particles.column("class_number").astype(np.int64) - 1
        self.matrices = euler_to_matrix(torch.from_numpy(particles.angles())).float().to(self.device)
        self.origins = torch.from_numpy(particles.origins()).float().to(self.device)
        self.optics = ctf_parameters(particles, self.device)
        self.optics["ctf_bfactor"] = torch.full_like(self.optics["defocus_u"], ENVELOPE)
        self.projector = Projector(volumes, shell)
        self.scale = self._scale()

    def __len__(self) -> int:
        return len(self._class)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """Images float32 [n, box, box] on the source's device."""
        indices = np.asarray(indices, np.int64)
        images = torch.empty(len(indices), self.box, self.box, device=self.device)
        count = max(1, _AT_ONCE // (4 * self.box**2))
        for first in range(0, len(indices), count):
            part = slice(first, first + count)
            images[part] = irfft_centred(self.pixels.unpack(self.scale * self._signal(indices[part])), self.box)
        self._add_noise(images, indices)
        return images

    def _signal(self, indices: np.ndarray) -> torch.Tensor:
        extent, rows = self.box * self.pixel_size, self._on_device(indices)
        parameters = {name: value[rows] for name, value in self.optics.items()}
        transfer = ctf(self.pixels.kx / extent, self.pixels.ky / extent, **parameters)  # type: ignore[arg-type]
        slices = self.projector.project(self.matrices[rows], self.pixels, self._on_device(self._class[indices]))
        return slices * transfer * shift_factors(self.pixels, -self.origins[rows] / self.pixel_size)

    def _add_noise(self, images: torch.Tensor, indices: np.ndarray) -> None:
        chunk_of = indices // NOISE_CHUNK
        for chunk in np.unique(chunk_of).tolist():
            generator = torch.Generator(device=self.device).manual_seed(self.seed * 1_000_003 + chunk)
            noise = torch.randn(NOISE_CHUNK, self.box, self.box, device=self.device, generator=generator)
            own = np.flatnonzero(chunk_of == chunk)
            images.index_add_(0, self._on_device(own), noise[self._on_device(indices[own] % NOISE_CHUNK)])

    def _on_device(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(indices).to(self.device, non_blocking=True)

    def _scale(self) -> float:
        """What makes the mean power of the signal at 20 Å, over that of the noise, 0.15."""
        power = self._signal(np.arange(min(512, len(self)))).abs().square().mean(0)
        ring = (self.pixels.shell - self.box * self.pixel_size / SNR_RESOLUTION).abs() <= 1
        return math.sqrt(SNR * self.box**2 / float(power[ring].mean()))


def drawn(n: int, box: int, pixel_size: float, *, classes: int = 1, offset_sigma: float = 4.0, seed: int = 1) -> ParticleSet:
    """Particles at 200 kV with poses uniform, defocus 0.8 to 2.2 µm, offsets normal (Å an axis), classes in equal shares.

    They depend on `n`, `offset_sigma`, `classes` and `seed` alone: particle i is the same in any box.
    """
    random = np.random.default_rng(seed)
    defocus, origin = random.uniform(8000, 22000, n), random.normal(0, offset_sigma, (n, 2))
    optics = pd.DataFrame(
        {
            "name": ["opticsGroup1"],
            "optics_group": [1],
            "movie_pixel_size": pixel_size,
            "voltage": 200.0,
            "spherical_aberration": 2.7,
            "amplitude_contrast": 0.1,
            "pixel_size": pixel_size,
            "box_size": box,
            "dimensionality": 2,
        }
    )
    table = pd.DataFrame(
        {
            "image_name": [f"{k % PER_MICROGRAPH + 1:06d}@mic_{k // PER_MICROGRAPH + 1:06d}.mrcs" for k in range(n)],
            "micrograph_name": [f"mic_{k // PER_MICROGRAPH + 1:06d}.mrc" for k in range(n)],
            "optics_group": 1,
            "rot": random.uniform(-180, 180, n),
            "tilt": np.degrees(np.arccos(random.uniform(-1, 1, n))),
            "psi": random.uniform(-180, 180, n),
            "origin_x": origin[:, 0],
            "origin_y": origin[:, 1],
            "defocus_u": defocus + 100,
            "defocus_v": defocus - 100,
            "defocus_angle": random.uniform(0, 180, n),
            "class_number": random.integers(1, classes + 1, n),
        }
    )
    return ParticleSet(OpticsGroups(optics), table)
