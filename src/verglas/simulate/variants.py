"""Specimens derived from another: without symmetry, and in a second state with a domain of every chain turned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from verglas.errors import InputError
from verglas.simulate.specimen import Specimen
from verglas.volume.rotations import axis_rotation

HINGE_WIDTH = 3.0  # Å on either side of the plane between the domains, whose atoms tell where the hinge is


def without_symmetry(specimen: Specimen, degrees: float = 60.0, outwards: float = 10.0) -> Specimen:
    """The specimen with its last chain turned by `degrees` about its own centre and moved `outwards` (Å), the one before it halved.

    Of the stand-in's tetramer two subunits stay related, and no operator relates the whole. Four lobes that are not in one plane: of
    three, which always are, views from both sides would look alike at low resolution. Raises InputError for fewer than 4 chains.
    """
    chains = list(dict.fromkeys(specimen.chain.tolist()))
    if len(chains) < 4:
        raise InputError(specimen.name, f"has {len(chains)} chains, 4 are needed", "Take one with more chains")
    position = specimen.position.copy()
    moved = specimen.chain == chains[-1]
    centre = position[moved].mean(axis=0)
    position[moved] = (position[moved] - centre) @ _turn((0.5, 1.0, 2.0), degrees).T
    position[moved] += centre * (1 + outwards / np.linalg.norm(centre))
    halved = specimen.chain == chains[-2]
    kept = ~halved
    kept[halved] = _height(position[halved]) <= 0
    return replace(
        specimen,
        name=f"{specimen.name}, asymmetric",
        symmetry="C1",
        position=position[kept],
        element=specimen.element[kept],
        b_factor=specimen.b_factor[kept],
        chain=specimen.chain[kept],
    ).centred()


def with_domain_turned(specimen: Specimen, degrees: float = 25.0) -> Specimen:
    """The specimen with the outer half of every chain turned by `degrees` about a hinge in the middle of the chain.

    The outer half is what lies beyond the chain's centre, seen from the particle's. Axis and hinge follow the chain, so that chains
    related by symmetry stay so.
    """
    position = specimen.position.copy()
    first = position[specimen.chain == specimen.chain[0]]
    own, axis = _own_frame(first), np.cross(first.mean(axis=0), [0.2, -0.4, 1.0])
    for chain in dict.fromkeys(specimen.chain.tolist()):
        mine = np.flatnonzero(specimen.chain == chain)
        atoms = position[mine]
        height = _height(atoms)
        hinge = atoms[np.abs(height) < HINGE_WIDTH].mean(axis=0)
        carried = _own_frame(atoms) @ own.T @ axis
        outer = mine[height > 0]
        position[outer] = (position[outer] - hinge) @ _turn(tuple(carried), degrees).T + hinge
    return replace(specimen, name=f"{specimen.name}, domain turned by {degrees:g} degrees", position=position)


def _height(atoms: np.ndarray) -> np.ndarray:
    """How far atoms [n, 3] lie beyond their centre, seen from the particle's, Å."""
    centre = atoms.mean(axis=0)
    return (atoms - centre) @ (centre / np.linalg.norm(centre))  # type: ignore[no-any-return]


def _own_frame(atoms: np.ndarray) -> np.ndarray:
    """A right-handed frame [3, 3] that turns with the atoms [n, 3], the same for chains that are rotated copies in the same order."""
    first, second, third = (part.mean(axis=0) for part in np.array_split(atoms, 3))
    along = second - first
    normal = np.cross(along, third - first)
    axes = np.stack([along / np.linalg.norm(along), np.zeros(3), normal / np.linalg.norm(normal)], axis=1)
    axes[:, 1] = np.cross(axes[:, 2], axes[:, 0])
    return axes


def _turn(axis: tuple[float, ...], degrees: float) -> np.ndarray:
    return axis_rotation(torch.tensor(axis, dtype=torch.float64), degrees).numpy()
