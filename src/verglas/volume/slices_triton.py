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

from verglas.volume.fixed_point import most_added

if TYPE_CHECKING:
    from verglas.volume.fixed_point import FixedPoint
    from verglas.volume.slices import Pixels, Projector

BLOCK = 256  # pixels of a program
# Parameters that change from call to call. Triton would compile a kernel again, for seconds, for each pattern of their divisibility.
VARYING = ("stride_y", "stride_z", "stride_map", "stride", "count", "k", "steps", "rows", "columns")
_PACKED: WeakKeyDictionary[Projector, tuple[torch.Tensor, torch.Tensor]] = WeakKeyDictionary()


def packed(projector: Projector) -> tuple[torch.Tensor, torch.Tensor]:
    """The projector's table in halves, a complex number in 32 bits, and what each map's numbers were divided by [m].

    A map's largest number becomes 2¹⁴, so that what is 10⁸ times weaker still has 11 bits; that at the origin does not count, which no
    slice pixel touches where maps are padded. Half of the bytes: the table of a box of 128 px then fits the cache of a card.
    """
    if projector not in _PACKED:
        table = projector.table.flatten(1)
        stride_y, stride_z, _ = strides(projector.table.shape[1:-1])
        origin = 2 * projector.half_range * (stride_y + stride_z if projector.dims == 3 else stride_y)
        touched = projector.padding == 1
        around = [each.aminmax(dim=1) for each in ((table,) if touched else (table[:, :origin], table[:, origin + 2 :]))]
        largest = torch.stack([value for low, high in around for value in (-low, high)]).amax(0)
        scales = torch.exp2(torch.ceil(torch.log2(largest.clamp(min=1e-30)) - 14))
        halves = torch.empty_like(table, dtype=torch.float16)
        torch.div(table, scales[:, None], out=halves)
        if not touched:
            halves[:, origin : origin + 2] = 0
        _PACKED[projector] = halves.view(torch.int32), scales
    return _PACKED[projector]


def strides(shape: tuple[int, ...] | torch.Size) -> tuple[int, int, int]:
    """Of y, z and map in maps [z, y, x] one after the other; of z 0 in flat ones."""
    return shape[-1], shape[-2] * shape[-1] if len(shape) == 3 else 0, math.prod(shape)


def project(
    table: torch.Tensor, half_range: int, padding: int, matrices: torch.Tensor, pixels: Pixels, which: torch.Tensor | None
) -> torch.Tensor:
    """`Projector.project` from a `Projector.table`."""
    out = torch.empty(len(matrices), len(pixels), dtype=torch.complex64, device=table.device)
    turns = matrices.to(table).contiguous()
    pairs, place = table.view(torch.int64), (*strides(table.shape[1:-1]), float(half_range), float(padding))
    if len(turns):
        grid = (len(turns), triton.cdiv(len(pixels), BLOCK))
        plane = (pixels.kx, pixels.ky, pixels.count, len(pixels))
        _project[grid](pairs, *place, turns, _maps(which, turns), *plane, torch.view_as_real(out), MANY=which is not None, BLOCK=BLOCK)
    return out


def spread(
    sums: FixedPoint,
    shape: tuple[int, ...],
    padding: int,
    matrices: torch.Tensor,
    pixels: Pixels,
    numerators: torch.Tensor,
    weights: torch.Tensor | None,
    which: torch.Tensor | None,
) -> None:
    """`FourierSums.add` into the sums of a grid of `shape`: whole numbers, as the card adds in any order."""
    turns, values = matrices.float().contiguous(), torch.view_as_real(numerators.to(torch.complex64).contiguous())
    shares = values if weights is None else weights.float().contiguous()
    real = slice(pixels.count)
    factors = sums.make_room(most_added(numerators[:, real], None if weights is None else weights[:, real]))
    place = (*strides(shape), float(shape[-1] - 1), float(padding))
    if len(turns):
        grid = (len(turns), triton.cdiv(pixels.count, BLOCK))
        slices = (turns, _maps(which, turns), pixels.kx, pixels.ky, pixels.count, len(pixels), values, shares)
        _spread[grid](sums.counts, *place, *slices, *factors, MANY=which is not None, LANES=2 if weights is None else 3, BLOCK=BLOCK)


