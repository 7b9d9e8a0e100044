"""Everything that an iteration leaves behind and the next one needs, exactly, on disk and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from verglas.errors import FileFormatError
from verglas.io.atomic import whole_file
from verglas.refine.assignments import Assignments
from verglas.refine.model import Model
from verglas.refine.search import Fit


@dataclass
class Sampling:
    """How finely the next iteration samples: a HEALPix order in 3D, psi_step (degrees) in 2D.

    offset_* in pixels; local_sigma (degrees) None searches everywhere; fit: see `Search`.
    """

    order: int
    psi_step: float
    offset_range: float
    offset_step: float
    local_sigma: float | None = None
    fit: Fit = ""


@dataclass
class Progress:
    """What automatic refinement decides by; shells are of the map, changes are root mean squares since the iteration before."""

    resolution_shell: int
    fsc_at_limit: float = 0.0
    best_shell: int = 0
    without_gain: int = 0
    without_changes: int = 0
    smallest_rotation: float = 999.0
    smallest_offset: float = 999.0
    rotation_change: float = 999.0
    offset_change: float = 999.0
    class_change: float = 1.0
    accuracy_rotation: float = 999.0
    accuracy_offset: float = 999.0
    fine_enough: bool = False
    finished: bool = False


@dataclass
class State:
    """After iteration `iteration`: what is known of the particles, one model a half (one in classifications), what comes next.

    unfiltered: the halves' maps without a prior; joined: the map of all particles of the last iteration of a refinement.
    history: one row an iteration of figures for plots and logs.
    """

    iteration: int
    assignments: Assignments
    models: list[Model]
    sampling: Sampling
    progress: Progress
    fsc: torch.Tensor
    weights: list[torch.Tensor]
    unfiltered: list[torch.Tensor] = field(default_factory=list)
    joined: Model | None = None
    history: list[dict[str, float]] = field(default_factory=list)


def save_state(path: Path, state: State) -> None:
    """Write the state, whole or not at all."""
    content = {
        "iteration": state.iteration,
        "assignments": _tensors(state.assignments),
        "models": [_tensors(model) for model in state.models],
        "sampling": asdict(state.sampling),
        "progress": asdict(state.progress),
        "fsc": state.fsc,
        "weights": state.weights,
        "unfiltered": state.unfiltered,
        "joined": _tensors(state.joined) if state.joined else None,
        "history": state.history,
    }
    save_tensors(path, content)


def load_state(path: Path, device: torch.device | str = "cpu") -> State:
    """The state of a file that `save_state` wrote. Raises FileFormatError for a damaged one, and for another version's."""
    content = load_tensors(path, device)
    try:
        content["assignments"] = Assignments(**content["assignments"])
        content["models"] = [Model(**model) for model in content["models"]]
        content["sampling"] = Sampling(**content["sampling"])
        content["progress"] = Progress(**content["progress"])
        content["joined"] = Model(**content["joined"]) if content["joined"] else None
        return State(**content)
    except (KeyError, TypeError) as error:
        raise FileFormatError(path, f"is another version's ({error})", "Remove it, to go on from an earlier one") from error


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values by name, whole or not at all; OSError for a full disk."""
    with whole_file(path) as part, part.open("wb") as file:  # of a path, torch tells no full disk
        torch.save(content, file)


def load_tensors(path: Path, device: torch.device | str) -> dict[str, Any]:
    """What `save_tensors` wrote, tensors on the device. Raises FileFormatError for a file that is damaged."""
    try:
        return dict(torch.load(path, map_location=device, weights_only=True))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, EOFError, UnpicklingError, ValueError) as error:
        problem = f"is damaged ({str(error).splitlines()[0]})" if str(error) else "is damaged"
        raise FileFormatError(path, problem, "Remove it, to go on from an earlier one") from error


def _tensors(record: Assignments | Model) -> dict[str, Any]:
    return {each.name: getattr(record, each.name) for each in fields(record)}
