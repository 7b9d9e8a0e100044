"""Lists of unlike length, one an image, as padded rows: the bookkeeping of candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
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


def chunks(counts: Sequence[torch.Tensor], budget: int, unlike: float | None = None) -> Iterator[torch.Tensor]:
    """Owners in chunks, largest first, so that (owners in the chunk) × (the largest of each of their `counts`) stays within `budget`.

    An owner's size is the product of its counts; no chunk holds one more than `unlike` times smaller than its largest.
    """
    own = torch.stack(list(counts)).cpu().numpy()
    order = np.argsort(-own.prod(0), kind="stable")
    own = own[:, order]
    sizes, start = own.prod(0), 0
    while start < len(order):
        together = np.maximum.accumulate(own[:, start:], axis=1).prod(0) * np.arange(1, len(order) - start + 1)
        joins = together <= budget
        if unlike is not None:
            joins &= sizes[start:] * unlike >= sizes[start]
        end = start + max(1, len(joins) if joins.all() else int(joins.argmin()))
        yield torch.from_numpy(order[start:end]).to(counts[0].device)
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
