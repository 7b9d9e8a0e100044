"""Simulated particles with known poses, light enough for tests of the engine's first maps."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from verglas.optics.aberrations import aberration_phase
from verglas.optics.ctf import ctf
from verglas.particles import OpticsGroups, ParticleSet
from verglas.particles.images import ArrayImages
from verglas.volume.fourier import irfft_centred
from verglas.volume.rotations import random_rotations
from verglas.volume.slices import Projector, pixel_list


def simulated(
    volume: torch.Tensor,
    pixel_size: float,
    count: int,
    *,
    snr: float = 0.13,
    snr_at: float = 20.0,
    shift: float = 5.0,
    seed: int = 1,
    even_zernike: Sequence[float] = (0.0,),
    odd_zernike: Sequence[float] = (0.0,),
    beam_tilt: Sequence[float] = (0.0, 0.0),
    mag: torch.Tensor | None = None,
) -> tuple[ParticleSet, ArrayImages, torch.Tensor, torch.Tensor]:
    """Particles of a map [N, N, N] with CTF, aberrations and white noise; SNR of a Fourier component `snr` at `snr_at` Å.

    The aberrations are those of `optics`, beam tilt in mrad; `mag` [2, 2]: an image shows at k what the specimen has at mag k.

    Returns particles, images, true rotations [n, 3, 3] and true origins [n, 2] in Å.
    """
    box, generator, rng = volume.shape[-1], torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    rotations = random_rotations(count, generator).float()
    origins = shift * torch.randn(count, 2, generator=generator)
    defocus = rng.uniform(8000, 22000, count)
    mag = torch.eye(2) if mag is None else mag
    pixels = pixel_list(box, int((box - 1) // 2 / max(1.0, float(torch.linalg.matrix_norm(mag, 2)))))
    kx, ky = mag @ torch.stack([pixels.kx, pixels.ky])
    fx, fy = kx / (box * pixel_size), ky / (box * pixel_size)
    optics = {"voltage": 200.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}
    lens = {name: torch.full((count,), value) for name, value in optics.items()}
    under = torch.as_tensor(defocus).float()
    transfer = ctf(fx, fy, defocus_u=under, defocus_v=under - 200, even_zernike=torch.tensor(even_zernike), **lens)
    odd = {"beam_tilt": torch.tensor(beam_tilt), "odd_zernike": torch.tensor(odd_zernike)}
    transfer = transfer * aberration_phase(fx, fy, voltage=200.0, spherical_aberration=2.7, **odd)
    turns = -(origins[:, :1] * pixels.kx + origins[:, 1:] * pixels.ky) / (box * pixel_size)
    seen = Projector(volume[None], (box - 1) // 2).project(rotations, replace(pixels, kx=kx, ky=ky)) * transfer
    seen = seen * torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    images = irfft_centred(pixels.unpack(seen), box)
    signal = seen[:, pixels.shell == round(box * pixel_size / snr_at)].abs().square().mean()
    images = images + torch.randn(images.shape, generator=generator) * (signal / snr).sqrt() / box
    table = {
        "image_name": [f"{i + 1:06d}@particles.mrcs" for i in range(count)],
        "micrograph_name": [f"mic_{i // 50}.mrc" for i in range(count)],
        "optics_group": 1,
        "defocus_u": defocus,
        "defocus_v": defocus - 200,
        "defocus_angle": 0.0,
    }
    groups = {"name": ["opticsGroup1"], "optics_group": [1], "pixel_size": [pixel_size], "box_size": [box], "dimensionality": [2]}
    groups |= {name: [value] for name, value in optics.items()}
    return (
        ParticleSet(OpticsGroups(pd.DataFrame(groups)), pd.DataFrame(table)),
        ArrayImages(images / images.std(), pixel_size),
        rotations,
        origins,
    )
