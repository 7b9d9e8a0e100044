"""Images on their way from where they are kept to the device, the next ones while the engine works with those before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cache
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


def ahead(read: Callable[[A], B], items: Iterable[A], count: int = 1) -> Generator[B, None, None]:
    """`read(item)` of each item in order; up to `count` are read, by as many threads, before they are asked for.

    What `read` raises is raised where its item is due. A caller who leaves early waits for those that are being read, no more are begun.
    """
    readers, due = ThreadPoolExecutor(count, "reading ahead"), deque[Future[B]]()
    try:
        for item in items:
            due.append(readers.submit(read, item))
            if len(due) > count:
                yield due.popleft().result()
        while due:
            yield due.popleft().result()
    finally:
        readers.shutdown(cancel_futures=True)


def images_ahead(read: Callable[[A], torch.Tensor], items: Iterable[A], device: torch.device) -> Generator[torch.Tensor, None, None]:
    """As `ahead`, of tensors that `read` puts on `device`: on a card their copies run beside the computation, on a stream of their own."""
    if device.type != "cuda":
        yield from ahead(read, items)
        return
    copying, computing = _copying_stream(device), torch.cuda.current_stream(device)

    def read_aside(item: A) -> tuple[torch.Tensor, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            return read(item), copying.record_event()

    with closing(ahead(read_aside, items)) as coming:
        for images, arrived in coming:
            computing.wait_event(arrived)
            images.record_stream(computing)  # its memory is not given away before the computation is done with it
            yield images


@cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all passes: the card's memory is kept for reuse by stream."""
    return torch.cuda.Stream(device)


def to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images on `device`. To a card they go through pinned memory, at the full rate of the bus, and without waiting for it."""
    if device.type != "cuda" or images.device.type == "cuda":
        return images.to(device)
    pinned = images if images.is_pinned() else images.pin_memory()
    return pinned.to(device, non_blocking=True)
