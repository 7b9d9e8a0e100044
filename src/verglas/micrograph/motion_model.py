"""RELION's polynomial model of local motion, fitted so that it never claims more than the patches bear out.

    shift(x, y, z) = sum_s sum_t c[3 s + t] B_s z^(t + 1),   B = 1, x, x^2, y, y^2, xy

with x, y as fractions of the field minus 1/2 and z the frame's index from 0, so that frame 1 has no local shift.

Plain least squares of these 36 numbers to noisy patches can go wild. Here each of three courses in time has a ridge (a Gaussian prior
on the field's bending), whose strength is the one that best predicts patches left out (PRESS; Allen, Technometrics 1974), up to
infinitely strong: no local motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_RIDGES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_FEWEST_PATCHES = 4
_MARGIN = 0.96  # a fit must predict left-out patches at least this much better than none (ratio of squares)


@dataclass(frozen=True)
class LocalModel:
    """Local motion on top of the global shifts, px.

    coefficients: float64 [2, 18], x then y, in RELION's order; freedom: effective number of the 6 terms of place in use, for each of
    the three courses in time (all 0: no local motion); rejected: patches left out of the fit; wild: a fit was thrown away.
    """

    coefficients: torch.Tensor
    freedom: tuple[float, ...] = (0.0, 0.0, 0.0)
    rejected: tuple[int, ...] = ()
    wild: bool = False

    def __bool__(self) -> bool:
        return any(self.freedom)

    def shifts(self, places: torch.Tensor, frames: int) -> torch.Tensor:
        """Shifts [n, frames, 2] at `places` [n, 2] (x, y as fraction of the field minus 1/2)."""
        time = torch.arange(frames, dtype=torch.float64)[:, None] ** torch.arange(1, 4, dtype=torch.float64)
        basis = (_monomials(places)[:, None, :, None] * time[None, :, None, :]).flatten(-2)
        return torch.einsum("nfc,dc->nfd", basis, self.coefficients)


def no_local_motion(wild: bool = False) -> LocalModel:
    """The model without any local motion."""
    return LocalModel(torch.zeros(2, 18, dtype=torch.float64), wild=wild)


def fit_local_model(places: torch.Tensor, shifts: torch.Tensor, *, largest: float) -> LocalModel:
    """The local motion that patches bear out.

    places: [patches, 2]; shifts: [patches, frames, 2], px, beyond the global ones; a constant of each patch does not count.
    Patches that stand out from what the others predict are left out. A model that anywhere in the field exceeds `largest` px, or
    1.5 times what any patch showed, is not taken.
    """
    frames = shifts.shape[1]
    powers = (torch.arange(frames, dtype=torch.float64) / (frames - 1))[:, None] ** torch.arange(1, 4, dtype=torch.float64)
    course, to_course = torch.linalg.qr(powers - powers.mean(dim=0))
    seen = torch.einsum("ft,pfd->ptd", course, shifts.double())
    basis = place_basis(places)
    keep = torch.ones(len(places), dtype=torch.bool)
    for _ in range(1 + len(places) // 4):
        fields, freedom, errors = _ridge_fits(basis, seen, keep)
        worst = _outlier(errors.sqrt(), keep)
        if worst is None:
            break
        keep[worst] = False
    in_powers = torch.einsum("ut,tsd->usd", torch.linalg.inv(to_course), fields)
    scaled = in_powers / (frames - 1) ** torch.arange(1, 4, dtype=torch.float64)[:, None, None]
    coefficients = torch.einsum("tsd,sm->dmt", scaled, _TO_MONOMIALS).flatten(1)
    model = LocalModel(coefficients, freedom, tuple((~keep).nonzero()[:, 0].tolist()))
    shown = torch.einsum("ft,ptd->pfd", course, seen[keep]).norm(dim=-1).max()
    return model if _reached(model, frames) <= min(largest, 3 * float(shown) + 0.5) else no_local_motion(wild=True)


# Legendre polynomials of place, of unit mean square over the field, in monomials 1, x, x^2, y, y^2, xy
_TO_MONOMIALS = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0],
        [0, 12**0.5, 0, 0, 0, 0],
        [-(180**0.5) / 12, 0, 180**0.5, 0, 0, 0],
        [0, 0, 0, 12**0.5, 0, 0],
        [-(180**0.5) / 12, 0, 0, 0, 180**0.5, 0],
        [0, 0, 0, 0, 0, 12],
    ],
    dtype=torch.float64,
)


def _monomials(places: torch.Tensor) -> torch.Tensor:
    x, y = places.double().unbind(-1)
    return torch.stack([torch.ones_like(x), x, x * x, y, y * y, x * y], dim=-1)


def place_basis(places: torch.Tensor) -> torch.Tensor:
    """Six terms of place [n, 6], orthonormal over the field."""
    return _monomials(places) @ _TO_MONOMIALS.T


def _ridge_fits(basis: torch.Tensor, seen: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, tuple[float, ...], torch.Tensor]:
    """Fields [3, 6, 2] of the courses in time, their freedom, and each patch's squared error when the others predict it."""
    fields = torch.zeros(3, 6, 2, dtype=torch.float64)
    freedom = [0.0, 0.0, 0.0]
    errors = torch.zeros(len(seen), dtype=torch.float64)
    used = basis * keep[:, None]
    for course in range(3):  # from the slow to the fast: one is asked for only where the one before it is borne out
        values = seen[:, course]
        best_error, best = values.square().sum(dim=-1), _MARGIN * values[keep].square().sum()
        asked = int(keep.sum()) >= _FEWEST_PATCHES and (course == 0 or freedom[course - 1] > 0)
        for ridge in _RIDGES if asked else ():
            inverse = torch.linalg.inv(used.T @ used + ridge * torch.eye(6, dtype=torch.float64))
            field = inverse @ used.T @ values
            leverage = ((used @ inverse) * used).sum(dim=1)
            error = ((values - basis @ field) / (1 - leverage).clamp(min=1e-3)[:, None]).square().sum(dim=-1)
            if error[keep].sum() < best:
                best, best_error = error[keep].sum(), error
                fields[course], freedom[course] = field, float(leverage.sum())
        errors += best_error
    return fields, tuple(freedom), errors


def _outlier(errors: torch.Tensor, keep: torch.Tensor) -> int | None:
    """The kept patch with the largest error, if it stands out by more than 4 robust deviations and twice the median."""
    worst = int(torch.where(keep, errors, -1.0).argmax())
    others = errors[keep & (torch.arange(len(keep)) != worst)]
    if len(others) < _FEWEST_PATCHES:
        return None
    limit = others.median() + 4 * 1.4826 * (others - others.median()).abs().median()
    return worst if errors[worst] > max(float(limit), 2 * float(others.median())) else None


def _reached(model: LocalModel, frames: int) -> float:
    """The longest local shift anywhere in the field, px, each place's mean over the frames removed."""
    line = torch.linspace(-0.5, 0.5, 9)
    field = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).reshape(-1, 2)
    shifts = model.shifts(field, frames)
    return float((shifts - shifts.mean(dim=1, keepdim=True)).norm(dim=-1).max())
