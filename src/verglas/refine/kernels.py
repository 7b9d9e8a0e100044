"""Which compiled code serves a comparison; the plain code in torch, which defines it, where none does."""

from __future__ import annotations

from types import ModuleType

import torch

from verglas.compute.kernels import compiled_for, on_card
from verglas.refine import comparison_native
from verglas.volume.slices import Projector

_ON_CARDS = "verglas.refine.comparison_triton"


def comparison_kernels(projector: Projector) -> ModuleType | None:
    """`comparison_native` on the CPU, `comparison_triton` on a card, None where the plain code serves."""
    return compiled_for(projector.table, comparison_native, _ON_CARDS)


def path_taken(device: torch.device) -> str:
    """What samples and sums slices on `device`, for a job's record: compiled C++, Triton, or torch and why."""
    if device.type == "cuda":
        return "Triton, products in tf32" if on_card(_ON_CARDS) is not None else "torch (Triton is not installed)"
    reason = comparison_native.why_not()
    return f"torch ({reason})" if reason else "compiled C++"
