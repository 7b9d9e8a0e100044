"""Power spectra of micrographs on a small square grid of frequencies, for CTF estimation."""

from __future__ import annotations

import torch


def power_spectrum(image: torch.Tensor, box: int = 512, pixel: float = 1.0) -> torch.Tensor:
    """Mean power |F|^2 [box, box//2+1] of an image [y, x] at frequencies j / (box * pixel) cycles a px, in FFT order.

    The periodogram of the whole image is averaged over triangles of +-1 step in kx and ky. That is the spectrum that tiles of `box` px
    give (all positions, tapered), without choosing tiles; pixel > 1 takes larger tiles and leaves out their highest frequencies.
    """
    shape = (int(image.shape[0]), int(image.shape[1]))
    transform = torch.fft.rfft2(image - image.mean())
    return resample_spectrum(transform.abs().square() / image.numel(), shape, box, pixel)


def resample_spectrum(power: torch.Tensor, shape: tuple[int, int], box: int, pixel: float = 1.0) -> torch.Tensor:
    """`power` [y, x//2+1] of images of `shape` averaged around frequencies j / (box * pixel) -> [box, box//2+1].

    Frequencies beyond the image's Nyquist are wrapped around, as sampling does; DC is left out of the averages.
    """
    height, width = shape
    power = power.clone()
    power[0, 0] = power[0, 1]
    rows = _triangles(torch.fft.fftfreq(box) / pixel, torch.fft.fftfreq(height), box * pixel)
    columns = _triangles(torch.fft.rfftfreq(box) / pixel, torch.fft.fftfreq(width), box * pixel)
    half = width // 2 + 1
    folded = columns[:, :half].clone()  # kx < 0 lies at -ky: kept for averages that reach across kx = 0
    mirrored = torch.zeros_like(folded)
    negative = torch.arange(half, width)
    mirrored[:, width - negative] = columns[:, negative]
    rows, folded, mirrored = (matrix.to(power.device) for matrix in (rows, folded, mirrored))
    flipped = torch.roll(power.flip(0), 1, dims=0)  # row -ky
    return rows @ (power @ folded.T + flipped @ mirrored.T)


def _triangles(wanted: torch.Tensor, given: torch.Tensor, steps: float) -> torch.Tensor:
    """Weights [wanted, given] of a triangle of +-1 step (1/steps) about each wanted frequency, rows summing to 1; cyclic.

    Where the given frequencies are coarser than the steps, the triangle is as wide as their spacing: linear interpolation.
    """
    width = max(1 / steps, 1 / len(given))
    distance = wanted[:, None].double() - given[None, :].double()
    distance = (distance - distance.round()).abs()
    weights = (1 - distance / width).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()
