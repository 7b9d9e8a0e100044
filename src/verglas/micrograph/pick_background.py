"""What is not ice with particles: crystals, carbon, clumps, empty holes. It is found by its mean density and left out of picking.

At scales above the particle phase contrast vanishes (the CTF is near 0 there), so the mean over a circle half as wide again as the
particle hardly knows particles, but it knows what is thicker or thinner than the ice around. Uneven illumination is a smooth surface,
fitted to what does not stand out (Tukey's biweight).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from verglas.micrograph.pick_prepare import Coarse, disc, robust_spread, sums_within

_WIDTH = 1.5  # diameters of the particle: the circle that the mean is taken over
_FITS = 12
_TUKEY = 4.0  # deviations


def without_background(coarse: Coarse, diameter: float, limit: float = 12.0) -> Coarse:
    """The micrograph less its illumination, with `usable` false and the values 0 where the ice is covered.

    `diameter` of the particle in Å. A place is covered where the mean of the circle around it is more than `limit` deviations of
    such means from the background (on real and simulated micrographs particles stay within 10, clumps reach 15, carbon 35, ice
    crystals 100); 0 leaves everything usable.
    """
    window = disc(0.5 * _WIDTH * diameter / coarse.pixel_size, coarse.values.device)
    count, total = sums_within(torch.stack([torch.ones_like(coarse.values), coarse.values]), window)
    mean = total / count.clamp(min=1)
    surface = smooth_surface(mean)
    above = mean - surface
    usable = torch.ones_like(above, dtype=torch.bool)
    if limit > 0:
        centre, spread = robust_spread(above)
        usable = (above - centre).abs() <= limit * spread
    values = torch.where(usable, coarse.values - surface, 0.0)
    centre, spread = robust_spread(values[usable]) if bool(usable.any()) else (0.0, 1.0)
    return replace(coarse, values=torch.where(usable, (values - centre) / spread, 0.0), usable=usable)


def smooth_surface(values: torch.Tensor) -> torch.Tensor:
    """Quadratic surface through an image [y, x] that outliers do not pull: iterated least squares with Tukey's weights."""
    step = max(1, min(values.shape) // 64)
    height, width = values.shape
    y = torch.linspace(-1, 1, height, dtype=torch.float64, device=values.device)
    x = torch.linspace(-1, 1, width, dtype=torch.float64, device=values.device)
    terms = _quadratic(y[::step], x[::step])
    target = values[::step, ::step].double().flatten()
    weight = torch.ones_like(target)
    left, coefficients = target, torch.zeros(terms.shape[1], dtype=torch.float64, device=values.device)
    for _ in range(_FITS):
        centre, spread = robust_spread(left)
        weight = (1 - ((left - centre) / (_TUKEY * spread)).clamp(-1, 1) ** 2) ** 2
        normal = terms.T @ (terms * weight[:, None])
        normal.diagonal().add_(1e-9 * normal.diagonal().mean())
        coefficients = torch.linalg.solve(normal, terms.T @ (weight * target))
        left = target - terms @ coefficients
    return (_quadratic(y, x) @ coefficients).unflatten(0, (height, width)).to(values)


def _quadratic(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """1, x, y, x², xy, y² at all points of a grid [len(y) len(x), 6]."""
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([torch.ones_like(xx), xx, yy, xx * xx, xx * yy, yy * yy], dim=-1).flatten(0, 1)
