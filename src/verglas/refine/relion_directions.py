"""The view directions of RELION's asymmetric units, in RELION's order: what its tables of directions and priors are counted by.

The unit is not that of `volume.sampling`: RELION cuts HEALPix pixels by planes of its own, and of coarse grids takes out those that
lie within half a pixel's radius of a copy of an earlier one. Its `rlnOrientationDistribution` has one number for each that is left,
and a run that is continued reads them by their place.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from verglas.volume.sampling import healpix_directions, healpix_pixels, view_directions
from verglas.volume.symmetry import group_name, symmetry_operators

_GOLDEN = (1 + 5**0.5) / 2
_SEAMS_BELOW = 4000  # directions: of finer grids the pixels at the border stay
_ICOSAHEDRAL = ((0.0, 1.0, 0.0), (-0.5, -_GOLDEN / 2, 0.5 / _GOLDEN), (0.5, -_GOLDEN / 2, 0.5 / _GOLDEN))
_ACROSS = (
    (0.0, 0.0, -1.0),
    (-0.187592467856686, 0.303530987314591, 0.491123477863004),
    (-0.187592467856686, -0.303530987314591, 0.491123477863004),
)
# inward normals of the planes that bound the unit, and the angle about y that turns them into the group's setting
_PLANES = {
    "T": (((-1.0, 0.0, 0.0), (0.471405, 0.272165, 0.7698), (0.471404, 0.816497, 0.0)), 0.0),
    "O": (((0.0, -1.0, 1.0), (1.0, 1.0, 0.0), (-1.0, 1.0, 0.0)), 0.0),
    "I2": (_ICOSAHEDRAL, 0.0),
    "I1": (_ICOSAHEDRAL, 90.0),
    "I3": (_ICOSAHEDRAL, 31.7174745559),
    "I4": (_ACROSS, -31.7174745559),
}


def relion_angles(order: int, pixels: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rot (-180 to 180) and tilt of nested HEALPix pixels (all where not given) in degrees, float64, with RELION's rounding of rot.

    Which of two copies on the border of a unit is taken hangs on the last bit of it.
    """
    rot, tilt = healpix_directions(order, pixels)
    side, height = 2**order, torch.cos(torch.deg2rad(tilt)).abs()
    in_ring = torch.where(height > 2 / 3 + 1e-9, torch.round(side * torch.sqrt(3 * (1 - height))), float(side))
    radians = torch.round(rot * in_ring / 45.0) / 2 * (math.pi / 2 / in_ring)
    rot = radians * 180.0 / math.pi
    return torch.where(rot > 180.0, rot - 360.0, rot), tilt


@lru_cache(maxsize=16)
def relion_directions(order: int, symmetry: str) -> torch.Tensor:
    """Nested HEALPix pixels of `order` that RELION samples under the group, in its order; int64 [directions]."""
    group = group_name(symmetry)
    rot, tilt = relion_angles(order)
    pixels = torch.nonzero(_in_unit(group, rot, tilt))[:, 0]
    if len(pixels) >= _SEAMS_BELOW:
        return pixels
    return pixels[_first_of_copies(view_directions(rot[pixels], tilt[pixels]), group, _pixel_radius(order) / 2)]


def places_of(matrices: torch.Tensor, order: int, symmetry: str) -> torch.Tensor:
    """Place in `relion_directions` of the view direction of poses [n, 3, 3], or of the copy of it that lies in the unit; int64 [n]."""
    pixels = relion_directions(order, symmetry)
    place = torch.full((12 * 4**order,), -1)
    place[pixels] = torch.arange(len(pixels))
    found = torch.full((len(matrices),), -1)
    views = matrices[:, 2].double()
    for operator in symmetry_operators(symmetry):
        own = views @ operator
        rot, tilt = torch.rad2deg(torch.atan2(own[:, 1], own[:, 0])), torch.rad2deg(torch.acos(own[:, 2].clamp(-1, 1)))
        found = torch.where(found < 0, place[healpix_pixels(order, rot, tilt)], found)
    missing = torch.nonzero(found < 0)[:, 0]
    if len(missing):
        found[missing] = _nearest(views[missing], view_directions(*relion_angles(order, pixels)), symmetry)
    return found


def _nearest(views: torch.Tensor, directions: torch.Tensor, symmetry: str) -> torch.Tensor:
    """The direction that each view is nearest to, copies counted; for views whose pixels were all taken out at the border."""
    best, place = torch.full((len(views),), -2.0, dtype=torch.float64), torch.zeros(len(views), dtype=torch.long)
    for operator in symmetry_operators(symmetry):
        for rows in torch.arange(len(views)).split(max(1, (1 << 24) // len(directions))):
            near, at = (views[rows] @ operator @ directions.T).max(dim=1)
            closer = near > best[rows]
            best[rows], place[rows] = torch.where(closer, near, best[rows]), torch.where(closer, at, place[rows])
    return place


def _in_unit(group: str, rot: torch.Tensor, tilt: torch.Tensor) -> torch.Tensor:
    if group[0] == "C":
        return rot.abs() <= 180.0 / int(group[1:])
    if group[0] == "D":
        half = 180.0 / int(group[1:])
        if half > 90.0:
            return tilt <= 90.0
        return (rot >= 90.0 - half) & (rot <= 90.0 + half) & (tilt <= 90.0)
    normals, angle = _PLANES[group]
    turn = _about_y(angle)
    views = view_directions(rot, tilt)
    inside = torch.ones(len(rot), dtype=torch.bool)
    for normal in normals:
        normal_here = turn @ torch.nn.functional.normalize(torch.tensor(normal, dtype=torch.float64), dim=0)
        # three products added in turn: a matrix product would round the directions on a plane to the other side
        x, y, z = (views * normal_here).unbind(1)
        inside &= (x + y) + z >= 0
    if group == "T":
        inside &= ((rot >= 90.0) & (rot <= 150.0)) | (rot == 0)
    if group == "O":
        inside &= ((rot >= 45.0) & (rot <= 135.0) & (tilt <= 90.0)) | (rot == 0)
    return inside


def _about_y(angle: float) -> torch.Tensor:
    """RELION's matrix of rot 0, tilt `angle`, psi 0."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return torch.tensor([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]], dtype=torch.float64)


def _first_of_copies(views: torch.Tensor, group: str, radius: float) -> torch.Tensor:
    """Which directions [n, 3] stay when each that lies within `radius` degrees of a copy of an earlier one that stays is taken out."""
    near = torch.zeros(len(views), len(views), dtype=torch.bool)
    for operator in symmetry_operators(group):
        near |= views @ (views @ operator).T > math.cos(math.radians(radius))
    stays = torch.ones(len(views), dtype=torch.bool)
    later, earlier = torch.nonzero(near.tril(-1), as_tuple=True)
    for this, other in zip(later.tolist(), earlier.tolist()):
        if stays[other]:
            stays[this] = False
    return stays


def _pixel_radius(order: int) -> float:
    """The largest distance in degrees between a pixel's centre and its corners (HEALPix: Gorski et al. 2005)."""
    side = 2**order
    polar = 1 - (1 - 1 / side) ** 2 / 3
    first = (math.sqrt(1 - 4 / 9), math.pi / (4 * side), 2 / 3)
    cosine = first[0] * math.sqrt(1 - polar**2) * math.cos(first[1]) + first[2] * polar
    return math.degrees(math.acos(cosine))
