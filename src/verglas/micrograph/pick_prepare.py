"""A micrograph made ready for picking: outliers tamed, coarse pixels, what is not ice with particles marked.

Pickers work on pixels just fine enough for the resolution that they look at; positions go back through `Coarse.to_fine`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from verglas.errors import ItemError
from verglas.micrograph.frames import crop_rect, frequencies

_OUTLIER_SIGMA = 6.0  # counts beyond this many robust deviations are dust, hot pixels or X-rays
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Coarse:
    """A micrograph on coarse pixels.

    values: float32 [y, x], median 0 and robust deviation 1. pixel_size: Å. shape: (y, x) of the micrograph itself in its own pixels.
    usable: bool [y, x], false where there is no ice to pick from.
    """

    values: torch.Tensor
    pixel_size: float
    shape: tuple[int, int]
    usable: torch.Tensor

    def to_fine(self, positions: torch.Tensor) -> torch.Tensor:
        """Positions [n, 2] (x, y) in coarse pixels, as pixels of the micrograph."""
        height, width = self.values.shape
        return positions * torch.tensor([self.shape[1] / width, self.shape[0] / height], dtype=positions.dtype, device=positions.device)


def prepare_micrograph(image: torch.Tensor, pixel_size: float, work_pixel: float, name: str = "micrograph") -> Coarse:
    """The micrograph [y, x] cut in Fourier space to pixels of about `work_pixel` Å (never finer than its own).

    Pixels far from the median are set to the limit first, and the mean plane is taken off. Raises ItemError, naming `name`, for a
    micrograph that holds no image: NaN, infinity, constant.
    """
    values = image.float()
    if not bool(torch.isfinite(values).all()):
        raise ItemError(name, "holds values that are not numbers (NaN or infinity)")
    if bool(values.max() == values.min()):
        raise ItemError(name, "is constant: it holds no image")
    shape = (values.shape[0], values.shape[1])
    values = without_plane(values)
    centre, spread = robust_spread(values)
    values = (values - centre).clamp(-_OUTLIER_SIGMA * spread, _OUTLIER_SIGMA * spread)
    new_shape = tuple(min(n, max(1, round(n * pixel_size / work_pixel))) for n in shape)
    transform = crop_rect(torch.fft.rfft2(values), shape, (new_shape[0], new_shape[1]))
    coarse = torch.fft.irfft2(transform, s=new_shape)
    centre, spread = robust_spread(coarse)
    return Coarse((coarse - centre) / spread, pixel_size * shape[1] / new_shape[1], shape, torch.ones_like(coarse, dtype=torch.bool))


def robust_spread(values: torch.Tensor) -> tuple[float, float]:
    """Median and the deviation that a normal distribution of the same median absolute deviation has; never 0."""
    sample = values.flatten()
    sample = sample[:: max(1, sample.numel() // 500_000)]
    centre = sample.median()
    spread = float((sample - centre).abs().median()) * _MAD_TO_SIGMA
    return float(centre), spread or float(sample.std()) or 1.0


def without_plane(image: torch.Tensor) -> torch.Tensor:
    """The image [y, x] less its least-squares plane."""
    height, width = image.shape
    y = torch.linspace(-1, 1, height, device=image.device)[:, None]
    x = torch.linspace(-1, 1, width, device=image.device)[None, :]
    tilted = [axis * (image * axis).mean() / (axis * axis).mean() for axis in (x, y) if axis.numel() > 1]
    return image - image.mean() - sum(tilted)


def smooth_size(n: int) -> int:
    """The smallest even number from `n` on with no prime factor above 5: the FFT is quick there."""
    n += n % 2
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 2


def padded(image: torch.Tensor, margin: int) -> torch.Tensor:
    """The image [y, x] with zeros to the right and below, at least `margin` of them, to sizes that are quick to transform."""
    height, width = (smooth_size(n + margin) for n in image.shape)
    return torch.nn.functional.pad(image, (0, width - image.shape[1], 0, height - image.shape[0]))


def disc(radius: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """Share of each pixel inside a circle of `radius` px, [n, n] with n odd; its rim falls off over one pixel."""
    reach = int(radius + 1)
    line = torch.arange(-reach, reach + 1, device=device, dtype=torch.float32)
    return (radius + 0.5 - torch.hypot(line[:, None], line[None, :])).clamp(0, 1)


def sums_within(image: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Sum of window(p' - p) image(p') around each pixel p; images [..., y, x], window [n, n], n odd, zeros beyond the edges."""
    height, width = image.shape[-2:]
    reach = window.shape[-1] // 2
    size = (smooth_size(height + reach), smooth_size(width + reach))
    kernel = torch.fft.rfft2(torch.nn.functional.pad(window, (0, size[1] - window.shape[-1], 0, size[0] - window.shape[-2])))
    sums = torch.fft.irfft2(torch.fft.rfft2(image, s=size) * kernel.conj(), s=size)
    return sums.roll((reach, reach), dims=(-2, -1))[..., :height, :width]


def band_pass(image: torch.Tensor, pixel_size: float, high_pass: float, low_pass: float) -> torch.Tensor:
    """The image [y, x] between two resolutions in Å, with Gaussian flanks (half amplitude there); 0 switches a flank off."""
    shape = (image.shape[0], image.shape[1])
    kx, ky = frequencies(shape, image.device)
    square = (kx * kx + ky * ky) / pixel_size**2
    gain = torch.ones_like(square)
    if low_pass > 0:
        gain = gain * torch.exp2(-square * low_pass**2)
    if high_pass > 0:
        gain = gain * (1 - torch.exp2(-square * high_pass**2))
    return torch.fft.irfft2(torch.fft.rfft2(image) * gain, s=shape)
