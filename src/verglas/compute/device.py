"""Where to compute: the device a user names, and the threads that torch may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from verglas.errors import InputError

_BESIDE_A_CARD = 8  # threads
_CPU = torch.device("cpu")


def choose_device(name: str = "auto") -> torch.device:
    """The torch device for `name`: auto (the first CUDA card, else the CPU), cpu, cuda or cuda:N.

    Raises InputError when the card that is named isn't there: a job never falls back to the CPU in silence.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError("device", f"{name!r} is not a device", "Use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError("device", f"{name!r} is not supported", "Use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError("device", f"{name!r} asked for, {torch.cuda.device_count()} CUDA cards found", "Use auto or cpu")
    return device


def use_threads(count: int = 0, device: torch.device = _CPU, sharing: int = 1) -> int:
    """Let torch use `count` CPU threads; returns the number taken.

    0: every core this process may run on, shared by so many processes, or, to work for a card, as many as `threads_beside` has it.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    threads = count or threads_beside(device, max(1, available // sharing))
    torch.set_num_threads(threads)
    return threads


def threads_beside(device: torch.device, cores: int) -> int:
    """How many of so many cores work for a device: all for the CPU; for a card half of them, eight at most.

    What a card waits for is short, and takes longer in more threads; the other cores are left to those who read and write.
    """
    return cores if device.type == "cpu" else max(1, min(_BESIDE_A_CARD, cores // 2))


def describe_device(device: torch.device) -> str:
    """The model of the card, or `CPU`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether products of bf16 matrices run several times faster than float32 ones on this CPU (AVX-512 BF16 or AMX)."""
    if device.type != "cpu":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Let products of float32 matrices round their factors to tf32 on a card that is made for it: 0.05 % of a factor.

    METHOD.md §2: the cross term of a score is then off by 0.0013, its own spread being 4.4.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def prepare_for_threads(device: torch.device) -> None:
    """Load the card's linear algebra now: torch loads it at its first use, and fails when two threads are the first together."""
    if device.type == "cuda":
        torch.linalg.eigh(torch.eye(2, device=device))
