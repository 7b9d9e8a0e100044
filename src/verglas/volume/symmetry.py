"""Point groups in RELION's settings, what maps a group onto itself, and how symmetric a map is.

Operators are rotations g in the sense of `rotations`: a symmetric map has f(g r) = f(r), so the poses A and A g are the same.

| group | axes |
|---|---|
| Cn, Dn | n-fold on z; Dn: a 2-fold on x |
| T | a 3-fold on z, another at (0, -0.943, 0.333) |
| O | 4-folds on x, y and z |
| I or I2 | 2-folds on x, y and z; a 5-fold at (0.526, 0, 0.851) |
| I1 | I2 turned by 90 degrees about z |
| I3, I4 | a 5-fold on z, another at (-0.894, 0, 0.447) for I3 and (+0.894, 0, 0.447) for I4; a 2-fold on y |
"""

from __future__ import annotations

import re
from functools import lru_cache

import torch

from verglas.errors import InputError
from verglas.volume.fourier import fourier_crop, fourier_pad
from verglas.volume.rotations import axis_rotation, nearest_rotation

KNOWN = "C1, C2, ... ; D1, D2, ... ; T; O; I (= I2), I1, I2, I3, I4"
_GOLDEN = (1 + 5**0.5) / 2
_X, _Z = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
_AXES: dict[str, list[tuple[tuple[float, float, float], int]]] = {
    "T": [(_Z, 3), ((0.0, -(8**0.5), 1.0), 3)],
    "O": [(_Z, 4), (_X, 4)],
    "I1": [(_X, 2), (_Z, 2), ((_GOLDEN, 0.0, 1.0), 5)],
    "I2": [(_X, 2), (_Z, 2), ((1.0, 0.0, _GOLDEN), 5)],
    "I3": [(_Z, 5), ((-2.0, 0.0, 1.0), 5)],
    "I4": [(_Z, 5), ((2.0, 0.0, 1.0), 5)],
}


def group_name(group: str) -> str:
    """The group's name as this module writes it (`c04` is C4, `i` is I2); InputError, listing what is known, for anything else."""
    name = group.strip().upper()
    cyclic = re.fullmatch(r"([CD])0*([1-9]\d{0,2})", name)
    if cyclic:
        return cyclic[1] + cyclic[2]
    name = "I2" if name == "I" else name
    if name in _AXES:
        return name
    if re.fullmatch(r"CI|CS|[CD]\d+[VH]|T[DH]|OH|I[1-5]?H|S\d+", name):
        raise InputError(
            f"symmetry {group!r}", "a group with mirrors or an inversion centre, which no chiral molecule has", f"Known are {KNOWN}"
        )
    raise InputError(f"symmetry {group!r}", "not a known point group", f"Known are {KNOWN}")


def symmetry_operators(group: str) -> torch.Tensor:
    """Rotations of the group [n, 3, 3], float64, the identity first. InputError for an unknown name."""
    return _operators(group_name(group)).clone()


def normaliser(group: str) -> torch.Tensor:
    """Rotations [m, 3, 3], float64, that map the group's axes onto themselves: a map turned by one of them obeys the group as well.

    They include the group. D2: the 24 of O; other Dn: D2n; T: the octahedral group around it; O and I: the group itself.
    Cn has infinitely many: given are those of Dn, and any rotation about z may be added (`has_free_axis`); for C1 (identity alone
    is given) every rotation.
    """
    return _normaliser(group_name(group)).clone()


def has_free_axis(group: str) -> bool:
    """Whether the group's setting leaves a rotation open: any (C1) or one about z (Cn)."""
    return group_name(group)[0] == "C"


@lru_cache(maxsize=32)
def _operators(name: str) -> torch.Tensor:
    if name in _AXES:
        return _closure(_AXES[name])
    order = int(name[1:])
    return _closure([(_Z, order)] if name[0] == "C" else [(_Z, order), (_X, 2)])


