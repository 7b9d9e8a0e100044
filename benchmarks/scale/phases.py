"""Seconds and work by phase of the engine, taken from outside: its functions are wrapped, and the device waited for at both ends."""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

Amount = Callable[[tuple[Any, ...], Any], float]


def _bytes(_: tuple[Any, ...], images: torch.Tensor) -> float:
    return float(images.numel() * images.element_size())


def _bytes_moved(arguments: tuple[Any, ...], images: torch.Tensor) -> float:
    return _bytes(arguments, images) if arguments[0].device != images.device else 0.0


def _coarse_products(arguments: tuple[Any, ...], _: Any) -> float:
    """Of the cross term alone: 2 · images · shifts · slices · reals."""
    all_of, batch, dense = arguments[:3]
    search = all_of.search
    return 2.0 * len(batch) * len(search.shifts.coarse) * len(dense) * 2 * len(search.coarse)


@dataclass(frozen=True)
class Wrapped:
    """A function (or a generator, each step of it), the phase it is counted for, and what it does in bytes or operations of `unit`."""

    module: str
    path: str
    phase: str
    amount: Amount | None = None
    unit: str = ""


# An inner phase is not counted for the outer one.
WRAPPED = (
    Wrapped("scale.rendered", "RenderedParticles.read", "render"),
    Wrapped("verglas.particles.images", "ArrayImages.read", "read", _bytes, "GB/s"),
    Wrapped("verglas.particles.images", "StackImages.read", "read", _bytes, "GB/s"),
    Wrapped("verglas.refine.observations", "to_device", "transfer", _bytes_moved, "GB/s"),
    Wrapped("verglas.refine.observations", "images_ahead", "wait for images"),
    Wrapped("verglas.refine.observations", "Observations.batch", "transform"),
    Wrapped("verglas.refine.coarse_slices", "CoarseSlices._tile", "slices"),
    Wrapped("verglas.refine.expectation", "_coarse_everywhere", "coarse", _coarse_products, "TFLOP/s"),
    Wrapped("verglas.refine.expectation", "_coarse_near", "coarse, local"),
    Wrapped("verglas.refine.expectation", "_near", "neighbours"),
    Wrapped("verglas.refine.expectation", "weigh_poses", "posterior"),
    Wrapped("verglas.refine.expectation", "weigh", "posterior"),
    Wrapped("verglas.refine.expectation", "_fine", "fine"),
    Wrapped("verglas.refine.expectation", "accumulate", "sum"),
    Wrapped("verglas.refine.accumulate", "add_symmetric", "back-project"),
    Wrapped("verglas.refine.candidates", "Projector", "pad and transform references"),
    Wrapped("verglas.refine.autorefine", "_reconstruct_halves", "reconstruct"),
    Wrapped("verglas.refine.autorefine", "_join", "reconstruct"),
    Wrapped("verglas.refine.autorefine", "_expect_errors", "accuracy"),
    Wrapped("verglas.refine.classify", "_maximise", "reconstruct"),
)
UNITS = {each.phase: each.unit for each in WRAPPED if each.unit}


class Phases:
    """Wraps the functions for as long as it is entered: of all phases, or of one `only`.

    seconds: by phase, in the thread that made this. beside: by phase, in other threads, which work at the same time.
    amounts: bytes or operations by phase, of all threads.
    """

    def __init__(self, device: torch.device, only: str | None = None) -> None:
        self.device, self._wrapped = device, [each for each in WRAPPED if only in (None, each.phase)]
        self.seconds, self.beside, self.amounts = (defaultdict[str, float](float) for _ in range(3))
        self._thread, self._stacks = threading.get_ident(), defaultdict[int, list[float]](list)
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Phases:
        for each in self._wrapped:
            owner: Any = import_module(each.module)
            *outer, name = each.path.split(".")
            for part in outer:
                owner = getattr(owner, part)
            plain = getattr(owner, name)
            wrap = self._stepped if inspect.isgeneratorfunction(plain) else self._timed
            setattr(owner, name, wrap(plain, each))
            self._undo.append(functools.partial(setattr, owner, name, plain))
        return self

    def __exit__(self, *_: object) -> None:
        for undo in self._undo:
            undo()

    def _timed(self, function: Callable[..., Any], of: Wrapped) -> Callable[..., Any]:
        @functools.wraps(function, updated=())
        def wrapped(*arguments: Any, **named: Any) -> Any:
            result = self._count(lambda: function(*arguments, **named), of.phase)
            if of.amount is not None:
                self.amounts[of.phase] += of.amount(arguments, result)
            return result

        return wrapped

    def _stepped(self, function: Callable[..., Iterator[Any]], of: Wrapped) -> Callable[..., Iterator[Any]]:
        @functools.wraps(function)
        def wrapped(*arguments: Any, **named: Any) -> Iterator[Any]:
            steps, over = function(*arguments, **named), object()
            try:
                while (item := self._count(lambda: next(steps, over), of.phase)) is not over:
                    yield item
            finally:
                steps.close()  # type: ignore[attr-defined]

        return wrapped

    def _count(self, work: Callable[[], Any], phase: str) -> Any:
        thread = threading.get_ident()
        stack, seconds = self._stacks[thread], self.seconds if thread == self._thread else self.beside
        self._wait()
        start = time.perf_counter()
        stack.append(0.0)
        try:
            return work()
        finally:
            self._wait()
            whole, inner = time.perf_counter() - start, stack.pop()
            seconds[phase] += whole - inner
            if stack:
                stack[-1] += whole

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