def _maps(which: torch.Tensor | None, instead: torch.Tensor) -> torch.Tensor:
    """Where a kernel reads the slices' maps; it reads nothing where there is but one."""
    return instead if which is None else which.contiguous()


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
def scatter(counts, stride_y, stride_z, half, padding, matrix, kx, ky, mask, real, imaginary, weight, LANES: tl.constexpr):
    """Add a block of a slice's pixels, in steps, to the counts [voxels, 3]: neighbouring threads to those of one voxel."""
    ix, iy, iz, fx, fy, fz, sign = locate(matrix, kx, ky, half, padding)
    corner = iz * stride_z + iy * stride_y + ix
    values = tl.join(tl.join(real, weight), tl.join(imaginary * sign, tl.zeros_like(real))).reshape(real.shape[0], 4)
    lanes = tl.arange(0, 4)[None, :]
    for up in tl.static_range(2):
        for right in tl.static_range(2):
            for far in tl.static_range(2):
                share = (fz if up else 1 - fz) * (fy if right else 1 - fy) * (fx if far else 1 - fx)
                place = (corner + up * stride_z + right * stride_y + far).to(tl.int64) * 3
                there = (mask & (share > 0))[:, None] & (lanes < LANES)  # the upper half of a flat map is none
                whole = tl.floor(share[:, None] * values + 0.5).to(tl.int64)  # 24 bits, wherever they lie among the 64
                tl.atomic_add(counts + place[:, None] + lanes, whole, mask=there, sem="relaxed")


@triton.jit
def _of_map(which, slice_, stride_map, MANY: tl.constexpr):
    """Where the map of a slice begins, in grid points."""
    return tl.load(which + slice_) * stride_map if MANY else 0


@triton.jit(do_not_specialize=VARYING)
def _project(
    table, stride_y, stride_z, stride_map, half, padding, matrices, which, kx, ky, count, k, out, MANY: tl.constexpr, BLOCK: tl.constexpr
):
    slice_, pixel = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real_pixel = pixel < count
    x, y = tl.load(kx + pixel, mask=real_pixel, other=0.0), tl.load(ky + pixel, mask=real_pixel, other=0.0)
    own = table + _of_map(which, slice_, stride_map, MANY)
    real, imaginary = sample(own, stride_y, stride_z, half, padding, matrices + 9 * slice_, x, y, real_pixel, False)
    into = out + 2 * (slice_ * k + pixel)
    tl.store(into, tl.where(real_pixel, real, 0.0), mask=pixel < k)
    tl.store(into + 1, tl.where(real_pixel, imaginary, 0.0), mask=pixel < k)


@triton.jit(do_not_specialize=VARYING)
def _spread(
    counts, stride_y, stride_z, stride_map, half, padding, matrices, which, kx, ky, count, k, values, weights, of_values, of_weights,
    MANY: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slice_, pixel = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < count
    x, y = tl.load(kx + pixel, mask=mask, other=0.0), tl.load(ky + pixel, mask=mask, other=0.0)
    at = slice_ * k + pixel
    real = of_values * tl.load(values + 2 * at, mask=mask, other=0.0)
    imaginary = of_values * tl.load(values + 2 * at + 1, mask=mask, other=0.0)
    weight = of_weights * tl.load(weights + at, mask=mask, other=0.0) if LANES == 3 else tl.zeros_like(real)
    own = counts + 3 * _of_map(which, slice_, stride_map, MANY)
    scatter(own, stride_y, stride_z, half, padding, matrices + 9 * slice_, x, y, mask, real, imaginary, weight, LANES)
