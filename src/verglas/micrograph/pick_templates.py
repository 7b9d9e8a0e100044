"""Picking by templates: the best normalised local correlation over all references and their rotations.

At the resolution that picking looks at, all rotations of all references are combinations of a few dozen basis images (the leading
singular vectors of the stack of templates). So a micrograph is correlated with the basis only, by FFT, and the score of every
template at every pixel is one matrix product. The CTF of the micrograph multiplies the basis, since it acts linearly.

    bank = template_bank(averages, 3.0, diameter=120, low_pass=20, psi_step=5)       # or a map [z, y, x] with rotations
    match = match_templates(prepare_micrograph(image, 1.5, bank.pixel_size), bank, ctf=...)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from verglas.micrograph.frames import frequencies
from verglas.micrograph.pick_prepare import Coarse, disc, sums_within
from verglas.optics.ctf import ctf as ctf_values
from verglas.volume.resample import interpolation_matrix
from verglas.volume.rotations import euler_to_matrix
from verglas.volume.slices import Projector, pixel_list

_FINER = 1.25  # pixels are this much finer than the low-pass filter's Nyquist limit needs
_RANK = 96  # basis images to begin with
_ENERGY_LEFT_OUT = 3e-3  # of the templates' power, by the basis
_SCORES_AT_ONCE = 1 << 24
_TRANSFORMS_AT_ONCE = 32


@dataclass(frozen=True)
class TemplateBank:
    """Templates as combinations of basis images, on the pixels that picking works on.

    basis: float32 [r, n, n], n odd, bright particles. weights: float32 [t, r]; template t is weights[t] @ basis.
    class_number: int64 [t], from 1. psi: in-plane angle float64 [t], degrees. pixel_size, diameter: Å.
    """

    basis: torch.Tensor
    weights: torch.Tensor
    class_number: torch.Tensor
    psi: torch.Tensor
    pixel_size: float
    diameter: float

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class Match:
    """What the templates found: correlation coefficient and best template of each coarse pixel, [y, x] float32 and int64."""

    score: torch.Tensor
    template: torch.Tensor


def work_pixel_size(low_pass: float, pixel_size: float) -> float:
    """Å a pixel to pick on: fine enough for `low_pass` Å, not finer than the micrograph's own `pixel_size`."""
    return max(low_pass / 2 / _FINER, pixel_size)


def template_bank(
    references: torch.Tensor,
    pixel_size: float,
    work_pixel: float,
    *,
    diameter: float,
    low_pass: float,
    psi_step: float,
    directions: torch.Tensor | None = None,
) -> TemplateBank:
    """Rotated templates of 2D references [k, b, b], or projections of a map [b, b, b] along `directions` (rot, tilt) [k, 2].

    `references` are bright and centred at index b//2, with pixels of `pixel_size` Å; psi_step in degrees (360: no rotation).
    """
    n_psi = max(1, round(360 / psi_step))
    psi = torch.arange(n_psi, dtype=torch.float64) * (360 / n_psi)
    box = 2 * math.ceil(diameter / work_pixel) + 1
    if directions is None:
        images = torch.cat([_rotations(_on_pixels(image, pixel_size, work_pixel, box), psi, None) for image in references])
        count = len(references)
    else:
        images, count = _rotations(_on_pixels(references, pixel_size, work_pixel, box), psi, directions), len(directions)
    images = _low_passed(images, work_pixel, low_pass)
    basis, weights = _compress(images)
    numbers = torch.arange(1, count + 1).repeat_interleave(n_psi)
    return TemplateBank(basis, weights, numbers, psi.repeat(count), work_pixel, diameter)


def _on_pixels(values: torch.Tensor, pixel_in: float, pixel_out: float, box: int) -> torch.Tensor:
    """An image or a map [b, …] on a grid of `box` pixels of `pixel_out` Å with the same centre."""
    weights = interpolation_matrix(values.shape[-1], pixel_in, pixel_out, box).to(values)
    for _ in range(values.dim()):
        values = torch.tensordot(values, weights, dims=([0], [1]))
    return values


