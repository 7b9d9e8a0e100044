"""The candidates that hold an image's weight, gathered by slice: what the sums of an iteration are made from."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Groups(NamedTuple):
    """Weighted shifts of an image against one slice, sorted by image: group g has entries starts[g] to starts[g + 1] − 1.

    starts int64 [g + 1]; image int64 [g]; shift int64 and weight float32 of the entries.
    """

    starts: torch.Tensor
    image: torch.Tensor
    shift: torch.Tensor
    weight: torch.Tensor


def groups_of(image: torch.Tensor, row: torch.Tensor, shift: torch.Tensor, weight: torch.Tensor) -> tuple[Groups, torch.Tensor]:
    """Groups of entries [m] of an image and a row of slices each, and the row of each group."""
    order = torch.argsort(image * (int(row.max()) + 1) + row, stable=True)
    image, row = image[order], row[order]
    begins = torch.ones(len(order), dtype=torch.bool, device=order.device)
    begins[1:] = (image[1:] != image[:-1]) | (row[1:] != row[:-1])
    starts = torch.nonzero(begins)[:, 0]
    ends = torch.cat([starts, starts.new_tensor([len(order)])])
    return Groups(ends, image[starts], shift[order].contiguous(), weight[order].contiguous()), row[starts]
