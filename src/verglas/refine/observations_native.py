"""Images made ready on the CPU, and what is kept of their transforms (observations.cpp); `observations` holds the twins in torch."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_bool, c_int64
from pathlib import Path
from typing import Any

import torch

from verglas.compute.native import address, built_library, in_threads, threads_for

SOURCE = Path(__file__).with_name("observations.cpp")


def masked_and_whole(images: torch.Tensor, norm: torch.Tensor, shifts: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`observations.masked_and_whole`."""
    out = torch.empty(2, *images.shape)
    given = images.float().contiguous(), norm.float().contiguous(), shifts.long().contiguous(), mask.contiguous()
    places = [address(values) for values in given]
    sizes = c_int64(images.shape[-1]), c_int64(len(images))
    _of_each(len(images), built_library(SOURCE).masked_and_whole, *places, *sizes, address(out[0]), address(out[1]))
    return out


def power_by_shell(transforms: torch.Tensor, index: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """`observations.power_by_shell`."""
    count, shells = len(transforms), len(starts) - 1
    out = torch.empty(count, shells, dtype=torch.float64)
    lists = address(index), address(starts), c_int64(shells)
    given = transforms.contiguous()
    _of_each(count, built_library(SOURCE).power_by_shell, address(given), c_int64(given.shape[1]), *lists, c_int64(count), address(out))
    return out


def keep_times(transforms: torch.Tensor, index: torch.Tensor, factor: torch.Tensor, out: torch.Tensor) -> None:
    """`observations.keep_times`."""
    assert factor.shape == out.shape and factor.dtype in (torch.float32, out.dtype)
    count, (given, factors) = len(transforms), (values.resolve_conj().contiguous() for values in (transforms, factor))
    pixels = address(index), c_int64(len(index)), address(factors), c_bool(factor.is_complex())
    _of_each(count, built_library(SOURCE).keep_times, address(given), c_int64(given.shape[1]), *pixels, c_int64(count), address(out))


def _of_each(images: int, function: Callable[..., Any], *given: Any) -> None:
    """The function for all images, each thread some of them."""
    in_threads(lambda thread, threads: function(*given, c_int64(thread), c_int64(threads)), threads_for(images))
