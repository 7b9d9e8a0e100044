"""Which compiled code serves a comparison; the plain code in torch, which defines it, where none does."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from verglas.refine import comparison
from verglas.volume import slices
from verglas.volume.slices import Projector


def kernels_for(projector: Projector) -> ModuleType | None:
    """`comparison` on the CPU, `comparison_triton` on a card, None where the plain code serves."""
    if slices.kernels_for(projector.table) is None:
        return None
    return _on_cards() if projector.table.device.type == "cuda" else (comparison if comparison.can_serve() else None)


def path_taken(device: torch.device) -> str:
    """What samples and sums slices on `device`, for a job's record: compiled C++, Triton, or torch and why."""
    if device.type == "cuda":
        return "Triton, products in tf32" if _on_cards() is not None else "torch (Triton is not installed)"
    reason = comparison.why_not()
    return f"torch ({reason})" if reason else "compiled C++"


@cache
def _on_cards() -> ModuleType | None:
    try:
        from verglas.refine import comparison_triton
    except ImportError:
        return None
    return comparison_triton
