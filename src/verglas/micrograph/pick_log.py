"""Picking of blobs by the Laplacian of Gaussian, over a range of diameters; no reference is needed.

Scale-normalised responses sigma² ∇²G (Lindeberg 1998, Int. J. Comput. Vis. 30, 79): for a disc of diameter d it is largest at
sigma = d / (2 √2).
"""

from __future__ import annotations

import math

import torch

from verglas.micrograph.frames import frequencies
from verglas.micrograph.pick_prepare import Coarse, padded, robust_spread

_STEP = 1.12  # ratio of neighbouring diameters


def log_diameters(diam_min: float, diam_max: float) -> torch.Tensor:
    """Diameters [d] in Å to try: a geometric row from the smallest to the largest."""
    count = max(2, math.ceil(math.log(diam_max / diam_min) / math.log(_STEP)) + 1)
    return torch.logspace(math.log10(diam_min), math.log10(diam_max), count)


def log_responses(coarse: Coarse, diameters: torch.Tensor) -> torch.Tensor:
    """Scale-normalised Laplacian of Gaussian [d, y, x] for each diameter (Å); positive at dark blobs."""
    image = padded(coarse.values, math.ceil(float(diameters.max()) / coarse.pixel_size))
    shape = (image.shape[0], image.shape[1])
    kx, ky = frequencies(shape, image.device)
    square = 4 * math.pi**2 * (kx * kx + ky * ky)
    sigma = (diameters.to(image.device) / (2 * math.sqrt(2) * coarse.pixel_size))[:, None, None]
    scaled = sigma**2 * square
    height, width = coarse.values.shape
    return torch.fft.irfft2(-torch.fft.rfft2(image) * scaled * torch.exp(-scaled / 2), s=shape)[:, :height, :width]


def log_score(coarse: Coarse, diameters: torch.Tensor) -> torch.Tensor:
    """The largest response over the diameters (Å) at each pixel [y, x], in robust deviations of that diameter's responses."""
    responses = log_responses(coarse, diameters)
    best, index = responses.max(dim=0)
    spread = torch.tensor([robust_spread(response)[1] for response in responses], device=best.device)
    return best / spread[index]
