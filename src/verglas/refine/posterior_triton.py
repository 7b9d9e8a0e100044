"""The likely poses of each image on a CUDA card, from the products of the coarse pass; twin: `posterior.likely_poses`.

The products are read once; after that only the blocks that hold a likely pose.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024  # slices of a program
_VARYING = ("shifts", "slices", "blocks")  # not compiled again for each pattern of their divisibility


def likely_poses(
    products: torch.Tensor,
    energy: torch.Tensor,
    log_shift: torch.Tensor,
    log_slice: torch.Tensor,
    classes: torch.Tensor,
    bound: torch.Tensor | None,
    below: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, place, score [m] of the poses within `below` of each image's best, and that best [b]; operands as the twin's."""
    images, shifts, slices = products.shape
    assert products.is_contiguous() and energy.is_contiguous() and log_shift.is_contiguous() and images
    blocks = triton.cdiv(slices, _BLOCK)
    terms = (products, energy, log_shift, log_slice, classes, classes if bound is None else bound, shifts, slices)
    kind = {"BOUND": bound is not None, "BLOCK": _BLOCK}
    best = torch.empty(images, shifts * blocks, device=products.device)
    _best_of_blocks[(images, shifts, blocks)](*terms, best, **kind)
    largest = best.amax(dim=1)
    cut = largest - below
    image, block = torch.nonzero(best > cut[:, None], as_tuple=True)
    counts = torch.empty(len(image), dtype=torch.int64, device=products.device)
    _count[(len(image),)](*terms, cut, image, block, blocks, counts, **kind)
    ends = torch.cumsum(counts, 0)
    total = int(counts.sum())
    place, score = (torch.empty(total, dtype=kind_, device=products.device) for kind_ in (torch.int64, torch.float32))
    _collect[(len(image),)](*terms, cut, image, block, blocks, ends - counts, place, score, **kind)
    return torch.repeat_interleave(image, counts, output_size=len(place)), place, score, largest


@triton.jit
def _scores(
    products, energy, log_shift, log_slice, classes, bound, shifts, slices, image, shift, block, BOUND: tl.constexpr, BLOCK: tl.constexpr
):
    """Scores of a block of slices at one shift of one image, −inf past the last, and their places."""
    row = block * BLOCK + tl.arange(0, BLOCK)
    there = row < slices
    value = tl.load(products + (image * shifts + shift) * slices + row, mask=there, other=-float("inf"))
    value = value - tl.load(energy + image * slices + row, mask=there, other=0.0)
    value = value + tl.load(log_shift + image * shifts + shift)
    value = value + tl.load(log_slice + row, mask=there, other=0.0)
    if BOUND:
        own = tl.load(bound + image)
        value = tl.where((own >= 0) & (own != tl.load(classes + row, mask=there, other=0)), -float("inf"), value)
    return value, shift * slices + row


@triton.jit(do_not_specialize=_VARYING)
def _best_of_blocks(products, energy, log_shift, log_slice, classes, bound, shifts, slices, best, BOUND: tl.constexpr, BLOCK: tl.constexpr):
    image, shift, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    value, _ = _scores(products, energy, log_shift, log_slice, classes, bound, shifts, slices, image, shift, block, BOUND, BLOCK)
    blocks = tl.num_programs(2)
    tl.store(best + (image * shifts + shift) * blocks + block, tl.max(value))


@triton.jit
def _of_list(
    products, energy, log_shift, log_slice, classes, bound, shifts, slices, cut, image, block, blocks,
    BOUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scores of a listed block, their places, and which of them are likely."""
    number = tl.program_id(0)
    own, at = tl.load(image + number), tl.load(block + number)
    value, place = _scores(
        products, energy, log_shift, log_slice, classes, bound, shifts, slices, own, at // blocks, at % blocks, BOUND, BLOCK
    )
    return value, place, value > tl.load(cut + own)


@triton.jit(do_not_specialize=_VARYING)
def _count(
    products, energy, log_shift, log_slice, classes, bound, shifts, slices, cut, image, block, blocks, counts,
    BOUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    _, _, likely = _of_list(products, energy, log_shift, log_slice, classes, bound, shifts, slices, cut, image, block, blocks, BOUND, BLOCK)
    tl.store(counts + tl.program_id(0), tl.sum(likely.to(tl.int64)))


@triton.jit(do_not_specialize=_VARYING)
def _collect(
    products, energy, log_shift, log_slice, classes, bound, shifts, slices, cut, image, block, blocks, starts, places, scores,
    BOUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    value, place, likely = _of_list(
        products, energy, log_shift, log_slice, classes, bound, shifts, slices, cut, image, block, blocks, BOUND, BLOCK
    )
    number = likely.to(tl.int32)
    into = tl.load(starts + tl.program_id(0)) + tl.cumsum(number, 0) - number
    tl.store(places + into, place, mask=likely)
    tl.store(scores + into, value, mask=likely)
