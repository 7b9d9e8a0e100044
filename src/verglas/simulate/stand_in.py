"""A stand-in for rabbit muscle aldolase, built from rules: no download, no foreign file.

A D2 tetramer of four (β/α)8 barrels of about 37 kDa: eight parallel strands on a barrel of radius 7.2 Å, tilted by 36°
(n = 8, S = 8: McLachlan 1979), eight helices around them and antiparallel to them, and the additions that make the
subunit unlike any turned copy of itself: helices of unequal length, a helix that closes the bottom, an insertion beside
the barrel and a long C-terminal arm.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from verglas.simulate.polypeptide import HELIX, STRAND, Segment, ideal_segment, loop, with_side_chains
from verglas.simulate.specimen import Specimen

BARREL_RADIUS, BARREL_TILT = 7.2, 36.0
HELIX_RADIUS, HELIX_TILT = 17.2, 24.0
STRAND_RESIDUES = (8, 7, 8, 7, 8, 7, 8, 7)
HELIX_RESIDUES = (13, 17, 20, 14, 21, 17, 12, 19)
SUBUNIT_CENTRE = np.array([23.1, 16.8, 9.6])
SUBUNIT_AXIS = (-0.61, -0.57, -0.61)  # direction of the barrel's axis in the tetramer
SUBUNIT_TURN = 171.0  # degrees about that axis
TWOFOLDS = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float64)


def stand_in(seed: int = 7, b_factor: float = 30.0) -> Specimen:
    """The tetramer, with two-folds on x, y and z. `seed` draws the side chains; `b_factor` (Å²) rises by 1.5 in the loops."""
    random = np.random.default_rng(seed)
    segments, mobile = subunit_segments()
    backbone = np.concatenate([segment.backbone for segment in segments])
    position, element = with_side_chains(backbone, random)
    loops = np.concatenate([np.full(len(segment.backbone), flag) for segment, flag in zip(segments, mobile)])
    nearest = np.argmin(np.linalg.norm(position[:, None] - backbone[None, :, 1], axis=2), axis=1)
    subunit = (position - position.mean(axis=0)) @ _subunit_rotation().T + SUBUNIT_CENTRE
    return Specimen(
        name="aldolase stand-in",
        symmetry="D2",
        position=np.concatenate([subunit * signs for signs in TWOFOLDS]),
        element=np.tile(element, 4),
        b_factor=np.tile(np.where(loops[nearest], 1.5 * b_factor, b_factor), 4),
        chain=np.repeat(list("ABCD"), len(element)),
    )


def subunit_segments() -> tuple[list[Segment], list[bool]]:
    """One chain, in order from N to C terminus, barrel axis on z; the flags tell loops."""
    elements = [_element(12, HELIX, (5.0, -3.0, -18.5), (0.85, -0.5, 0.1))]
    for i in range(8):
        theta = np.radians(45.0 * i)
        elements.append(_strand(i, theta))
        if i == 2:
            elements += [_element(13, HELIX, (0.0, 26.5, 9.0), (0.9, 0.1, 0.4)), _element(9, HELIX, (9.0, 25.0, -1.0), (-0.5, -0.1, -0.85))]
        if i == 6:
            elements.append(_element(14, HELIX, (-10.0, -25.0, -6.0), (-0.8, 0.35, -0.5)))
        elements.append(_around(HELIX_RESIDUES[i], theta + np.radians(22.5)))
    elements += [_element(10, HELIX, (20.0, -9.0, 17.0), (-0.75, 0.6, 0.25)), _element(18, HELIX, (2.0, 9.0, 21.5), (-0.5, 0.85, -0.1))]
    segments, mobile = [elements[0]], [False]
    for before, after in pairwise(elements):
        link = loop(before.end, _direction(before), _direction(after), after.start, bulge=1.7)
        if link is not None:
            segments.append(link)
            mobile.append(True)
        segments.append(after)
        mobile.append(False)
    return segments, mobile


def _direction(segment: Segment) -> np.ndarray:
    along = segment.end - segment.start
    return along / np.linalg.norm(along)


def _strand(i: int, theta: float) -> Segment:
    """Strand i of the barrel, its side chains pointing in and out by turns."""
    radial, tangent = _radial(theta), _tangent(theta)
    tilt = np.radians(BARREL_TILT)
    axis = np.cos(tilt) * np.array([0.0, 0.0, 1.0]) + np.sin(tilt) * tangent
    segment = ideal_segment(STRAND_RESIDUES[i], STRAND)
    sides = np.where(np.arange(STRAND_RESIDUES[i]) % 2, 1.0, -1.0)[:, None]
    outward = (sides * (segment.backbone[:, 4] - segment.backbone[:, 1])).mean(axis=0)
    roll = np.arctan2(outward[1], outward[0])
    return segment.placed(_frame(axis, radial) @ _about_z(-roll), BARREL_RADIUS * radial)


def _around(residues: int, theta: float) -> Segment:
    """A helix outside the barrel, antiparallel to its strands; longer ones reach further down."""
    tilt = np.radians(HELIX_TILT)
    axis = -(np.cos(tilt) * np.array([0.0, 0.0, 1.0]) + np.sin(tilt) * _tangent(theta))
    centre = HELIX_RADIUS * _radial(theta) + np.array([0.0, 0.0, -0.35 * (residues - 14)])
    return ideal_segment(residues, HELIX).placed(_frame(axis, _radial(theta)), centre)


def _element(residues: int, dihedrals: tuple[float, float], centre: tuple[float, ...], axis: tuple[float, ...]) -> Segment:
    direction = np.asarray(axis) / np.linalg.norm(axis)
    return ideal_segment(residues, dihedrals).placed(_frame(direction, np.array([0.2, 0.3, 0.93])), np.asarray(centre))


def _radial(theta: float) -> np.ndarray:
    return np.array([np.cos(theta), np.sin(theta), 0.0])


def _tangent(theta: float) -> np.ndarray:
    return np.array([-np.sin(theta), np.cos(theta), 0.0])


def _frame(z: np.ndarray, near_x: np.ndarray) -> np.ndarray:
    """Rotation that puts z on `z` and x as near to `near_x` as can be, [3, 3]."""
    x = near_x - (near_x @ z) * z
    x = x / np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


def _about_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _subunit_rotation() -> np.ndarray:
    axis = np.asarray(SUBUNIT_AXIS) / np.linalg.norm(SUBUNIT_AXIS)
    return _frame(axis, np.array([1.0, 0.0, 0.0])) @ _about_z(np.radians(SUBUNIT_TURN))
