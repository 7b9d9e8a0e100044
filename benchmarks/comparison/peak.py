"""How fast this machine multiplies matrices: the ceiling of an engine that is made of such products."""

from __future__ import annotations

import time

import torch

from verglas.compute.device import fast_products

SIZE, CARD_SIZE, SECONDS = 2048, 8192, 0.6


def product_peak(threads: int, size: int = SIZE, seconds: float = SECONDS) -> dict[str, float]:
    """Best rate seen in float32 and bf16 products of square matrices on `threads` CPU threads, TFLOP/s."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return {name: _rate(getattr(torch, kind), size, seconds) for name, kind in (("float32", "float32"), ("bf16", "bfloat16"))}
    finally:
        torch.set_num_threads(before)


def card_peak(device: torch.device, size: int = CARD_SIZE, seconds: float = SECONDS) -> dict[str, float]:
    """Best rate seen in tf32 and bf16 products of square matrices on a card, TFLOP/s."""
    with fast_products(device):
        return {name: _rate(getattr(torch, kind), size, seconds, device) for name, kind in (("tf32", "float32"), ("bf16", "bfloat16"))}


def _rate(dtype: torch.dtype, size: int, seconds: float, device: torch.device | None = None) -> float:
    wait = torch.cuda.synchronize if device is not None and device.type == "cuda" else lambda: None
    left, right = (torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).to(device, dtype) for seed in (1, 2))
    out, least, end = torch.empty_like(left), float("inf"), time.perf_counter() + seconds
    wait()
    while time.perf_counter() < end or least == float("inf"):
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        wait()
        least = min(least, time.perf_counter() - start)
    return 2 * size**3 / least / 1e12
