"""Seconds by phase of the engine, taken from outside: its functions are wrapped, and the device waited for at both ends."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

# An inner phase is not counted for the outer one. Module, function, phase.
WRAPPED = (
    ("scale.rendered", "RenderedParticles.read", "render"),
    ("verglas.refine.observations", "Observations.batch", "transform"),
    ("verglas.refine.expectation", "_dense_slices", "slices"),
    ("verglas.refine.expectation", "_coarse_everywhere", "coarse"),
    ("verglas.refine.expectation", "_coarse_near", "coarse, local"),
    ("verglas.refine.expectation", "_near", "neighbours"),
    ("verglas.refine.expectation", "_fine", "fine"),
    ("verglas.refine.expectation", "accumulate", "sum"),
    ("verglas.refine.accumulate", "add_symmetric", "back-project"),
    ("verglas.refine.candidates", "Projector", "pad and transform references"),
    ("verglas.refine.autorefine", "_reconstruct_halves", "reconstruct"),
    ("verglas.refine.autorefine", "_expect_errors", "accuracy"),
    ("verglas.refine.classify", "_maximise", "reconstruct"),
)


class Phases:
    """Wraps the functions for as long as it is entered; `seconds` by phase."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, defaultdict[str, float](float)
        self._stack: list[float] = []
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Phases:
        for module, path, phase in WRAPPED:
            owner: Any = import_module(module)
            *outer, name = path.split(".")
            for part in outer:
                owner = getattr(owner, part)
            plain = getattr(owner, name)
            setattr(owner, name, self._timed(plain, phase))
            self._undo.append(functools.partial(setattr, owner, name, plain))
        return self

    def __exit__(self, *_: object) -> None:
        for undo in self._undo:
            undo()

    def _timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        @functools.wraps(function, updated=())
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self._wait()
            start = time.perf_counter()
            self._stack.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                self._wait()
                whole, inner = time.perf_counter() - start, self._stack.pop()
                self.seconds[phase] += whole - inner
                if self._stack:
                    self._stack[-1] += whole

        return wrapped

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
