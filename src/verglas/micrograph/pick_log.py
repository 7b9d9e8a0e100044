"""Picking of blobs by the Laplacian of Gaussian, over a range of diameters; no reference is needed.

Scale-normalised responses sigma² ∇²G (Lindeberg 1998, Int. J. Comput. Vis. 30, 79): for a disc of diameter d it is largest at
sigma = d / (2 sqrt 2). A blob whose best diameter lies outside the range asked for is not a particle (contamination, noise).
"""

from __future__ import annotations

import math

import torch

from verglas.micrograph.frames import frequencies
from verglas.micrograph.pick_prepare import Coarse, padded, robust_spread

_STEP = 1.12  # ratio of neighbouring diameters
_SEARCH = 2.0  # diameters are tried from min/2 to max*2, so that what is larger or smaller shows


def log_diameters(diam_min: float, diam_max: float) -> torch.Tensor:
    """Diameters [d] in Å to try, a geometric row that reaches beyond the range on both sides."""
    low, high = diam_min / _SEARCH, diam_max * _SEARCH
    count = max(2, math.ceil(math.log(high / low) / math.log(_STEP)) + 1)
    return torch.logspace(math.log10(low), math.log10(high), count)


def log_responses(coarse: Coarse, diameters: torch.Tensor) -> torch.Tensor:
    """Scale-normalised Laplacian of Gaussian [d, y, x] for each diameter (Å); positive at dark blobs."""
    margin = math.ceil(float(diameters.max()) / coarse.pixel_size)
    image = padded(coarse.values, margin)
    shape = (image.shape[0], image.shape[1])
    kx, ky = frequencies(shape, image.device)
    square = 4 * math.pi**2 * (kx * kx + ky * ky)
    transform = torch.fft.rfft2(image)
    height, width = coarse.values.shape
    responses = []
    for sigma in (diameters / (2 * math.sqrt(2) * coarse.pixel_size)).tolist():
        scaled = sigma**2 * square
        responses.append(torch.fft.irfft2(-transform * scaled * torch.exp(-scaled / 2), s=shape)[:height, :width])
    return torch.stack(responses)


def best_diameter(responses: torch.Tensor, diameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Score and diameter of each pixel: the largest response, in deviations of that diameter's responses, and where it is.

    -> score [y, x], diameter [y, x] in Å.
    """
    best, index = responses.max(dim=0)
    spread = torch.tensor([robust_spread(response)[1] for response in responses], device=responses.device)
    return best / spread[index], diameters.to(responses.device)[index]
