"""The compiled choice of the candidates that hold the weight (posterior.cpp), on the CPU."""

from __future__ import annotations

from ctypes import c_double, c_float, c_int64
from pathlib import Path

import torch

from verglas.compute.native import address, built_library, in_threads, threads_for

SOURCE = Path(__file__).with_name("posterior.cpp")


def weigh(scores: torch.Tensor, fraction: float, at_most: int, negligible: float) -> tuple[torch.Tensor, ...]:
    """As `posterior.weigh` of scores float32 [b, m]: image, place and weight of what is kept; the largest score, and log Σ."""
    library, (images, candidates) = built_library(SOURCE), scores.shape
    assert 0 < candidates < 1 << 32
    given = scores.contiguous()
    most = min(at_most, candidates)
    places, weights = torch.empty(images, most, dtype=torch.int64), torch.empty(images, most)
    counts, largest, log_sum = torch.empty(images, dtype=torch.int64), torch.empty(images), torch.empty(images)

    def part(thread: int, threads: int) -> None:
        choice = (c_double(fraction), c_int64(most), c_float(negligible))
        out = (address(values) for values in (places, weights, counts, largest, log_sum))
        library.weigh(address(given), c_int64(images), c_int64(candidates), *choice, *out, c_int64(thread), c_int64(threads))

    in_threads(part, threads_for(images))
    image, column = torch.nonzero(torch.arange(most) < counts[:, None], as_tuple=True)
    return image, places[image, column], weights[image, column], largest, log_sum
