"""Particle images with known truth, made at once without movies: for tests and measurements of the engines.

images, particles, truth = simulate_particles(500, box=64, pixel_size=2.8, snr=0.05)
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from verglas.optics.ctf import ctf
from verglas.particles.ctf_columns import ctf_parameters
from verglas.particles.tables import OpticsGroups, ParticleSet
from verglas.simulate.potential import Projector, potential_map
from verglas.simulate.specimen import Specimen
from verglas.simulate.stand_in import stand_in
from verglas.volume.fourier import frequency_grid
from verglas.volume.rotations import euler_to_matrix

PER_MICROGRAPH = 50
NOISE_CORNER = 0.03  # 1/Å, where coloured noise has fallen by a factor e of its excess


def simulate_particles(
    n: int,
    box: int = 64,
    pixel_size: float = 2.8,
    *,
    snr: float = 0.05,
    offset_sigma: float = 4.0,
    defocus: tuple[float, float] = (8000.0, 22000.0),
    coloured: bool = False,
    optics_groups: int = 1,
    voltage: float = 200.0,
    ctf_bfactor: float = 80.0,
    seed: int = 1,
    specimen: Specimen | list[Specimen] | None = None,
) -> tuple[torch.Tensor, ParticleSet, torch.Tensor]:
    """Bright particle images float32 [n, box, box], their true parameters, and the true map(s) in the images' units.

    snr: variance of the signal (after the CTF, over the whole box) over that of the noise, whose standard deviation is 1.
    offset_sigma: Å an axis. defocus: Å, uniform. coloured: noise amplitude √(1 + 2 exp(−k/0.03)) instead of white.
    A list of specimens gives classes 1, 2, … in equal shares and a map [classes, box, box, box]; otherwise [box, box, box].
    """
    specimens = specimen if isinstance(specimen, list) else [specimen or stand_in()]
    particles = _draw(n, len(specimens), offset_sigma, defocus, optics_groups, np.random.default_rng(seed))
    optics = optics_table(box, pixel_size, voltage, optics_groups)
    table = ParticleSet(optics, particles.assign(ctf_bfactor=ctf_bfactor))
    maps = [potential_map(each, box, pixel_size) for each in specimens]
    signal = noise_free_images(table, [Projector(each) for each in maps])
    scale = (snr / signal.var().item()) ** 0.5
    noise = noise_images(n, box, pixel_size, coloured, torch.Generator().manual_seed(seed))
    truth = torch.stack(maps) * scale
    return signal * scale + noise, table, truth if isinstance(specimen, list) else truth[0]


def _draw(
    n: int, classes: int, offset_sigma: float, defocus: tuple[float, float], groups: int, random: np.random.Generator
) -> pd.DataFrame:
    """Poses uniform over all rotations, offsets normal, defocus uniform with up to 400 Å of astigmatism."""
    origin = random.normal(0, offset_sigma, (n, 2))
    mean, astigmatism = random.uniform(*defocus, n), random.uniform(0, 400, n)
    micrograph = np.arange(n) // PER_MICROGRAPH + 1
    return pd.DataFrame(
        {
            "image_name": [f"{i + 1:06d}@images.mrcs" for i in range(n)],
            "micrograph_name": [f"mic_{number:04d}.mrc" for number in micrograph],
            "optics_group": (micrograph - 1) % groups + 1,
            "rot": random.uniform(-180, 180, n),
            "tilt": np.degrees(np.arccos(random.uniform(-1, 1, n))),
            "psi": random.uniform(-180, 180, n),
            "origin_x": origin[:, 0],
            "origin_y": origin[:, 1],
            "defocus_u": mean + astigmatism / 2,
            "defocus_v": mean - astigmatism / 2,
            "defocus_angle": random.uniform(0, 180, n),
            "class_number": np.arange(n) % classes + 1,
        }
    )


def optics_table(box: int, pixel_size: float, voltage: float, groups: int) -> OpticsGroups:
    """Optics groups 1 to `groups` of a microscope with Cs 2.7 mm and 10 % amplitude contrast; `voltage` in kV."""
    numbers = np.arange(1, groups + 1)
    return OpticsGroups(
        pd.DataFrame(
            {
                "name": [f"opticsGroup{number}" for number in numbers],
                "optics_group": numbers,
                "movie_pixel_size": pixel_size,
                "voltage": voltage,
                "spherical_aberration": 2.7,
                "amplitude_contrast": 0.1,
                "pixel_size": pixel_size,
                "box_size": box,
                "dimensionality": 2,
            }
        )
    )


def noise_free_images(particles: ParticleSet, projectors: list[Projector]) -> torch.Tensor:
    """Images float32 [n, box, box]: of class k the projections of the k-th map, with the CTF, shifted by minus the origins."""
    box, pixel_size = particles.optics.box_size, particles.optics.pixel_size
    kx, ky = frequency_grid(box, pixel_size, 2)
    matrices = euler_to_matrix(torch.from_numpy(particles.angles()))
    origins = torch.from_numpy(particles.origins()).float()
    parameters = ctf_parameters(particles)
    images = torch.empty(len(particles), box, box)
    for number, projector in enumerate(projectors, start=1):
        rows = torch.from_numpy(np.flatnonzero(particles.column("class_number") == number))
        for part in rows.split(100) if len(rows) else ():
            spectrum = projector.slices(matrices[part]) * ctf(kx, ky, **{name: value[part] for name, value in parameters.items()})  # type: ignore[arg-type]
            turns = kx * origins[part, 0, None, None] + ky * origins[part, 1, None, None]
            spectrum = spectrum * torch.polar(torch.ones_like(turns), 2 * np.pi * turns)
            images[part] = torch.fft.fftshift(torch.fft.irfft2(spectrum, s=(box, box)), dim=(1, 2))
    return images


def noise_images(n: int, box: int, pixel_size: float, coloured: bool, generator: torch.Generator) -> torch.Tensor:
    """Noise of deviation 1, float32 [n, box, box]; coloured: amplitude √(1 + 2 exp(−k/0.03)), k in 1/Å."""
    noise = torch.randn(n, box, box, generator=generator)
    if not coloured:
        return noise
    kx, ky = frequency_grid(box, pixel_size, 2)
    amplitude = torch.sqrt(1 + 2 * torch.exp(-torch.hypot(kx, ky) / NOISE_CORNER))
    noise = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(box, box))
    return noise / noise.std()
