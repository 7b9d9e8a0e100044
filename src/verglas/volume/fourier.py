"""Centred Fourier transforms of images and maps, their frequencies, shells, cropping and shifting.

Every array here has its origin at index N//2 in real space. Transforms are half transforms in FFT order, as torch.fft.rfftn
stores them: kx = 0 ... N//2 along the last axis, ky (and kz) = 0, 1, ... -1 along the others, without any factor on the way forth
(RELION divides by the number of pixels). `dims` is 2 for images [..., y, x] and 3 for maps [..., z, y, x]; the leading axes are free.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from verglas.volume.fixed_point import exact_sums

Device = torch.device | str | None
_LANES = 256


def rfft_centred(values: torch.Tensor, dims: int = 2) -> torch.Tensor:
    """Half transform [..., N, N//2+1] of real images or maps [..., N, N] whose origin is at index N//2; exp(-2 pi i k x)."""
    axes = tuple(range(-dims, 0))
    return torch.fft.rfftn(torch.fft.ifftshift(values, dim=axes), dim=axes)


def irfft_centred(transform: torch.Tensor, size: int, dims: int = 2) -> torch.Tensor:
    """Real images or maps of edge `size` from a half transform; the inverse of `rfft_centred`."""
    axes = tuple(range(-dims, 0))
    return torch.fft.fftshift(torch.fft.irfftn(transform, s=(size,) * dims, dim=axes), dim=axes)


def frequency_grid(size: int, pixel_size: float = 1.0, dims: int = 2, device: Device = None) -> tuple[torch.Tensor, ...]:
    """Frequencies kx, ky(, kz) of a half transform, 1/Å (cycles a pixel for pixel size 1), each of the transform's shape, float32.

    They are views without memory of their own: clone before writing into one.
    """
    full = torch.fft.fftfreq(size, d=pixel_size, device=device, dtype=torch.float64).float()
    half = torch.fft.rfftfreq(size, d=pixel_size, device=device, dtype=torch.float64).float()
    grids = torch.meshgrid(*[full] * (dims - 1), half, indexing="ij")
    return tuple(reversed(grids))


def shell_index(size: int, dims: int = 2, device: Device = None) -> torch.Tensor:
    """Shell of every entry of a half transform: round(|k|) in Fourier pixels, int64, RELION's rule; the corners pass N//2."""
    full = torch.fft.fftfreq(size, d=1 / size, device=device, dtype=torch.float64).square()
    squared = torch.arange(size // 2 + 1, device=device, dtype=torch.float64).square()
    for _ in range(dims - 1):
        squared = full[(slice(None),) + (None,) * squared.dim()] + squared
    return squared.sqrt_().round_().long()


def shell_sums(values: torch.Tensor, size: int, dims: int = 2, shells: int | None = None) -> torch.Tensor:
    """Sum of real `values` [..., half transform] over each shell -> [..., shells], float64.

    The half transform is summed as it is stored, with no weight for the half that isn't (RELION's rule). `shells` counts from
    shell 0 and is N//2+1 where it isn't given; entries beyond the last are left out.
    """
    shells = size // 2 + 1 if shells is None else shells
    index = shell_index(size, dims, values.device).flatten().clamp_(max=shells)
    return sum_by(index, values.flatten(-dims).double(), shells + 1)[..., :shells]


def sum_by(index: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """Sums [..., count] of the values [..., n] of each `index` int64 [n].

    On a card, which adds in any order, as integers, and over many copies of the few sums, which else all would wait for.
    """
    if not values.is_cuda:
        return values.new_zeros(*values.shape[:-1], count).scatter_add_(-1, index.expand_as(values), values)
    lanes = max(1, min(_LANES, len(index) // count))
    place = index if lanes == 1 else index + count * (torch.arange(len(index), device=index.device) % lanes)
    return exact_sums(place, values.double(), lanes * count).unflatten(-1, (lanes, count)).sum(-2).to(values.dtype)


def shell_counts(size: int, dims: int = 2, shells: int | None = None, device: Device = None) -> torch.Tensor:
    """Number of stored entries in each shell [shells], float64."""
    return shell_sums(torch.ones((size,) * (dims - 1) + (size // 2 + 1,), device=device), size, dims, shells)


def radial_average(values: torch.Tensor, size: int, dims: int = 2, shells: int | None = None) -> torch.Tensor:
    """Mean of real `values` [..., half transform] over each shell -> [..., shells], float64; an empty shell is 0."""
    counts = shell_counts(size, dims, shells, values.device)
    return shell_sums(values, size, dims, shells) / counts.clamp(min=1)


def crop_transform(transform: torch.Tensor, size: int, new_size: int, dims: int = 2) -> torch.Tensor:
    """The part of a half transform [..., size, size//2+1] that an image of `new_size` <= `size` has, values unchanged.

    At an even new size the row of the new Nyquist frequency is taken from +new_size/2, as RELION does.
    """
    if not 0 < new_size <= size:
        raise ValueError(f"cannot crop a transform of size {size} to {new_size}")
    wanted = torch.arange(new_size, device=transform.device)
    wanted = torch.where(wanted <= new_size // 2, wanted, wanted + size - new_size)
    for axis in range(-dims, -1):
        transform = transform.index_select(axis, wanted)
    return transform[..., : new_size // 2 + 1]


def fourier_crop(values: torch.Tensor, new_size: int, dims: int = 2) -> torch.Tensor:
    """Resample images or maps [..., N, N] to a smaller edge by cutting their transform; mean and centre (index N//2) are kept.

    No filter is applied. This is RELION's `--scale`; the pixel size grows by N/new_size.
    """
    size = values.shape[-1]
    if new_size == size:
        return values
    transform = crop_transform(rfft_centred(values, dims), size, new_size, dims)
    return irfft_centred(transform, new_size, dims) * (new_size / size) ** dims


def fourier_pad(values: torch.Tensor, new_size: int, dims: int = 2) -> torch.Tensor:
    """Resample images or maps [..., N, N] to a larger edge with zeros beyond the old Nyquist frequency; mean and centre are kept.

    The old Nyquist row of an even size is shared between its two signs, so that old pixels are met exactly where the grids coincide.
    """
    size = values.shape[-1]
    if new_size < size:
        raise ValueError(f"cannot pad images of size {size} to {new_size}")
    if new_size == size:
        return values
    old = rfft_centred(values, dims)
    for axis in range(-dims, -1):
        old = _pad_axis(old, size, new_size, axis)
    if size % 2 == 0:
        old = torch.cat([old[..., :-1], old[..., -1:] / 2], dim=-1)
    old = torch.nn.functional.pad(torch.view_as_real(old), (0, 0, 0, new_size // 2 + 1 - old.shape[-1]))
    return irfft_centred(torch.view_as_complex(old), new_size, dims) * (new_size / size) ** dims


def _pad_axis(transform: torch.Tensor, size: int, new_size: int, axis: int) -> torch.Tensor:
    """Zeros between the positive and the negative frequencies of one axis in FFT order; an even size's Nyquist row is halved."""
    half = size // 2
    positive = transform.narrow(axis, 0, (size + 1) // 2)
    negative = transform.narrow(axis, size - half, half)
    middle = list(transform.shape)
    middle[axis] = new_size - size
    if size % 2:
        return torch.cat([positive, transform.new_zeros(middle), negative], dim=axis)
    nyquist = negative.narrow(axis, 0, 1) / 2
    negative = torch.cat([nyquist, negative.narrow(axis, 1, half - 1)], dim=axis)
    middle[axis] -= 1
    return torch.cat([positive, nyquist, transform.new_zeros(middle), negative], dim=axis)


def shift_phases(frequencies: tuple[torch.Tensor, ...], shifts: torch.Tensor) -> torch.Tensor:
    """Factors exp(-2 pi i k s) that move images or maps by `shifts` [..., d], ordered x, y(, z) -> complex [..., *frequency shape].

    `frequencies` is (kx, ky(, kz)) of any one shape, in the inverse of the unit of the shifts.
    """
    spatial = frequencies[0].dim()
    shifts = shifts.to(frequencies[0])
    turns = sum(k * shifts[(..., axis) + (None,) * spatial] for axis, k in enumerate(frequencies))
    assert isinstance(turns, torch.Tensor)
    # only the fraction of a turn matters, and float32 keeps it better than the whole phase
    phase = -2 * torch.pi * (turns - turns.round())
    return torch.polar(torch.ones_like(phase), phase)


def fourier_shift(values: torch.Tensor, shifts: torch.Tensor, dims: int = 2) -> torch.Tensor:
    """Images or maps [..., N, N] moved by `shifts` [..., dims] pixels, ordered x, y(, z), around the edges."""
    size = values.shape[-1]
    phases = shift_phases(frequency_grid(size, 1.0, dims, values.device), shifts)
    return irfft_centred(rfft_centred(values, dims) * phases, size, dims)


class PackedPixels(NamedTuple):
    """Fourier pixels of a half plane as one list, sorted by shell; all tensors int64.

    flat: place in the flattened half transform [k]; kx, ky: frequency in Fourier pixels [k]; shell: [k];
    ends: ends[s] is the number of pixels in shells up to s [max_shell + 1], so a lower resolution is a prefix of the list.
    """

    flat: torch.Tensor
    kx: torch.Tensor
    ky: torch.Tensor
    shell: torch.Tensor
    ends: torch.Tensor


@lru_cache(maxsize=16)
def packed_pixels(size: int, max_shell: int | None = None) -> PackedPixels:
    """The half plane's pixels up to `max_shell` (N//2 where not given), each independent one once, without the DC term.

    On kx = 0 only ky > 0 is taken. The Nyquist row and column of an even size are left out: they have no phase of their own.
    The tensors are on the CPU and shared between calls: don't write into them.
    """
    max_shell = size // 2 if max_shell is None else max_shell
    if not 0 <= max_shell <= size // 2:
        raise ValueError(f"shell {max_shell} is outside 0 to {size // 2} for images of {size} px")
    kx, ky = ((k.double() * size).round().long().flatten() for k in frequency_grid(size))
    shell = shell_index(size).flatten()
    keep = ((kx > 0) | (ky > 0)) & (shell <= max_shell) & (2 * kx < size) & (2 * ky.abs() < size)
    flat = torch.nonzero(keep).squeeze(1)
    flat = flat[torch.argsort(shell[flat], stable=True)]
    ends = torch.cumsum(torch.bincount(shell[flat], minlength=max_shell + 1), dim=0)
    return PackedPixels(flat, kx[flat], ky[flat], shell[flat], ends)
