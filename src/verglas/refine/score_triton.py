"""Scores of images against slices (of a table, or sampled) and shifts of their own on a CUDA card; the twin is `score.own_scores`.

A program holds a block of an image's slices times a block of its shifts, and neither moved images nor sampled slices meet the memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from verglas.refine.ragged import Lists
from verglas.volume.slices import Pixels, Projector
from verglas.volume.slices_triton import VARYING, packed, pair, sample, strides

# Of a product. Loads that run ahead in more stages fill the shared memory, and a program has a multiprocessor for itself; more pixels
# spill registers: together 345 ms and not 64 for 2,000 images with 130 sampled slices and 21 shifts each (H200).
_PIXELS, _STAGES = 16, 1
_PRECISION = tl.constexpr("tf32x3")  # the products wait for memory in any case
_FEW, _MANY = 16, 64  # slices of a program: 64 is what four warps multiply together, fewer are left to two
_LEAST_SHIFTS, _MOST_SHIFTS = 16, 64


def score_own(
    projector: Projector,
    pixels: Pixels,
    images: torch.Tensor,
    ctf: torch.Tensor,
    factors: torch.Tensor,
    which: torch.Tensor,
    slices: Lists,
    matrices: torch.Tensor,
    classes: torch.Tensor,
    shifts: Lists,
    *,
    correlation: bool,
) -> torch.Tensor:
    """As `comparison.score_own`."""
    table, scales = packed(projector)
    grid = (*strides(projector.table.shape[1:-1]), float(projector.half_range), float(projector.padding))
    references = (table, scales, *grid, matrices, classes, pixels.kx, pixels.ky)
    return _scores(references, images, ctf, factors, pixels.count, which, slices, shifts, correlation, sampled=True)


def score_listed(
    table: torch.Tensor,
    pixels: Pixels,
    images: torch.Tensor,
    ctf: torch.Tensor,
    factors: torch.Tensor,
    which: torch.Tensor,
    slices: Lists,
    shifts: Lists,
    *,
    correlation: bool,
) -> torch.Tensor:
    """As `score_own`, of slices that are rows of `table` [m, 2k] (real pairs)."""
    nothing = pixels.kx
    pairs = table.view(torch.int64)
    references = (pairs, nothing, 0, 0, 0, 0.0, 0.0, nothing, nothing, nothing, nothing)
    return _scores(references, images, ctf, factors, pixels.count, which, slices, shifts, correlation, sampled=False)


def _scores(
    references: tuple[torch.Tensor | int | float, ...],
    images: torch.Tensor,
    ctf: torch.Tensor,
    factors: torch.Tensor,
    count: int,
    which: torch.Tensor,
    slices: Lists,
    shifts: Lists,
    correlation: bool,
    *,
    sampled: bool,
) -> torch.Tensor:
    assert images.is_contiguous() and ctf.is_contiguous() and factors.is_contiguous() and images.shape == ctf.shape
    starts, counts = (torch.stack([values[which] for values in pair]) for pair in zip(slices[2:], shifts[2:]))
    (rows, columns), usual = counts.amax(1).clamp_(min=1).tolist(), counts.double().mean(1).tolist()
    out = torch.empty(len(which), rows, columns, device=ctf.device)
    # most lists fill a block, and few programs have nothing to do
    block_rows = _FEW if usual[0] <= _FEW else _MANY
    block_columns = min(_MOST_SHIFTS, max(_LEAST_SHIFTS, triton.next_power_of_2(int(usual[1]))))
    grid = (len(which), triton.cdiv(rows, block_rows), triton.cdiv(columns, block_columns))
    seen = (torch.view_as_real(images), ctf, torch.view_as_real(factors), images.shape[1], count, factors.shape[1])
    blocks = {"ROWS": block_rows, "COLUMNS": block_columns, "BLOCK": _PIXELS}
    kind = {"SAMPLED": sampled, "CORRELATION": correlation, "num_warps": 2 if block_rows == _FEW else 4, "num_stages": _STAGES}
    _score[grid](*references, *seen, which, slices.values, shifts.values, *starts, *counts, out, rows, columns, **kind, **blocks)
    return out


@triton.jit
def complex_at(values, place, mask):
    """Real and imaginary part of the complex numbers at `place`, which are kept as pairs of reals."""
    return tl.load(values + 2 * place, mask=mask, other=0.0), tl.load(values + 2 * place + 1, mask=mask, other=0.0)


@triton.jit(do_not_specialize=(*VARYING, "slice_starts", "shift_starts", "slice_counts", "shift_counts"))
def _score(
    table, scales, stride_y, stride_z, stride_map, half, padding, matrices, classes, kx, ky, images, ctf, factors, stride, count, k,
    which, slices, shifts, slice_starts, shift_starts, slice_counts, shift_counts, scores, rows, columns,
    SAMPLED: tl.constexpr, CORRELATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    owner = tl.program_id(0).to(tl.int64)
    row, column = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    own_row, own_column = row < tl.load(slice_counts + owner), column < tl.load(shift_counts + owner)
    into = scores + (owner * rows + row[:, None]) * columns + column[None, :]
    held = (row < rows)[:, None] & (column < columns)[None, :]
    result = tl.full((ROWS, COLUMNS), -float("inf"), tl.float32)
    if (tl.program_id(1) * ROWS < tl.load(slice_counts + owner)) & (tl.program_id(2) * COLUMNS < tl.load(shift_counts + owner)):
        pose = tl.load(slices + tl.load(slice_starts + owner) + row, mask=own_row, other=0)[:, None]
        move = tl.load(shifts + tl.load(shift_starts + owner) + column, mask=own_column, other=0)[:, None]
        image = tl.load(which + owner) * stride
        if SAMPLED:
            class_ = tl.load(classes + pose)
            from_, scale = table + class_ * stride_map, tl.load(scales + class_)
        cross = tl.zeros((ROWS, COLUMNS), tl.float32)
        energy = tl.zeros((ROWS, BLOCK), tl.float32)
        for begin in range(0, count, BLOCK):
            pixel = begin + tl.arange(0, BLOCK)
            there = pixel < count
            transfer = tl.load(ctf + image + pixel, mask=there, other=0.0)
            seen_re, seen_im = complex_at(images, image + pixel, there)
            re, im = complex_at(factors, move * k + pixel[None, :], own_column[:, None] & there[None, :])
            moved_re = transfer[None, :] * (seen_re[None, :] * re - seen_im[None, :] * im)
            moved_im = transfer[None, :] * (seen_re[None, :] * im + seen_im[None, :] * re)
            mask = own_row[:, None] & there[None, :]
            if SAMPLED:
                x, y = tl.load(kx + pixel, mask=there, other=0.0)[None, :], tl.load(ky + pixel, mask=there, other=0.0)[None, :]
                real, imaginary = sample(from_, stride_y, stride_z, half, padding, matrices + 9 * pose, x, y, mask, True)
                real, imaginary = scale * real, scale * imaginary
            else:
                real, imaginary = pair(table, pose * k + pixel[None, :], mask, False)
            cross = tl.dot(real, tl.trans(moved_re), cross, input_precision=_PRECISION)
            cross = tl.dot(imaginary, tl.trans(moved_im), cross, input_precision=_PRECISION)
            energy += (transfer * transfer)[None, :] * (real * real + imaginary * imaginary)
        power = tl.sum(energy, 1)[:, None]
        compared = cross / tl.maximum(tl.sqrt(power), 1e-20) if CORRELATION else cross - 0.5 * power
        result = tl.where(own_row[:, None] & own_column[None, :], compared, result)
    tl.store(into, result, mask=held)
