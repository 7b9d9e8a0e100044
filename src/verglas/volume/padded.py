"""Maps to the padded grids on which their slices lie, and back: axis by axis, so that what is not kept is never in memory.

Images and maps [m, (z,) y, x] have their origin at index N // 2. A grid [m, (z,) y, x], complex, holds the transforms of the maps padded
to `padded` pixels within ±half along z and y, centred, and from 0 to half along x. A volume passes as its planes: what follows its
transform along z is that of a stack of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 25}  # points of a padded grid that are worked on in one go


def parts(count: int, each: int, at_once: int) -> Iterator[slice]:
    """Runs of `count` items of `each` points, with no more than `at_once` points where an item holds fewer."""
    step = max(1, at_once // max(each, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def batches(count: int, dims: int, padded: int, device: torch.device) -> Iterator[slice]:
    """Which of `count` maps to work on together: many images, but one volume, which may fill a card's memory with a few copies."""
    return parts(count, padded**dims, AT_ONCE[device.type]) if dims == 2 else (slice(number, number + 1) for number in range(count))


def sinc_squared(box: int, padding: int, dims: int, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
    """Transform of the linear interpolation kernel over a box padded `padding` times, [box] * dims, 1 at the centre."""
    line = torch.sinc((torch.arange(box, device=device, dtype=dtype) - box // 2) / (box * padding)) ** 2
    window = line
    for _ in range(dims - 1):
        window = window[..., None] * line
    return window


def transform_into(maps: torch.Tensor, padded: int, grid: torch.Tensor) -> None:
    """Write the transforms of images [m, N, N], or of one volume [1, N, N, N], into their grid."""
    volume, half = maps.dim() == 4, grid.shape[-1] - 1
    planes = maps.flatten(0, maps.dim() - 3)
    of_planes = grid.new_empty(len(planes), *grid.shape[-2:]) if volume else grid
    for some in parts(len(planes), padded**2, AT_ONCE[maps.device.type]):
        lines = torch.fft.rfft(_wrapped(planes[some], padded, -1))[..., : half + 1]
        # an odd box without padding ends half a pixel before its grid does
        lines = torch.nn.functional.pad(lines, (0, half + 1 - lines.shape[-1]))
        of_planes[some] = _centred(torch.fft.fft(_wrapped(lines, padded, -2), dim=-2), half, -2)
    if volume:
        for rows in parts(grid.shape[-2], padded * (half + 1), AT_ONCE[maps.device.type]):
            grid[0, :, rows] = _centred(torch.fft.fft(_wrapped(of_planes[:, rows], padded, 0), dim=0), half, 0)


def maps_of(grid: Callable[[slice], torch.Tensor], rows: list[slice], box: int, padded: int) -> torch.Tensor:
    """Images [m, box, box], or a volume [1, box, box, box], cut out of the middle of what a grid is the transform of.

    `grid` gives rows (y) of it, in the runs of `rows`: of images all at once. Its values on x = 0 must be each other's mates.
    """
    lines = _joined((_along_z(grid(some), box, padded) for some in rows), rows)
    planes = lines.flatten(0, lines.dim() - 3)
    whole = 2 * (lines.shape[-1] - 1) == padded  # the last column's mates fall on itself
    out = torch.empty(len(planes), box, box, dtype=planes.dtype.to_real(), device=planes.device)
    for some in parts(len(planes), padded**2, AT_ONCE[planes.device.type]):
        columns = _middle(torch.fft.ifft(_folded(planes[some], padded, -2), dim=-2), box, -2)
        if whole:
            columns[..., -1] *= 2
        out[some] = _middle(torch.fft.irfft(columns, n=padded), box, -1)
    return out.view(*lines.shape[:-2], box, box)


def _joined(runs: Iterator[torch.Tensor], rows: list[slice]) -> torch.Tensor:
    """Runs of rows as one array, of which no second copy is made."""
    first = next(runs)
    if len(rows) == 1:
        return first
    out = first.new_empty(*first.shape[:-2], rows[-1].stop, first.shape[-1])
    out[..., rows[0], :] = first
    for some, values in zip(rows[1:], runs, strict=True):
        out[..., some, :] = values
    return out


def _along_z(grid: torch.Tensor, box: int, padded: int) -> torch.Tensor:
    return grid if grid.dim() == 3 else _middle(torch.fft.ifft(_folded(grid, padded, 1), dim=1), box, 1)


def _wrapped(values: torch.Tensor, padded: int, axis: int) -> torch.Tensor:
    """Values of an axis with its origin in the middle, padded, with the origin at index 0."""
    size = values.shape[axis]
    before = size // 2
    shape = list(values.shape)
    shape[axis] = padded
    out = values.new_zeros(shape)
    out.narrow(axis, 0, size - before).copy_(values.narrow(axis, before, size - before))
    out.narrow(axis, padded - before, before).copy_(values.narrow(axis, 0, before))
    return out


def _middle(values: torch.Tensor, box: int, axis: int) -> torch.Tensor:
    """The inverse of `_wrapped`: the `box` values around the origin."""
    before = box // 2
    return torch.cat([values.narrow(axis, values.shape[axis] - before, before), values.narrow(axis, 0, box - before)], dim=axis)


def _centred(values: torch.Tensor, half: int, axis: int) -> torch.Tensor:
    """Frequencies within ±half of an axis in FFT order."""
    return torch.cat([values.narrow(axis, values.shape[axis] - half, half), values.narrow(axis, 0, half + 1)], dim=axis)


def _folded(values: torch.Tensor, padded: int, axis: int) -> torch.Tensor:
    """The transpose of `_centred`: an axis of `padded` frequencies in FFT order; those that are the same there are added up."""
    half = values.shape[axis] // 2
    shape = list(values.shape)
    shape[axis] = padded
    out = values.new_zeros(shape)
    out.narrow(axis, 0, half + 1).copy_(values.narrow(axis, half, half + 1))
    out.narrow(axis, padded - half, half).add_(values.narrow(axis, 0, half))
    return out
