"""Lists of unlike length, one an image, as padded rows: the bookkeeping of candidates."""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import torch


class Lists(NamedTuple):
    """Values sorted by owner: those of owner i are values[starts[i] : starts[i] + counts[i]]; `extra` goes with each value."""

    values: torch.Tensor
    extra: torch.Tensor
    starts: torch.Tensor
    counts: torch.Tensor


def lists_of(owner: torch.Tensor, values: torch.Tensor, owners: int, extra: torch.Tensor | None = None) -> Lists:
    """Distinct values of each owner, ascending; owner and values int64 [m]; `extra` [m] is the same for equal pairs."""
    span = int(values.max()) + 1 if len(values) else 1
    keys, place = torch.unique(owner * span + values, return_inverse=True)
    counts = torch.bincount(keys // span, minlength=owners)
    kept = torch.zeros(len(keys), device=keys.device)
    if extra is not None:
        kept[place] = extra
    return Lists(keys % span, kept, torch.cumsum(counts, 0) - counts, counts)


def padded(lists: Lists, owners: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places in the lists of the values of some owners, as rows [o, longest], and which of them are real (the rest repeat one)."""
    longest = max(int(lists.counts[owners].max()), 1)
    column = torch.arange(longest, device=owners.device)
    real = column < lists.counts[owners][:, None]
    place = lists.starts[owners][:, None] + torch.where(real, column, 0)
    return place.clamp(max=max(len(lists.values) - 1, 0)), real


def chunks(sizes: torch.Tensor, budget: int, unlike: float = math.inf) -> Iterator[torch.Tensor]:
    """Owners in chunks, largest first, so that (owners in the chunk) × (its largest size) stays within `budget`.

    No chunk holds a size more than `unlike` times smaller than its largest.
    """
    order = torch.argsort(sizes, descending=True, stable=True)
    ordered = sizes[order].tolist()
    start = 0
    while start < len(ordered):
        largest = ordered[start]
        end = min(len(ordered), start + max(1, budget // max(largest, 1)))
        if ordered[end - 1] * unlike < largest:
            end = bisect_right(ordered, -largest / unlike, start, end, key=operator.neg)
        yield order[start:end]
        start = end


def parts_within(sizes: torch.Tensor, budget: int) -> Iterator[tuple[int, int]]:
    """Runs first … last (exclusive) of consecutive owners whose sizes add up to at most `budget` (or a single owner)."""
    values, start, total = sizes.tolist(), 0, 0
    for i, size in enumerate(values):
        if i > start and total + size > budget:
            yield start, i
            start, total = i, 0
        total += size
    if start < len(values):
        yield start, len(values)