@lru_cache(maxsize=32)
def _normaliser(name: str) -> torch.Tensor:
    if name == "C1":
        return _operators(name)
    if name == "D2":
        return _operators("O")
    if name == "T":
        # the 4-fold axes of the cube are T's 2-folds; one of them lies at (0, sqrt 2, 1)
        return _closure([*_AXES["T"], ((0.0, 2**0.5, 1.0), 4)])
    if name[0] == "C":
        return _operators("D" + name[1:])
    return _operators(f"D{2 * int(name[1:])}") if name[0] == "D" else _operators(name)


def _closure(axes: list[tuple[tuple[float, float, float], int]]) -> torch.Tensor:
    """All products of the rotations about `axes` (direction, fold), the identity first."""
    generators = [axis_rotation(torch.tensor(axis, dtype=torch.float64), 360.0 / fold) for axis, fold in axes]
    found = [torch.eye(3, dtype=torch.float64)]
    for element in found:  # the list grows while it is walked, until no product is new
        for generator in generators:
            product = nearest_rotation(element @ generator)
            if min(float((product - other).abs().max()) for other in found) > 1e-6:
                found.append(product)
    operators = torch.stack(found)
    return torch.where(operators.abs() < 1e-12, 0.0, operators)


def turned_copy(volume: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """g(r) = f(matrix r) about index N//2 for maps [..., N, N, N], trilinear, 0 outside the box."""
    size = volume.shape[-1]
    matrix = matrix.to(volume)
    offset = (matrix - torch.eye(3).to(volume)) @ torch.full((3, 1), (size - 1) / 2 - size // 2).to(volume)
    affine = torch.cat([matrix, offset * (2 / (size - 1))], dim=1)
    batch = volume.reshape(1, -1, size, size, size)
    grid = torch.nn.functional.affine_grid(affine[None], [1, 1, size, size, size], align_corners=True)
    turned = torch.nn.functional.grid_sample(batch, grid, align_corners=True, padding_mode="zeros")
    return turned.reshape(volume.shape)


def symmetrise_map(volume: torch.Tensor, group: str) -> torch.Tensor:
    """Mean of a map [N, N, N] over the group's operators, about index N//2, by trilinear interpolation in real space.

    Exact for operators that permute the axes (C2, C4, D2, D4, O); others lose some of the finest detail.
    In even boxes the planes of index 0 have no partner on the other side and are averaged with 0.
    """
    operators = symmetry_operators(group)
    total = volume.clone()
    for operator in operators[1:]:
        total += turned_copy(volume, operator)
    return total / len(operators)


def symmetry_misfit(volume: torch.Tensor, group: str, shells: int = 16) -> float:
    """How far a map [N, N, N] is from its symmetry: 1 - the lowest correlation with a copy of itself turned by an operator.

    Compared about index N//2 inside the largest sphere and up to Fourier shell `shells` only; noise there counts as misfit, so give it
    a low-passed reference. At 20 to 60 Å a D2 protein on its axes gives under 0.01, and 0.03 (60 Å) to 0.17 (20 Å) when 8 degrees off.
    """
    operators = symmetry_operators(group)
    if len(operators) == 1:
        return 0.0
    size = min(volume.shape[-1], 2 * shells)
    # finer voxels than the band limit needs keep the interpolation's own error out of the measure
    smooth = fourier_pad(fourier_crop(volume.float(), size, 3), 2 * size, 3)
    index = torch.arange(2 * size, device=volume.device) - size
    inside = index[:, None, None] ** 2 + index[:, None] ** 2 + index**2 < (size - 1) ** 2
    own = _standard(smooth[inside])
    worst = min(float((own * _standard(turned_copy(smooth, operator)[inside])).mean()) for operator in operators[1:])
    return 1 - worst


def _standard(values: torch.Tensor) -> torch.Tensor:
    values = values.double() - values.double().mean()
    return values / values.square().mean().sqrt().clamp(min=1e-30)
