"""The kernels of the expectation on a CUDA card, with slices that are sampled, used and forgotten; see `comparison` for their twins."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from verglas.refine.groups import Groups
from verglas.refine.score_triton import complex_at, score_listed, score_own
from verglas.volume.slices import Pixels, Projector
from verglas.volume.slices_triton import BLOCK, VARYING, packed, sample, strides

__all__ = ["score_listed", "score_own", "sum_into_slices", "sum_over_slices"]


def sum_into_slices(
    images: torch.Tensor, ctf: torch.Tensor, factors: torch.Tensor, groups: Groups, order: torch.Tensor, starts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `comparison.sum_into_slices`."""
    k, rows = factors.shape[1], len(starts) - 1
    numerators = torch.empty(rows, k, dtype=torch.complex64, device=ctf.device)
    weights = torch.empty(rows, k, device=ctf.device)
    if rows:
        into = (torch.view_as_real(numerators), weights)
        operands = (*_images(images, ctf, factors), *groups, order, starts)
        _sum_into_slices[(rows, triton.cdiv(k, BLOCK))](*operands, *into, k, BLOCK=BLOCK)
    return numerators, weights


def sum_over_slices(
    projector: Projector,
    pixels: Pixels,
    images: torch.Tensor,
    ctf: torch.Tensor,
    factors: torch.Tensor,
    groups: Groups,
    matrices: torch.Tensor,
    classes: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `comparison.sum_over_slices`."""
    count = len(images)
    cross, energy = torch.empty(2, count, len(pixels), device=ctf.device)
    starts = torch.searchsorted(groups.image, torch.arange(count + 1, device=ctf.device))
    grid = (count, triton.cdiv(len(pixels), BLOCK))
    operands = (*_references(projector), *_images(images, ctf, factors), *groups, matrices, classes, starts)
    _sum_over_slices[grid](*operands, *_plane(pixels), cross, energy, BLOCK=BLOCK)
    return cross, energy


def _references(projector: Projector) -> tuple[torch.Tensor, torch.Tensor, int, int, int, float, float]:
    """The classes' tables in halves, their scales, and the grid that they share."""
    return *packed(projector), *strides(projector.table.shape[1:-1]), float(projector.half_range), float(projector.padding)


def _images(images: torch.Tensor, ctf: torch.Tensor, factors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    assert images.is_contiguous() and ctf.is_contiguous() and factors.is_contiguous() and images.shape == ctf.shape
    return torch.view_as_real(images), ctf, torch.view_as_real(factors), images.shape[1]


def _plane(pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    return pixels.kx, pixels.ky, pixels.count, len(pixels)


@triton.jit
def _factor(starts, shift, weight, factors, group, pixel, k, mask, BLOCK: tl.constexpr):
    """Sum of a group's weighted phase factors at a block of pixels, and the sum of its weights."""
    real = tl.zeros((BLOCK,), tl.float32)
    imaginary = tl.zeros((BLOCK,), tl.float32)
    total = 0.0
    for entry in range(tl.load(starts + group), tl.load(starts + group + 1)):
        share = tl.load(weight + entry)
        re, im = complex_at(factors, tl.load(shift + entry) * k + pixel, mask)
        real += share * re
        imaginary += share * im
        total += share
    return real, imaginary, total


@triton.jit
def _slice(table, scales, class_, stride_y, stride_z, stride_map, half, padding, matrix, x, y, mask):
    """A block of a class's slice."""
    own, scale = table + class_ * stride_map, tl.load(scales + class_)
    real, imaginary = sample(own, stride_y, stride_z, half, padding, matrix, x, y, mask, True)
    return tl.where(mask, scale * real, 0.0), tl.where(mask, scale * imaginary, 0.0)


@triton.jit(do_not_specialize=VARYING)
def _sum_into_slices(
    images, ctf, factors, stride, starts, image_of, shift, weight, order, row_starts, numerators, weights, k, BLOCK: tl.constexpr
):
    row, pixel = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < k
    real = tl.zeros((BLOCK,), tl.float32)
    imaginary = tl.zeros((BLOCK,), tl.float32)
    power = tl.zeros((BLOCK,), tl.float32)
    for place in range(tl.load(row_starts + row), tl.load(row_starts + row + 1)):
        group = tl.load(order + place)
        image = tl.load(image_of + group)
        re, im, share = _factor(starts, shift, weight, factors, group, pixel, k, mask, BLOCK)
        transfer = tl.load(ctf + image * stride + pixel, mask=mask, other=0.0)
        seen_re, seen_im = complex_at(images, image * stride + pixel, mask)
        real += transfer * (seen_re * re - seen_im * im)
        imaginary += transfer * (seen_re * im + seen_im * re)
        power += share * transfer * transfer
    at = row * k + pixel
    tl.store(numerators + 2 * at, real, mask=mask)
    tl.store(numerators + 2 * at + 1, imaginary, mask=mask)
    tl.store(weights + at, power, mask=mask)


@triton.jit(do_not_specialize=VARYING)
def _sum_over_slices(
    table, scales, stride_y, stride_z, stride_map, half, padding, images, ctf, factors, stride, starts, image_of, shift, weight,
    matrices, classes, image_starts, kx, ky, count, k, cross, energy, BLOCK: tl.constexpr,
):  # fmt: skip
    image, pixel = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask, there = pixel < k, pixel < count
    x, y = tl.load(kx + pixel, mask=there, other=0.0), tl.load(ky + pixel, mask=there, other=0.0)
    transfer = tl.load(ctf + image * stride + pixel, mask=mask, other=0.0)
    seen_re, seen_im = complex_at(images, image * stride + pixel, mask)
    products = tl.zeros((BLOCK,), tl.float32)
    powers = tl.zeros((BLOCK,), tl.float32)
    for group in range(tl.load(image_starts + image), tl.load(image_starts + image + 1)):
        re, im, share = _factor(starts, shift, weight, factors, group, pixel, k, mask, BLOCK)
        class_, matrix = tl.load(classes + group), matrices + 9 * group
        slice_re, slice_im = _slice(table, scales, class_, stride_y, stride_z, stride_map, half, padding, matrix, x, y, there)
        products += (seen_re * re - seen_im * im) * slice_re + (seen_re * im + seen_im * re) * slice_im
        powers += share * (slice_re * slice_re + slice_im * slice_im)
    at = image * k + pixel
    tl.store(cross + at, transfer * products, mask=mask)
    tl.store(energy + at, transfer * transfer * powers, mask=mask)
