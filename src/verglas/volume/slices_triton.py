"""Sampling of slices and its transpose on a CUDA card, for maps in float32; `slices` holds the twin in torch and decides.

Needs Triton, which comes with a torch that knows CUDA.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from verglas.volume.slices import Pixels, Projector

BLOCK = 256  # pixels of a program
_PACKED: WeakKeyDictionary[Projector, tuple[torch.Tensor, float]] = WeakKeyDictionary()


def packed(projector: Projector) -> tuple[torch.Tensor, float]:
    """The projector's table in halves, a complex number in 32 bits, and what its numbers were divided by.

    The largest number but that at the origin, which no slice pixel touches, becomes 2¹⁴, so that what is 10⁸ times weaker still has
    11 bits. Half of the bytes: the table of a box of 128 px then fits the cache of a card.
    """
    if projector not in _PACKED:
        values = projector.table.clone()
        half = projector.half_range
        values[(half,) * (projector.dims - 1)][0] = 0
        scale = 2.0 ** math.ceil(math.log2(max(float(values.abs().amax()), 1e-30)) - 14)
        _PACKED[projector] = ((values / scale).half().view(torch.int32), scale)
    return _PACKED[projector]


def strides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Of y and z in an array [z, y, x]; of z 0 in a flat one."""
    return shape[-1], shape[-2] * shape[-1] if len(shape) == 3 else 0


def project(table: torch.Tensor, half_range: int, matrices: torch.Tensor, pixels: Pixels, padding: int) -> torch.Tensor:
    """`Projector.project` from a `Projector.table`."""
    out = torch.empty(len(matrices), len(pixels), dtype=torch.complex64, device=table.device)
    turns = matrices.to(table).contiguous()
    pairs, place = table.view(torch.int64), (*strides(table.shape[:-1]), float(half_range), float(padding))
    if len(turns):
        grid = (len(turns), triton.cdiv(len(pixels), BLOCK))
        _project[grid](pairs, *place, turns, pixels.kx, pixels.ky, pixels.count, len(pixels), torch.view_as_real(out), BLOCK=BLOCK)
    return out


def spread(
    sums: torch.Tensor,
    shape: tuple[int, ...],
    matrices: torch.Tensor,
    pixels: Pixels,
    padding: int,
    numerators: torch.Tensor,
    weights: torch.Tensor | None,
) -> None:
    """`FourierSums.add` into sums [voxels, 4] of a grid of `shape`, in the order in which the card happens to add."""
    turns, values = matrices.to(sums).contiguous(), torch.view_as_real(numerators.to(torch.complex64).contiguous())
    shares = values if weights is None else weights.to(sums).contiguous()
    place = (*strides(shape), float(shape[-1] - 1), float(padding))
    if len(turns):
        grid = (len(turns), triton.cdiv(pixels.count, BLOCK))
        plane = (pixels.kx, pixels.ky, pixels.count, len(pixels))
        _spread[grid](sums, *place, turns, *plane, values, shares, WEIGHTED=weights is not None, BLOCK=BLOCK)


@triton.jit
def locate(matrix, kx, ky, half, padding):
    """Lowest corner (x, y, z) around the points of a slice, distances from it, and the sign of the imaginary part."""
    x = (kx * tl.load(matrix) + ky * tl.load(matrix + 3)) * padding
    y = (kx * tl.load(matrix + 1) + ky * tl.load(matrix + 4)) * padding
    z = (kx * tl.load(matrix + 2) + ky * tl.load(matrix + 5)) * padding
    sign = tl.where(x < 0, -1.0, 1.0)
    x, y, z = x * sign, y * sign + half, z * sign + half
    ix, iy, iz = x.to(tl.int32), y.to(tl.int32), z.to(tl.int32)  # none is negative
    return ix, iy, iz, x - ix.to(tl.float32), y - iy.to(tl.float32), z - iz.to(tl.float32), sign


@triton.jit
def pair(table, place, mask, PACKED: tl.constexpr):
    """Real and imaginary part of a complex number that is loaded as one: of two halves, or of two floats."""
    both = tl.load(table + place, mask=mask, other=0)
    if PACKED:
        real = (both & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        imaginary = (both >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        real = (both & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
        imaginary = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return real, imaginary


@triton.jit
def sample(table, stride_y, stride_z, half, padding, matrix, kx, ky, mask, PACKED: tl.constexpr):
    """The slice's values at a block of its pixels."""
    ix, iy, iz, fx, fy, fz, sign = locate(matrix, kx, ky, half, padding)
    corner = iz * stride_z + iy * stride_y + ix
    real = tl.zeros_like(fx)
    imaginary = tl.zeros_like(fx)
    for up in tl.static_range(2):
        for right in tl.static_range(2):
            for far in tl.static_range(2):
                share = (fz if up else 1 - fz) * (fy if right else 1 - fy) * (fx if far else 1 - fx)
                re, im = pair(table, corner + up * stride_z + right * stride_y + far, mask, PACKED)
                real += share * re
                imaginary += share * im
    return real, imaginary * sign


@triton.jit
def scatter(sums, stride_y, stride_z, half, padding, matrix, kx, ky, mask, real, imaginary, weight):
    """Add a block of a slice's pixels to the sums [voxels, 4]; the fourth number lets the card add 16 bytes at once."""
    ix, iy, iz, fx, fy, fz, sign = locate(matrix, kx, ky, half, padding)
    corner = iz * stride_z + iy * stride_y + ix
    values = tl.join(tl.join(real, weight), tl.join(imaginary * sign, tl.zeros_like(real))).reshape(real.shape[0], 4)
    lanes = tl.arange(0, 4)[None, :]
    for up in tl.static_range(2):
        for right in tl.static_range(2):
            for far in tl.static_range(2):
                share = (fz if up else 1 - fz) * (fy if right else 1 - fy) * (fx if far else 1 - fx)
                place = (corner + up * stride_z + right * stride_y + far).to(tl.int64) * 4
                there = mask & (share > 0)  # the upper half of a flat map is none
                tl.atomic_add(sums + place[:, None] + lanes, share[:, None] * values, mask=there[:, None], sem="relaxed")


@triton.jit
def _project(table, stride_y, stride_z, half, padding, matrices, kx, ky, count, k, out, BLOCK: tl.constexpr):
    slice_, pixel = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real_pixel = pixel < count
    x, y = tl.load(kx + pixel, mask=real_pixel, other=0.0), tl.load(ky + pixel, mask=real_pixel, other=0.0)
    real, imaginary = sample(table, stride_y, stride_z, half, padding, matrices + 9 * slice_, x, y, real_pixel, False)
    into = out + 2 * (slice_ * k + pixel)
    tl.store(into, tl.where(real_pixel, real, 0.0), mask=pixel < k)
    tl.store(into + 1, tl.where(real_pixel, imaginary, 0.0), mask=pixel < k)


@triton.jit
def _spread(
    sums, stride_y, stride_z, half, padding, matrices, kx, ky, count, k, values, weights, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr
):
    slice_, pixel = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < count
    x, y = tl.load(kx + pixel, mask=mask, other=0.0), tl.load(ky + pixel, mask=mask, other=0.0)
    at = slice_ * k + pixel
    real, imaginary = tl.load(values + 2 * at, mask=mask, other=0.0), tl.load(values + 2 * at + 1, mask=mask, other=0.0)
    weight = tl.load(weights + at, mask=mask, other=0.0) if WEIGHTED else tl.zeros_like(real)
    scatter(sums, stride_y, stride_z, half, padding, matrices + 9 * slice_, x, y, mask, real, imaginary, weight)
