"""Movie frames as the detector's counts should have been: gain applied, defects found and filled, damaged movies refused."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from verglas.errors import ItemError

_OUTLIER_SIGMA = 6.5  # of variance-stabilised counts: no pixel of 10^8 by chance
_NEIGHBOURHOOD = 15  # px; edge of the box that a pixel is compared with
_MAX_DEFECT_SHARE = 0.2


@dataclass(frozen=True)
class Frames:
    """Frames ready for alignment.

    values: float32 [frames, y, x], gain-corrected counts with defects filled. defects: bool [y, x], every pixel that was filled.
    hot: int64 [n, 2] as (x, y), those of them that were found in this movie and not given by the gain reference.
    """

    values: torch.Tensor
    defects: torch.Tensor
    hot: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)


def prepare_frames(
    counts: torch.Tensor,
    name: str,
    gain: torch.Tensor | None = None,
    defects: torch.Tensor | None = None,
    *,
    find_hot: bool = True,
    seed: int = 1,
) -> Frames:
    """Multiply by the gain, find hot and dead pixels in the sum, and fill all defects from random good neighbours.

    counts: [frames, y, x], changed in place when it is float32 already. gain: [y, x], 0 where the detector is dead.
    defects: bool [y, x], known before. Raises ItemError, naming `name`, for a movie that holds no image: NaN, constant, mostly defects.
    """
    values = counts.float()
    known = torch.zeros(values.shape[-2:], dtype=torch.bool, device=values.device)
    if defects is not None:
        known |= defects
    if gain is not None:
        usable = torch.isfinite(gain) & (gain > 0)
        known |= ~usable
        values *= torch.where(usable, gain, 0.0)
    total = values.sum(dim=0)
    _refuse_blank(values, total, known, name)
    found = find_outliers(total, known) if find_hot else torch.zeros_like(known)
    bad = known | found
    if bad.float().mean() > _MAX_DEFECT_SHARE:
        raise ItemError(name, f"{100 * float(bad.float().mean()):.0f} % of the pixels are defects")
    fill_defects(values, bad, seed)
    return Frames(values, bad, found.nonzero().flip(1))


def _refuse_blank(values: torch.Tensor, total: torch.Tensor, known: torch.Tensor, name: str) -> None:
    good = total[~known]
    if not bool(torch.isfinite(good).all()):
        raise ItemError(name, "holds values that are not numbers (NaN or infinity)")
    if good.numel() == 0 or bool(good.max() == good.min()):
        raise ItemError(name, "is constant: it holds no image")
    for number, frame in enumerate(values, 1):
        if bool(frame.max() == frame.min()):
            raise ItemError(name, f"frame {number} is constant")


def find_outliers(total: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Pixels of the summed counts [y, x] that stand out from their surroundings, as a mask; `known` defects are left aside.

    Counts are compared after Anscombe's variance stabilisation, 2 sqrt(n + 3/8), with the mean of a box of 15 px.
    """
    stabilised = 2 * torch.sqrt(total.clamp(min=0) + 0.375)
    good = (~known).float()
    # the typical value, so that a hot pixel does not lift its own surroundings
    limit = stabilised[~known].mean() + 6 * stabilised[~known].std()
    clipped = stabilised.clamp(max=limit) * good
    local = box_mean(clipped, _NEIGHBOURHOOD) / box_mean(good, _NEIGHBOURHOOD).clamp(min=1e-3)
    deviation = stabilised - local
    sample = deviation[~known].abs()
    sample = sample[:: max(1, sample.numel() // 1_000_000)]
    spread = sample.median() * 1.4826
    return (deviation.abs() > _OUTLIER_SIGMA * spread) & ~known


def box_mean(image: torch.Tensor, size: int) -> torch.Tensor:
    """Mean over a box of `size` px (odd) around each pixel of an image [y, x], edges repeated."""
    image = image[None, None]
    for pad, kernel in (((size // 2, size // 2, 0, 0), (1, size)), ((0, 0, size // 2, size // 2), (size, 1))):
        image = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(image, pad, mode="replicate"), kernel, stride=1)
    return image[0, 0]


def fill_defects(values: torch.Tensor, bad: torch.Tensor, seed: int = 1) -> None:
    """Replace the `bad` pixels [y, x] of all frames [frames, y, x] in place, each by a random good neighbour's count of the same frame.

    A neighbour's count has the noise of a count; a mean would leave a calm spot that stays put while the specimen moves.
    """
    where = bad.nonzero().cpu()
    if not len(where):
        return
    generator = torch.Generator().manual_seed(seed)
    height, width = bad.shape
    good = ~bad.cpu()
    source = where[None].repeat(len(values), 1, 1)
    waiting = torch.ones(source.shape[:2], dtype=torch.bool)
    for attempt in range(60):
        reach = 2 + attempt // 4
        drawn = torch.randint(-reach, reach + 1, source.shape, generator=generator) + where
        drawn[..., 0].clamp_(0, height - 1)
        drawn[..., 1].clamp_(0, width - 1)
        usable = waiting & good[drawn[..., 0], drawn[..., 1]]
        source[usable] = drawn[usable]
        waiting &= ~usable
        if not bool(waiting.any()):
            break
    source = source.to(values.device)
    frame = torch.arange(len(values), device=values.device)[:, None]
    filled = values[frame, source[..., 0], source[..., 1]]
    values[:, bad] = torch.where(waiting.to(values.device), values[0].mean(), filled)


def crop_rect(transform: torch.Tensor, shape: tuple[int, int], new_shape: tuple[int, int]) -> torch.Tensor:
    """The part of a half transform [..., y, x//2+1] of images of `shape` that images of `new_shape` (smaller) have."""
    if new_shape == shape:
        return transform
    (height, _), (new_height, new_width) = shape, new_shape
    wanted = torch.arange(new_height, device=transform.device)
    wanted = torch.where(wanted <= new_height // 2, wanted, wanted + height - new_height)
    return transform[..., : new_width // 2 + 1].index_select(-2, wanted)


def frequencies(shape: tuple[int, int], device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies kx [1, x//2+1] and ky [y, 1] of the half transform of images of `shape`, cycles a pixel."""
    height, width = shape
    return torch.fft.rfftfreq(width, device=device)[None, :], torch.fft.fftfreq(height, device=device)[:, None]
