"""RELION's polynomial model of local motion: 3 powers of time inside 6 terms of place, for x and for y.

    shift(x, y, z) = sum_s sum_t c[3 s + t] B_s z^(t + 1),   B = 1, x, x^2, y, y^2, xy

with x, y as fractions of the field minus 1/2 and z the frame's index from 0, so that frame 1 has no local shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_TERMS = {"quadratic": (0, 1, 2, 3, 4, 5), "linear": (0, 1, 3), "none": ()}
_MIN_PATCHES = {"quadratic": 9, "linear": 4, "none": 0}
_MIN_GAIN = 0.9  # a model must predict the patches left out at least this much better (ratio of squares) than the next simpler one


@dataclass(frozen=True)
class LocalModel:
    """Local motion on top of the global shifts, px.

    coefficients: float64 [2, 18], x then y, in RELION's order; kind: quadratic, linear or none (all zero);
    rejected: patches that were left out of the fit; residual: rms distance of the others from the model, px.
    """

    coefficients: torch.Tensor
    kind: str
    rejected: tuple[int, ...] = ()
    residual: float = 0.0

    def shifts(self, places: torch.Tensor, frames: int) -> torch.Tensor:
        """Shifts [n, frames, 2] at `places` [n, 2] (x, y as fraction of the field minus 1/2)."""
        time = torch.arange(frames, dtype=torch.float64)[:, None] ** torch.arange(1, 4, dtype=torch.float64)
        basis = (place_terms(places)[:, None, :, None] * time[None, :, None, :]).flatten(-2)
        return torch.einsum("nfc,dc->nfd", basis, self.coefficients)


def no_local_motion() -> LocalModel:
    """The model without any local motion."""
    return LocalModel(torch.zeros(2, 18, dtype=torch.float64), "none")


def place_terms(places: torch.Tensor) -> torch.Tensor:
    """The six terms of place [n, 6] of `places` [n, 2]."""
    x, y = places.double().unbind(-1)
    return torch.stack([torch.ones_like(x), x, x * x, y, y * y, x * y], dim=-1)


def fit_local_model(places: torch.Tensor, shifts: torch.Tensor, *, largest: float) -> LocalModel:
    """The richest model that the patches bear out.

    places: [patches, 2]; shifts: [patches, frames, 2], px, local ones, frame 1 = 0. Patches that disagree with the rest are left out
    (iteratively, beyond 3 robust deviations). Quadratic, linear and no motion compete by how well they predict a patch that was left
    out; a model that anywhere in the field exceeds `largest` px, or 1.5 times what any patch showed, is not taken.
    """
    shifts = shifts.double()
    frames = shifts.shape[1]
    time = (torch.arange(frames, dtype=torch.float64) / max(frames - 1, 1))[:, None] ** torch.arange(1, 4, dtype=torch.float64)
    # first each patch's own course in time, then the courses over the field: both are linear, and the patches stay comparable
    courses = torch.linalg.lstsq(time, shifts.permute(1, 0, 2).flatten(1)).solution.unflatten(1, (-1, 2)).permute(1, 0, 2)
    keep = _agreeing(places, courses, time)
    best, best_error = no_local_motion(), float(_path_error(courses[keep], time).mean())
    for kind in ("linear", "quadratic"):
        if int(keep.sum()) < _MIN_PATCHES[kind]:
            continue
        model, error = _fitted(kind, places, courses, time, keep)
        if error < _MIN_GAIN * best_error and _is_tame(model, courses, time, largest):
            best, best_error = model, error
    return best


def _agreeing(places: torch.Tensor, courses: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Patches whose course fits a smooth field, as a mask: the worst is dropped again and again while it stands out."""
    keep = torch.ones(len(courses), dtype=torch.bool)
    for _ in range(len(courses) // 4):
        kind = "linear" if int(keep.sum()) >= 6 else "none"
        errors = _left_out_errors(kind, places, courses, time, keep).sqrt()
        worst = int(torch.where(keep, errors, -1.0).argmax())
        others = errors[keep & (torch.arange(len(keep)) != worst)]
        limit = others.median() + 3 * 1.4826 * (others - others.median()).abs().median()
        if errors[worst] <= torch.maximum(limit, 1.5 * others.median()):
            break
        keep[worst] = False
    return keep


def _left_out_errors(kind: str, places: torch.Tensor, courses: torch.Tensor, time: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Mean squared error [patches], px^2, of each patch's path as predicted by a fit to the other kept patches."""
    basis = place_terms(places)[:, _TERMS[kind]]
    if not basis.shape[1]:
        return _path_error(courses, time)
    weight = keep.double()[:, None]
    inverse = torch.linalg.pinv((basis * weight).T @ basis)
    fitted = basis @ (inverse @ (basis * weight).T @ courses.flatten(1))
    leverage = ((basis @ inverse) * basis).sum(dim=1) * keep
    error = (courses.flatten(1) - fitted) / (1 - leverage).clamp(min=0.05)[:, None]
    return _path_error(error.reshape(courses.shape), time)


def _path_error(courses: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Mean squared length [patches], px^2, over the frames of paths with the given courses [patches, 3, 2]."""
    return torch.einsum("ft,ptd->pfd", time, courses).square().sum(dim=-1).mean(dim=-1)


def _fitted(kind: str, places: torch.Tensor, courses: torch.Tensor, time: torch.Tensor, keep: torch.Tensor) -> tuple[LocalModel, float]:
    """Least-squares model of one kind to the kept patches, and its mean squared error on patches left out."""
    terms = _TERMS[kind]
    basis = place_terms(places)[keep][:, terms]
    solution = torch.linalg.lstsq(basis, courses[keep].flatten(1)).solution.reshape(len(terms), 3, 2)
    residual = _path_error(courses[keep] - torch.einsum("ps,std->ptd", basis, solution), time).mean().sqrt()
    frames = len(time)
    scaled = solution / max(frames - 1, 1) ** torch.arange(1, 4, dtype=torch.float64)[None, :, None]
    coefficients = torch.zeros(2, 6, 3, dtype=torch.float64)
    coefficients[:, terms] = scaled.permute(2, 0, 1)
    rejected = tuple((~keep).nonzero()[:, 0].tolist())
    error = float(_left_out_errors(kind, places, courses, time, keep)[keep].mean())
    return LocalModel(coefficients.flatten(1), kind, rejected, float(residual)), error


def _is_tame(model: LocalModel, courses: torch.Tensor, time: torch.Tensor, largest: float) -> bool:
    """Whether the model, anywhere in the field, stays within what patches showed and within `largest` px."""
    line = torch.linspace(-0.5, 0.5, 9)
    field = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).reshape(-1, 2)
    reached = model.shifts(field, len(time)).norm(dim=-1).max()
    shown = torch.einsum("ft,ptd->pfd", time, courses).norm(dim=-1).max()
    return bool(reached <= min(largest, 1.5 * float(shown) + 0.5))
