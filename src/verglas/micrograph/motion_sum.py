"""Frames moved into register and summed: block-wise sinc interpolation, dose weighting, Fourier binning, power spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from verglas.micrograph.frames import crop_rect
from verglas.micrograph.motion import Motion
from verglas.micrograph.power_spectrum import resample_spectrum

_BLOCK = 32  # px a side moved by one shift; local motion changes by less than 0.1 px across it
_TAPS = 20  # of the interpolating kernel
_FRACTIONS = 128  # shifts are rounded to this part of a px


# index of the frame, shape of the images, px of the movie that a px of theirs spans (y, x) -> weights [y, x//2+1]
Weights = Callable[[int, tuple[int, int], tuple[float, float]], torch.Tensor]


@dataclass(frozen=True)
class Sums:
    """Of a movie, on the CPU: micrographs [y, x], dose-weighted and not, and power spectrum [box, box//2+1] of grouped frames."""

    weighted: torch.Tensor | None
    plain: torch.Tensor
    spectrum: torch.Tensor | None


def sum_frames(
    frames: torch.Tensor,
    motion: Motion,
    *,
    weights: Weights | None = None,
    out_shape: tuple[int, int] | None = None,
    spectrum_group: int = 0,
    spectrum_grid: tuple[int, float] = (512, 1.0),
) -> Sums:
    """Move all frames [frames, y, x] by `motion`, and add them up.

    weights: Fourier weights of each frame (dose weighting); the sum is divided by the root of the sum of their squares, so that noise
    stays white. out_shape: Fourier-crop to this shape, mean kept.
    spectrum_group: frames a group for the power spectrum, 0 for none; spectrum_grid: its box and its pixel in px of the movie.
    """
    shape = (int(frames.shape[1]), int(frames.shape[2]))
    out_shape = out_shape or shape
    device = frames.device
    half = (out_shape[0], out_shape[1] // 2 + 1)
    plain = torch.zeros(half, dtype=torch.complex64, device=device)
    weighted = torch.zeros_like(plain)
    squares = torch.zeros(half, device=device)
    group: torch.Tensor | None = None
    power: torch.Tensor | None = None
    for index, moved in enumerate(moved_frames(frames, motion)):
        transform = torch.fft.rfft2(moved)
        cropped = crop_rect(transform, shape, out_shape)
        plain += cropped
        if weights is not None:
            weight = weights(index, out_shape, (shape[0] / out_shape[0], shape[1] / out_shape[1]))
            weighted += cropped * weight
            squares += weight * weight
        if spectrum_group:
            group = transform if group is None else group + transform
            if (index + 1) % spectrum_group == 0 or index + 1 == len(frames):
                part = torch.view_as_real(group).square().sum(dim=-1)
                power = part if power is None else power + part
                group = None
    if weights is not None:
        weighted = weighted / squares.sqrt().clamp(min=1e-6)
    back = out_shape[0] * out_shape[1] / (shape[0] * shape[1])

    def image(transform: torch.Tensor) -> torch.Tensor:
        return (torch.fft.irfft2(transform, s=out_shape) * back).cpu()

    spectrum = resample_spectrum(power, shape, *spectrum_grid).cpu() if power is not None else None
    return Sums(image(weighted) if weights is not None else None, image(plain), spectrum)


def moved_frames(frames: torch.Tensor, motion: Motion) -> Iterator[torch.Tensor]:
    """Each frame [y, x] moved by its total shift, one after another."""
    height, width = frames.shape[1:]
    rows, columns = math.ceil(height / _BLOCK), math.ceil(width / _BLOCK)
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) * _BLOCK, (torch.arange(columns) + 0.5) * _BLOCK, indexing="ij")
    centres = torch.stack([x.clamp(max=width), y.clamp(max=height)], dim=-1).reshape(-1, 2)
    shifts = motion.shifts_at(centres).reshape(rows, columns, len(frames), 2)
    for index, frame in enumerate(frames):
        yield move_blocks(frame, shifts[:, :, index])


def move_blocks(frame: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """A frame [y, x] whose blocks of 32 px are moved by `shifts` [rows, columns, 2] (x, y), px; edges are repeated.

    Each block is two small matrix products with a Kaiser-windowed sinc of 20 taps: exact to 1 % up to 0.8 of Nyquist.
    """
    height, width = frame.shape
    rows, columns = shifts.shape[:2]
    whole = shifts.flatten(0, 1).mean(dim=0).round()
    rest = shifts - whole
    reach = math.ceil(float(rest.abs().max()) + 1e-9)
    margin = reach + _TAPS // 2
    dx, dy = (int(value) for value in whole)
    rows_needed = torch.arange(-margin - dy, rows * _BLOCK + margin - dy, device=frame.device).clamp(0, height - 1)
    columns_needed = torch.arange(-margin - dx, columns * _BLOCK + margin - dx, device=frame.device).clamp(0, width - 1)
    padded = frame.index_select(0, rows_needed).index_select(1, columns_needed)
    window = _BLOCK + 2 * margin
    blocks = padded.unfold(0, window, _BLOCK).unfold(1, window, _BLOCK)  # [rows, columns, window, window]
    table = interpolation_matrices(reach).to(frame.device)
    chosen = ((rest + reach) * _FRACTIONS).round().long().to(frame.device)
    moved = torch.empty(rows, _BLOCK, columns, _BLOCK, device=frame.device)
    at_once = 1 if frame.device.type == "cpu" else rows  # one row of blocks fits into a core's cache
    for row in range(0, rows, at_once):
        part = slice(row, row + at_once)
        along_y, along_x = (table[chosen[part, :, axis]].flatten(0, 1) for axis in (1, 0))
        strip = torch.bmm(torch.bmm(along_y, blocks[part].flatten(0, 1)), along_x.transpose(-1, -2))
        moved[part] = strip.unflatten(0, (-1, columns)).permute(0, 2, 1, 3)
    return moved.reshape(rows * _BLOCK, columns * _BLOCK)[:height, :width]


@lru_cache(maxsize=8)
def interpolation_matrices(reach: int) -> torch.Tensor:
    """Matrices [256 reach + 1, 32, window] that move 32 px by -reach ... reach px, out of a window with that margin and the kernel's.

    Made once for each reach: don't write into them.
    """
    window = _BLOCK + 2 * (reach + _TAPS // 2)
    shift = torch.arange(-reach * _FRACTIONS, reach * _FRACTIONS + 1, dtype=torch.float64)[:, None, None] / _FRACTIONS
    wanted = torch.arange(_BLOCK, dtype=torch.float64)[None, :, None] + reach + _TAPS // 2 - shift
    distance = wanted - torch.arange(window, dtype=torch.float64)
    inside = (2 * distance / _TAPS).abs() <= 1
    taper = torch.special.i0(5.0 * torch.sqrt((1 - (2 * distance / _TAPS).square()).clamp(min=0)))
    kernel = torch.where(inside, torch.sinc(distance) * taper, torch.zeros_like(taper))
    return (kernel / kernel.sum(dim=-1, keepdim=True)).float()