def _rotations(reference: torch.Tensor, psi: torch.Tensor, directions: torch.Tensor | None) -> torch.Tensor:
    """Slices of an image turned by all psi [n_psi, n, n], or of a map along all directions and psi [k n_psi, n, n]."""
    box = reference.shape[-1]
    if directions is None:
        angles = torch.stack([torch.zeros_like(psi), torch.zeros_like(psi), psi], dim=-1)
    else:
        k, n = len(directions), len(psi)
        angles = torch.cat([directions.double().repeat_interleave(n, 0), psi.repeat(k)[:, None]], dim=1)
    pixels = pixel_list(box, (box - 1) // 2, min_shell=0, device=reference.device)
    slices = Projector(reference[None], (box - 1) // 2).project(euler_to_matrix(angles).to(reference), pixels)
    half = pixels.unpack(slices)
    half[..., 0, 0] /= 2  # DC is its own mate
    return torch.fft.fftshift(torch.fft.irfft2(half, s=(box, box)), dim=(-2, -1))


def _low_passed(images: torch.Tensor, pixel_size: float, low_pass: float) -> torch.Tensor:
    """Images [..., n, n] with a raised-cosine edge around the frequency 1/low_pass."""
    gain = _low_pass_gain((images.shape[-2], images.shape[-1]), pixel_size, low_pass, images.device)
    return torch.fft.irfft2(torch.fft.rfft2(images) * gain, s=images.shape[-2:])


def _low_pass_gain(shape: tuple[int, int], pixel_size: float, low_pass: float, device: torch.device) -> torch.Tensor:
    kx, ky = frequencies(shape, device)
    ratio = torch.hypot(kx, ky) / pixel_size * low_pass
    return 0.5 + 0.5 * torch.cos(math.pi * ((ratio - 0.9) / 0.2).clamp(0, 1))


def _compress(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Basis [r, n, n] and weights [t, r] of images [t, n, n]: the leading singular vectors, with all but a few thousandths of the power.

    By subspace iteration from random vectors (Halko et al. 2011, SIAM Rev. 53, 217) with a seed of its own.
    """
    flat = images.flatten(1)
    flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)
    generator, most = torch.Generator().manual_seed(0), min(flat.shape)
    rank = min(most, _RANK)
    while True:
        span = torch.randn(len(flat), rank, generator=generator).to(flat)
        for _ in range(3):
            span = flat @ torch.linalg.qr(flat.T @ span).Q
        span = torch.linalg.qr(flat.T @ span).Q
        weights = flat @ span
        power, vectors = torch.linalg.eigh((weights.T @ weights).double())
        lost = flat.square().sum() - power.flip(0).cumsum(0)
        kept = int((lost > _ENERGY_LEFT_OUT * flat.square().sum()).sum()) + 1
        if kept <= rank or rank == most:
            break
        rank = min(most, 2 * rank)
    basis = (span @ vectors[:, -kept:].to(flat)).T
    return basis.contiguous().unflatten(1, images.shape[1:]), flat @ basis.T


def match_templates(coarse: Coarse, bank: TemplateBank, ctf: Mapping[str, float] | None = None) -> Match:
    """Correlation coefficient of the best template at each pixel of a micrograph in which particles are dark.

    Both are compared inside a circle of the particle's diameter, the micrograph less its mean there and divided by its deviation
    there (Roseman 2003, Ultramicroscopy 94, 225). `ctf`: arguments of `optics.ctf.ctf` in numbers; none: templates as they are.
    """
    window = disc(0.5 * bank.diameter / bank.pixel_size, coarse.values.device)
    window = _fit(window, bank.basis.shape[-1])
    basis = _seen_through(bank, ctf, window)
    gram = basis.flatten(1) @ basis.flatten(1).T
    norms = ((bank.weights @ gram) * bank.weights).sum(1).clamp(min=1e-12).sqrt()
    image = -coarse.values
    maps = torch.cat([sums_within(image, part) for part in basis.split(_TRANSFORMS_AT_ONCE)])
    score, template = _best(maps, bank.weights / norms[:, None])
    return Match(score / _local_norm(image, window), template)


def _seen_through(bank: TemplateBank, ctf: Mapping[str, float] | None, window: torch.Tensor) -> torch.Tensor:
    """The basis as the microscope shows it, inside the window and with mean 0 there, [r, n, n]."""
    basis = bank.basis
    if ctf is not None:
        shape = (basis.shape[-2], basis.shape[-1])
        kx, ky = frequencies(shape, basis.device)
        kx, ky = torch.broadcast_tensors(kx / bank.pixel_size, ky / bank.pixel_size)
        basis = torch.fft.irfft2(torch.fft.rfft2(basis) * ctf_values(kx, ky, **ctf), s=shape)  # type: ignore[arg-type]
    return (basis - (basis * window).sum((-2, -1), keepdim=True) / window.sum()) * window


def _fit(window: torch.Tensor, size: int) -> torch.Tensor:
    """A centred window [m, m] in an array [size, size] (both odd), cut or filled with zeros."""
    gap = (size - window.shape[-1]) // 2
    return torch.nn.functional.pad(window, (gap, gap, gap, gap))


def _best(maps: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest weights @ maps over the templates, and which, from maps [r, y, x] and weights [t, r]."""
    flat = maps.flatten(1)
    score, template = flat.new_empty(flat.shape[1]), torch.empty(flat.shape[1], dtype=torch.long, device=flat.device)
    step = max(1, _SCORES_AT_ONCE // len(weights))
    for first in range(0, flat.shape[1], step):
        part = slice(first, first + step)
        score[part], template[part] = (weights @ flat[:, part]).max(dim=0)
    return score.unflatten(0, maps.shape[1:]), template.unflatten(0, maps.shape[1:])


def _local_norm(image: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Norm of the image inside the window around each pixel, its mean there taken off; beyond the edges there is nothing."""
    count, total, square = sums_within(torch.stack([torch.ones_like(image), image, image * image]), window)
    norm = (square - total * total / count.clamp(min=1)).clamp(min=0).sqrt()
    # a blank patch (an edge filled with one value) must not divide by next to nothing
    return norm.clamp(min=0.3 * float(norm.median()))
