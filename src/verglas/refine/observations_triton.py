"""Images made ready on a CUDA card, and their power by shell, each in one pass over memory; `observations` holds the twins in torch.

Needs Triton, which comes with a torch that knows CUDA.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024  # pixels of an image that a program makes ready
SHELL_BLOCK = 256  # pixels of a shell that a program takes at a time


def masked_and_whole(images: torch.Tensor, norm: torch.Tensor, shifts: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`observations.masked_and_whole`, of images float16 or float32."""
    count, box, _ = images.shape
    out = torch.empty(2, count, box, box, dtype=torch.float32, device=images.device)
    if count:
        grid = (count, triton.cdiv(box * box, BLOCK))
        given = (images.contiguous(), norm.float().contiguous(), shifts.contiguous(), mask.contiguous())
        _masked_and_whole[grid](*given, out, out[1], box, BLOCK=BLOCK)
    return out


def power_by_shell(transforms: torch.Tensor, index: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """`observations.power_by_shell`: a program sums one shell of one image, in float64."""
    count, shells = len(transforms), len(starts) - 1
    out = torch.empty(count, shells, dtype=torch.float64, device=transforms.device)
    if count:
        parts = torch.view_as_real(transforms.contiguous())
        _power_by_shell[(count, shells)](parts, index, starts, out, transforms.shape[1], shells, BLOCK=SHELL_BLOCK)
    return out


@triton.jit
def _masked_and_whole(images, norm, shifts, mask, masked, whole, box, BLOCK: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < box * box
    y, x = pixel // box, pixel % box
    # a shift is any whole number; C's remainder has the sign of what is divided
    from_x = ((x - tl.load(shifts + 2 * image)) % box + box) % box
    from_y = ((y - tl.load(shifts + 2 * image + 1)) % box + box) % box
    own = image * box * box
    values = tl.load(images + own + from_y * box + from_x, mask=inside, other=0.0).to(tl.float32)
    values = tl.div_rn(values, tl.load(norm + image))
    tl.store(whole + own + pixel, values, mask=inside)
    tl.store(masked + own + pixel, values * tl.load(mask + pixel, mask=inside, other=0.0), mask=inside)


@triton.jit
def _power_by_shell(transforms, index, starts, out, size, shells, BLOCK: tl.constexpr):
    image, shell = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, last = tl.load(starts + shell), tl.load(starts + shell + 1)
    own = transforms + 2 * size * image
    total = tl.zeros((BLOCK,), tl.float64)
    for begin in range(first, last, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        there = place < last
        at = own + 2 * tl.load(index + place, mask=there, other=0)
        real = tl.load(at, mask=there, other=0.0).to(tl.float64)
        imaginary = tl.load(at + 1, mask=there, other=0.0).to(tl.float64)
        total += real * real + imaginary * imaginary
    tl.store(out + image * shells + shell, tl.sum(total))
