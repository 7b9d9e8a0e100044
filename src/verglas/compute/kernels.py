"""Which compiled code serves numbers of a kind on a device, beside the plain code in torch that defines it."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from verglas.compute.native import native_library


def compiled_for(values: torch.Tensor, native: ModuleType, on_cards: str | None = None) -> ModuleType | None:
    """The module that serves `values`: `native` (whose `SOURCE` is C++) on a CPU, that named `on_cards` (Triton), if any, on a card.

    None for other numbers than float32, and where the code cannot be built: then the plain code serves.
    """
    if values.dtype != torch.float32:
        return None
    if values.device.type == "cuda":
        return None if on_cards is None else on_card(on_cards)
    source: Path = native.SOURCE
    return native if values.device.type == "cpu" and native_library(source) is not None else None


def card_kernels(values: torch.Tensor, name: str) -> ModuleType | None:
    """The module of Triton kernels `name` where `values` lie on a card, in the numbers it takes; else None, and the plain code serves."""
    return on_card(name) if values.is_cuda and values.dtype in (torch.float16, torch.float32) else None


@cache
def on_card(name: str) -> ModuleType | None:
    """The module of Triton kernels `name`, or None where Triton is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name != "triton":
            raise
        return None
