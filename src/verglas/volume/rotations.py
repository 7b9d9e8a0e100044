"""Rotations in RELION's convention: Euler angles rot, tilt, psi in degrees; A = Rz(psi) Ry(tilt) Rz(rot).

Each factor turns the coordinate frame, so a point r of the map falls on the image at the first two entries of A r, and the third row
of A is the view direction in the map's frame. Everything is batched over leading axes and keeps the precision it is given.
"""

from __future__ import annotations

import torch


def euler_to_matrix(angles: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [..., 3, 3] of Euler angles [..., 3] (rot, tilt, psi; degrees)."""
    ca, cb, cg = torch.deg2rad(angles).cos().unbind(-1)
    sa, sb, sg = torch.deg2rad(angles).sin().unbind(-1)
    rows = [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_to_euler(matrices: torch.Tensor) -> torch.Tensor:
    """Euler angles [..., 3] (rot, tilt, psi; degrees; tilt 0 to 180) of rotation matrices [..., 3, 3].

    At tilt 0 and 180 only psi + rot or psi - rot is defined: rot is 0 there, as in RELION.
    """
    sine = torch.hypot(matrices[..., 0, 2], matrices[..., 1, 2])
    tilt = torch.atan2(sine, matrices[..., 2, 2])
    pole = sine < 16 * torch.finfo(torch.float32).eps
    facing = torch.where(matrices[..., 2, 2] > 0, 1.0, -1.0).to(matrices.dtype)
    rot = torch.where(pole, 0.0, torch.atan2(matrices[..., 2, 1], matrices[..., 2, 0]))
    psi_at_pole = torch.atan2(-facing * matrices[..., 1, 0], facing * matrices[..., 0, 0])
    psi = torch.where(pole, psi_at_pole, torch.atan2(matrices[..., 1, 2], -matrices[..., 0, 2]))
    return torch.rad2deg(torch.stack([rot, tilt, psi], dim=-1))


def rotation_distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Angle of the rotation between two rotations, degrees, 0 to 180; [..., 3, 3] each, broadcast against each other.

    From the length of the difference, which stays exact at small angles where the trace does not.
    """
    chord = (first - second).square().sum(dim=(-2, -1)).sqrt()
    return torch.rad2deg(2 * torch.asin((chord / 8**0.5).clamp(max=1.0)))


def axis_rotation(axis: torch.Tensor, degrees: torch.Tensor | float) -> torch.Tensor:
    """Matrices [..., 3, 3] that turn the coordinate frame by `degrees` [...] about `axis` [..., 3] (of any length).

    About z, an angle of psi is the same as Euler angles 0, 0, psi.
    """
    x, y, z = torch.nn.functional.normalize(axis, dim=-1).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, z, -y, -z, zero, x, y, -x, zero], dim=-1).unflatten(-1, (3, 3))
    angle = torch.deg2rad(torch.as_tensor(degrees, dtype=axis.dtype, device=axis.device))[..., None, None]
    identity = torch.eye(3, dtype=axis.dtype, device=axis.device)
    return identity + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)


def quaternion_to_matrix(quaternions: torch.Tensor) -> torch.Tensor:
    """Matrices [..., 3, 3] of quaternions [..., 4] (w, x, y, z; of any length but 0); q and -q are the same rotation.

    The sense is that of this module: (cos a/2, sin a/2 * axis) is `axis_rotation(axis, a)`.
    """
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
        [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
        [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def random_rotations(
    n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
) -> torch.Tensor:
    """`n` rotations drawn uniformly over SO(3), [n, 3, 3]; with a generator they are the same on every machine of its device."""
    device = generator.device if device is None and generator is not None else device
    return quaternion_to_matrix(torch.randn(n, 4, generator=generator, dtype=dtype, device=device))


def nearest_rotation(matrices: torch.Tensor) -> torch.Tensor:
    """The rotations [..., 3, 3] nearest to any 3 x 3 matrices: of a sum of rotations it is their (chordal) mean."""
    left, _, right = torch.linalg.svd(matrices)
    sign = torch.det(left @ right)
    scale = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=-1)
    return (left * scale[..., None, :]) @ right


def geodesic(matrices: torch.Tensor) -> torch.Tensor:
    """Rotation vectors [..., 3] in degrees: the axis times the angle, so that `axis_rotation(v, |v|)` gives the matrix back.

    Exact up to about 179 degrees; at 180 the sign of the axis is not defined.
    """
    skew = torch.stack(
        [
            matrices[..., 1, 2] - matrices[..., 2, 1],
            matrices[..., 2, 0] - matrices[..., 0, 2],
            matrices[..., 0, 1] - matrices[..., 1, 0],
        ],
        dim=-1,
    )
    sine = skew.norm(dim=-1, keepdim=True) / 2
    cosine = (matrices.diagonal(dim1=-2, dim2=-1).sum(dim=-1, keepdim=True) - 1) / 2
    angle = torch.atan2(sine, cosine)
    factor = torch.where(sine > 1e-7, angle / (2 * sine.clamp(min=1e-30)), 0.5)
    return torch.rad2deg(factor * skew)
