"""The log-likelihood of an image about a pose: its value, slope and Gauss–Newton curvature in rotation and shift.

A pose A and a shift t (pixels) are changed to axis_rotation(w) A, with the rotation vector w in the image's frame, and t + s. With
Y = C̃ S X̃ the shifted image and P the slice, the log-likelihood is Re Σ conj(Y) P − ½ Σ C̃² |P|² (METHOD.md §1); a small change makes

    J = C̃ (ky u, −kx u, v, i 2π kx / N P, i 2π ky / N P),    u = ∇P · n,    v = ∇P · (kx e2 − ky e1)

of the model, where e1, e2, n are the rows of A. The slope is Re Σ conj(J) (X̃ S − C̃ P), the curvature Re Σ conj(J) Jᵀ.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import NamedTuple

import torch

from verglas.compute.kernels import compiled_for
from verglas.refine import curvature_native
from verglas.volume.slices import Pixels, Projector

_POINTS_AT_ONCE = 1 << 20  # of the plain code, 475 bytes each


class Local(NamedTuple):
    """Of n images: value [n], slope [n, 5] and curvature [n, 5, 5] by (rotation vector in radians, shift in pixels), float32."""

    value: torch.Tensor
    slope: torch.Tensor
    curvature: torch.Tensor


def local_shape(projector: Projector, pixels: Pixels, moved: torch.Tensor, ctf: torch.Tensor, matrices: torch.Tensor) -> Local:
    """The log-likelihood about the poses `matrices` float32 [n, 3, 3] of images `moved` complex64 [n, k] (Y above), ctf [n, k] (C̃)."""
    kernels = curvature_kernels(projector.table)
    local_sums = plain_sums if kernels is None else kernels.local_sums
    return _assembled(local_sums(projector, pixels, moved, ctf, matrices), pixels.box)


def curvature_kernels(table: torch.Tensor) -> ModuleType | None:
    """The module of compiled code that takes the place of `plain_sums`, or None."""
    return compiled_for(table, curvature_native, "verglas.refine.curvature_triton")


def plain_sums(projector: Projector, pixels: Pixels, moved: torch.Tensor, ctf: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """The sums over pixels [n, 20] that value, slope and curvature are made of; compiled code makes the same."""
    step = max(1, _POINTS_AT_ONCE // len(pixels))
    parts = zip(*(values.split(step) for values in (moved, ctf, matrices)))
    return torch.cat([_plain_part(projector, pixels, *part) for part in parts]) if len(moved) else ctf.new_zeros(0, curvature_native.SUMS)


def _plain_part(projector: Projector, pixels: Pixels, moved: torch.Tensor, ctf: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    p, gradient = projector.project_with_gradient(matrices, pixels)
    along = torch.einsum("nka,nja->jnk", gradient, matrices.to(gradient))
    kx, ky = pixels.kx, pixels.ky
    u, v = along[2], kx * along[1] - ky * along[0]
    c2 = ctf.square() * pixels.valid
    d = moved * pixels.valid - c2 * p
    uu, uv, vv = (c2 * _real(a, b) for a, b in ((u, u), (u, v), (v, v)))
    up, vp, pp = c2 * _imaginary(u, p), c2 * _imaginary(v, p), c2 * _real(p, p)
    ud, vd, pd = _real(u, d), _real(v, d), _imaginary(p, d)
    quadratic = [values * factor for values in (uu, up, pp) for factor in (kx * kx, kx * ky, ky * ky)]
    linear = [values * factor for values in (uv, vp, ud, pd) for factor in (kx, ky)]
    return torch.stack([term.sum(1) for term in (*quadratic, *linear, vv, vd, _real(moved, p) - 0.5 * pp)], dim=1)


def _assembled(sums: torch.Tensor, box: int) -> Local:
    turn = 2 * math.pi / box
    uu, up, pp = sums[:, :9].unflatten(1, (3, 3)).unbind(1)
    uv, vp, ud, pd = sums[:, 9:17].unflatten(1, (4, 2)).unbind(1)
    vv, vd, value = sums[:, 17:].unbind(1)
    slope = torch.stack([ud[:, 1], -ud[:, 0], vd, turn * pd[:, 0], turn * pd[:, 1]], dim=1)
    rows = [
        [uu[:, 2], -uu[:, 1], uv[:, 1], -turn * up[:, 1], -turn * up[:, 2]],
        [-uu[:, 1], uu[:, 0], -uv[:, 0], turn * up[:, 0], turn * up[:, 1]],
        [uv[:, 1], -uv[:, 0], vv, -turn * vp[:, 0], -turn * vp[:, 1]],
        [-turn * up[:, 1], turn * up[:, 0], -turn * vp[:, 0], turn**2 * pp[:, 0], turn**2 * pp[:, 1]],
        [-turn * up[:, 2], turn * up[:, 1], -turn * vp[:, 1], turn**2 * pp[:, 1], turn**2 * pp[:, 2]],
    ]
    return Local(value, slope, torch.stack([torch.stack(row, dim=1) for row in rows], dim=1))


def _real(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Re(conj(a) b)."""
    return a.real * b.real + a.imag * b.imag


def _imaginary(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Im(conj(a) b)."""
    return a.real * b.imag - a.imag * b.real
