"""Grids of orientations and shifts: nested HEALPix directions x in-plane angles, cut to one unit of the symmetry group.

Directions are HEALPix pixel centres (Gorski et al. 2005, ApJ 622, 759), rot = longitude, tilt = colatitude, in nested order, so pixel p
of one order has the children 4p ... 4p+3 of the next. In-plane angles are cell centres too, psi_j = (j + 1/2) step, so psi j has the
children 2j and 2j+1 at half the step. A pose is known by its direction's place in the grid and j: pose = direction * n_psi + j.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch

from verglas.volume.rotations import axis_rotation
from verglas.volume.symmetry import group_name, symmetry_operators

# place of each base pixel: row of its southern corner in units of N_side, and twice its longitude in units of 45 degrees
_FACE_ROW = (2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4)
_FACE_COLUMN = (1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7)


def angular_step(order: int) -> float:
    """Step in degrees that goes with a HEALPix order in RELION: 60 / 2^order (order 2: 15, order 3: 7.5)."""
    return 60.0 / 2**order


def healpix_directions(order: int, pixels: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rot and tilt in degrees, float64, of the nested pixels [...] of `order`; of all 12 * 4^order where none are given."""
    return _all_directions(order) if pixels is None else _directions(order, pixels)


@cache
def _all_directions(order: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _directions(order, torch.arange(12 * 4**order))


def _directions(order: int, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    side = 2**order
    face, inside = pixels // (side * side), pixels % (side * side)
    x, y = _even_bits(inside, order), _even_bits(inside >> 1, order)
    row = torch.tensor(_FACE_ROW, device=pixels.device)[face] * side - x - y - 1
    in_ring = torch.minimum(torch.minimum(row, 4 * side - row), torch.full_like(row, side))
    polar = torch.minimum(row, 4 * side - row) < side
    cap = 1 - in_ring.double() ** 2 / (3 * side * side)
    z = torch.where(polar, torch.where(row < side, cap, -cap), (2 * side - row).double() * 2 / (3 * side))
    column = torch.tensor(_FACE_COLUMN, device=pixels.device)[face] * in_ring + x - y
    # column is twice the distance along the ring from longitude 0, in pixels of the ring
    return (column.double() * 45.0 / in_ring.double()) % 360.0, torch.rad2deg(torch.acos(z))


def healpix_pixels(order: int, rot: torch.Tensor, tilt: torch.Tensor) -> torch.Tensor:
    """The nested pixel of `order` that each direction (degrees, [...]) falls into, int64."""
    side = 2**order
    z, turn = torch.cos(torch.deg2rad(tilt.double())), (rot.double() % 360.0) / 90.0
    equatorial = z.abs() <= 2 / 3
    up = torch.floor(side * (0.5 + turn - 0.75 * z)).long()
    down = torch.floor(side * (0.5 + turn + 0.75 * z)).long()
    face_up, face_down = up // side, down // side
    belt = torch.where(face_up == face_down, (face_up % 4) + 4, torch.where(face_up < face_down, face_up % 4, (face_down % 4) + 8))
    quarter = turn.floor().long().clamp(max=3)
    part, reach = turn - quarter, side * torch.sqrt(3 * (1 - z.abs()))
    near = torch.floor(part * reach).long().clamp(max=side - 1)
    far = torch.floor((1 - part) * reach).long().clamp(max=side - 1)
    north = z > 0
    face = torch.where(equatorial, belt, torch.where(north, quarter, quarter + 8))
    x = torch.where(equatorial, down % side, torch.where(north, side - 1 - far, near))
    y = torch.where(equatorial, side - 1 - up % side, torch.where(north, side - 1 - near, far))
    return face * side * side + _spread_bits(x, order) + 2 * _spread_bits(y, order)


def _even_bits(values: torch.Tensor, count: int) -> torch.Tensor:
    """`count` bits of each number, 0, 2, 4, ..., pushed together."""
    return sum((((values >> 2 * bit) & 1) << bit for bit in range(count)), torch.zeros_like(values))


def _spread_bits(values: torch.Tensor, count: int) -> torch.Tensor:
    """`count` bits of each number moved to the places 0, 2, 4, ..."""
    return sum((((values >> bit) & 1) << 2 * bit for bit in range(count)), torch.zeros_like(values))


def view_directions(rot: torch.Tensor, tilt: torch.Tensor) -> torch.Tensor:
    """Unit vectors [..., 3] of directions in degrees: the third row of the pose's matrix."""
    rot, tilt = torch.deg2rad(rot), torch.deg2rad(tilt)
    return torch.stack([torch.sin(tilt) * torch.cos(rot), torch.sin(tilt) * torch.sin(rot), torch.cos(tilt)], dim=-1)


# inside the unit that starts at y >= 0, z >= 0, and near no axis of any group, so that hardly two copies of a direction are as near
_CENTRE = (0.0931, 0.6871, 0.7206)
_LEAST_SHARE = 0.1


def asymmetric_unit(matrices: torch.Tensor, group: str) -> torch.Tensor:
    """Of the copies A g of each pose [..., 3, 3] the one that lies in the grid's unit: its view direction is nearest to a fixed one.

    The choice goes by view direction alone (not by the trace of the whole rotation), so that a unit is directions x all in-plane
    angles. For a direction on a symmetry axis, where copies share it, the first operator is taken.
    """
    operators = symmetry_operators(group).to(matrices)
    centre = torch.tensor(_CENTRE, dtype=matrices.dtype, device=matrices.device)
    nearness = torch.einsum("...i,gij,j->...g", matrices[..., 2, :], operators, centre)
    return matrices @ operators[nearness.argmax(dim=-1)]


@dataclass(frozen=True)
class RotationGrid:
    """A grid over one unit of SO(3): `pixels` [directions] (nested HEALPix of `order`) x `n_psi` in-plane angles of 360/n_psi."""

    order: int
    group: str
    pixels: torch.Tensor
    n_psi: int

    def __len__(self) -> int:
        return len(self.pixels) * self.n_psi

    def to(self, device: torch.device | str) -> RotationGrid:
        """The same grid with its tensors on `device`."""
        return replace(self, pixels=self.pixels.to(device))

    @property
    def psi_step(self) -> float:
        """Step of the in-plane angle, degrees."""
        return 360.0 / self.n_psi

    @cached_property
    def directions(self) -> torch.Tensor:
        """Rot, tilt of each direction [directions, 2], degrees, float64."""
        return torch.stack(healpix_directions(self.order, self.pixels), dim=-1)

    def angles_of(self, poses: torch.Tensor) -> torch.Tensor:
        """Rot, tilt, psi [..., 3] of poses [...] given by their place in the grid, degrees, float64; psi runs fastest."""
        psi = (poses % self.n_psi + 0.5) * self.psi_step
        return torch.cat([self.directions[poses // self.n_psi], psi[..., None].double()], dim=-1)

    def children(self, poses: torch.Tensor, levels: int = 1) -> torch.Tensor:
        """Rot, tilt, psi [..., 8^levels, 3] of the finer poses inside the cells of `poses` [...] (8: 4 directions x 2 psi, psi fastest).

        The children of a unit cover the unit and a little over its border.
        """
        fine, split = self.order + levels, 2**levels
        spread = torch.arange(split * split, device=poses.device)
        pixels = self.pixels[poses // self.n_psi][..., None] * split**2 + spread
        psi = (poses % self.n_psi)[..., None] * split + torch.arange(split, device=poses.device)
        rot, tilt = healpix_directions(fine, pixels)
        shape = (*poses.shape, split * split, split)
        psi = (psi[..., None, :].double() + 0.5) * (self.psi_step / split)
        angles = [value.expand(shape) for value in (rot[..., None], tilt[..., None], psi)]
        return torch.stack(angles, dim=-1).flatten(-3, -2)


def rotation_grid(
    healpix_order: int, symmetry: str = "C1", psi_step: float | None = None, device: torch.device | str = "cpu"
) -> RotationGrid:
    """Grid of `healpix_order` over one unit of the group; psi_step in degrees (60 / 2^order where not given) is fitted to 360.

    Kept are the directions of which more than a tenth of the cell lies in the unit of `asymmetric_unit`, so that no pose of the unit
    is far from all cells; by the centre of the cell alone a few per cent of the poses would be. InputError for an unknown group.
    """
    group = group_name(symmetry)
    pixels = torch.nonzero(shares_in_unit(healpix_order, group) > _LEAST_SHARE).squeeze(1)
    n_psi = max(1, round(360.0 / (angular_step(healpix_order) if psi_step is None else psi_step)))
    return RotationGrid(healpix_order, group, pixels.to(device), n_psi)


@cache
def shares_in_unit(order: int, group: str) -> torch.Tensor:
    """Part of each cell of `order` inside the group's unit [12 · 4^order], counted on the 16 directions two orders finer; float64."""
    fine = 0 if group == "C1" else 2
    views = view_directions(*healpix_directions(order + fine))
    centre = torch.tensor(_CENTRE, dtype=torch.float64)
    nearest = torch.full((len(views),), -1.0, dtype=torch.float64)
    for operator in symmetry_operators(group):
        nearest = torch.maximum(nearest, views @ (operator @ centre))
    # a direction on an axis is its own copy: a hair's breadth of tolerance keeps it
    return (views @ centre >= nearest - 1e-9).double().reshape(-1, 4**fine).mean(dim=1)


def random_perturbation(step: float, generator: torch.Generator | None = None, factor: float = 0.5) -> torch.Tensor:
    """A random rotation P [3, 3], float64, of at most factor * step degrees, to turn a whole grid by once an iteration: P @ matrices.

    Put on the left it turns the images' frame, so that the turned grid still covers one unit of any group exactly.
    """
    device = generator.device if generator is not None else None
    axis = torch.randn(3, generator=generator, dtype=torch.float64, device=device)
    size = torch.rand((), generator=generator, dtype=torch.float64, device=device) ** (1 / 3)
    return axis_rotation(axis, factor * step * size)


def psi_grid(step: float) -> torch.Tensor:
    """In-plane angles [n] of a 2D search, degrees, float64: cell centres of 360 / round(360 / step)."""
    n = max(1, round(360.0 / step))
    return (torch.arange(n, dtype=torch.float64) + 0.5) * (360.0 / n)


def psi_children(psi: torch.Tensor, step: float) -> torch.Tensor:
    """The two finer angles [..., 2] within each cell of width `step` around psi [...], degrees."""
    return psi[..., None] + torch.tensor([-0.25, 0.25], dtype=psi.dtype, device=psi.device) * step


def shift_grid(offset_range: float, offset_step: float) -> torch.Tensor:
    """Shifts (x, y) [n, 2] on a square grid of `offset_step` within a circle of `offset_range`, in their unit, float64; 0, 0 first."""
    reach = int(offset_range / offset_step + 1e-6)
    line = torch.arange(-reach, reach + 1, dtype=torch.float64) * offset_step
    y, x = torch.meshgrid(line, line, indexing="ij")
    shifts = torch.stack([x.flatten(), y.flatten()], dim=1)
    radius = shifts.norm(dim=1)
    shifts, radius = (value[radius <= offset_range + 1e-6] for value in (shifts, radius))
    return shifts[torch.argsort(radius, stable=True)]


def shift_children(shifts: torch.Tensor, step: float) -> torch.Tensor:
    """The four finer shifts [..., 4, 2] within each square cell of width `step` around shifts [..., 2]."""
    corners = torch.tensor([[-1, -1], [1, -1], [-1, 1], [1, 1]], dtype=shifts.dtype, device=shifts.device)
    return shifts[..., None, :] + corners * (step / 4)
