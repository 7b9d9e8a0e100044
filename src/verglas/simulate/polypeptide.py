"""Backbones of ideal geometry: helices and strands from dihedral angles, loops along curves, side chains on top.

Bond lengths and angles are Engh & Huber's (1991); dihedrals those of the ideal α-helix (−57.8°, −47.0°) and of a twisted
β-strand (−115°, 132°).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HELIX = (-57.8, -47.0)
STRAND = (-115.0, 132.0)
BACKBONE = ("N", "C", "C", "O", "C")  # N, CA, C, O, CB
# Heavy atoms of a side chain beyond CB, with their share among the residues of proteins.
SIDE_CHAINS = {
    "": 0.17,
    "C": 0.07,
    "O": 0.11,
    "CC": 0.08,
    "CO": 0.06,
    "COO": 0.03,
    "CON": 0.04,
    "CCC": 0.17,
    "CCON": 0.05,
    "CCCN": 0.09,
    "CCNCNN": 0.05,
    "CCCCCC": 0.08,
}


@dataclass(frozen=True)
class Segment:
    """Residues in a row: backbone atoms N, CA, C, O, CB, Å, float64 [residues, 5, 3]."""

    backbone: np.ndarray

    @property
    def start(self) -> np.ndarray:
        """First CA, [3]."""
        return self.backbone[0, 1]

    @property
    def end(self) -> np.ndarray:
        """Last CA, [3]."""
        return self.backbone[-1, 1]

    def placed(self, rotation: np.ndarray, shift: np.ndarray) -> Segment:
        """Rotated [3, 3] and shifted [3]."""
        return Segment(self.backbone @ rotation.T + shift)


def place_atom(a: np.ndarray, b: np.ndarray, c: np.ndarray, length: float, angle: float, dihedral: float) -> np.ndarray:
    """Position of d in the chain a-b-c-d with bond c-d (Å), angle b-c-d and dihedral a-b-c-d (degrees)."""
    bc = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, bc)
    normal /= np.linalg.norm(normal)
    theta, phi = np.radians(angle), np.radians(dihedral)
    local = length * np.array([-np.cos(theta), np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi)])
    return c + local[0] * bc + local[1] * np.cross(normal, bc) + local[2] * normal


def ideal_segment(residues: int, dihedrals: tuple[float, float]) -> Segment:
    """Residues of one secondary structure, its axis on z (N to C terminus upwards), centred on the origin."""
    phi, psi = dihedrals
    n, ca = np.zeros(3), np.array([1.458, 0.0, 0.0])
    c = place_atom(np.array([0.0, 1.0, 0.0]), n, ca, 1.525, 111.0, phi)
    rows = []
    for _ in range(residues):
        next_n = place_atom(n, ca, c, 1.329, 117.2, psi)
        rows.append([n, ca, c, place_atom(next_n, ca, c, 1.231, 120.1, 180.0), _beta_carbon(n, ca, c)])
        next_ca = place_atom(ca, c, next_n, 1.458, 121.7, 180.0)
        n, ca, c = next_n, next_ca, place_atom(c, next_n, next_ca, 1.525, 111.0, phi)
    return _along_z(np.array(rows))


def loop(start: np.ndarray, leave: np.ndarray, arrive: np.ndarray, end: np.ndarray, bulge: float) -> Segment | None:
    """Residues on a smooth curve between two CA atoms, leaving along `leave` and arriving along `arrive` (unit, [3]).

    `bulge` is the length of the end tangents over their distance. None when the ends are closer than two residues.
    """
    t = np.linspace(0, 1, 200)[:, None]
    pull = bulge * max(float(np.linalg.norm(end - start)), 8.0)
    curve = (
        (2 * t**3 - 3 * t**2 + 1) * start
        + (t**3 - 2 * t**2 + t) * pull * leave
        + (-2 * t**3 + 3 * t**2) * end
        + (t**3 - t**2) * pull * arrive
    )
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    count = round(arc[-1] / 3.6) - 1
    if count < 1:
        return None

    def at(residue: np.ndarray) -> np.ndarray:
        wanted = (residue + 1) / (count + 1) * arc[-1]
        return np.stack([np.interp(wanted, arc, curve[:, axis]) for axis in range(3)], axis=-1)

    residue = np.arange(count, dtype=np.float64)
    n, ca, c = at(residue - 0.36), at(residue), at(residue + 0.36)
    zigzag = np.cross(c - n, np.roll(c - n, 1, axis=0) + np.array([0.3, 0.2, 0.1]))
    zigzag *= 0.55 / np.maximum(np.linalg.norm(zigzag, axis=1, keepdims=True), 1e-6)
    ca = ca + zigzag * np.where(residue % 2, 1.0, -1.0)[:, None]
    beta = np.stack([_beta_carbon(*atoms) for atoms in zip(n, ca, c)])
    oxygen = c + 1.231 * zigzag / np.linalg.norm(zigzag, axis=1, keepdims=True)
    return Segment(np.stack([n, ca, c, oxygen, beta], axis=1))


def with_side_chains(backbone: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All heavy atoms of a chain: positions [n, 3] Å and elements [n]; side chains drawn with their natural frequencies."""
    kinds = list(SIDE_CHAINS)
    share = np.array([SIDE_CHAINS[kind] for kind in kinds])
    chosen = random.choice(len(kinds), size=len(backbone), p=share / share.sum())
    positions, elements = [backbone.reshape(-1, 3)], list(BACKBONE) * len(backbone)
    for (n, ca, _, _, cb), kind in zip(backbone, chosen):
        a, b, c = n, ca, cb
        for element in kinds[kind]:
            torsion = random.choice([-60.0, 60.0, 180.0]) + random.normal(0, 10)
            a, b, c = b, c, place_atom(a, b, c, 1.5, 112.0, torsion)
            positions.append(c[None])
            elements.append(element)
    return np.concatenate(positions), np.array(elements)


def _beta_carbon(n: np.ndarray, ca: np.ndarray, c: np.ndarray) -> np.ndarray:
    """CB of an L-amino acid."""
    to_n, to_c = (n - ca) / np.linalg.norm(n - ca), (c - ca) / np.linalg.norm(c - ca)
    away = -(to_n + to_c) / np.linalg.norm(to_n + to_c)
    side = np.cross(to_n, to_c)
    return ca + 1.53 * (0.58 * away + 0.815 * side / np.linalg.norm(side))


def _along_z(backbone: np.ndarray) -> Segment:
    """Axis (long direction of the means of four residues) on z, centred."""
    ca = backbone[:, 1]
    smooth = np.stack([ca[i : i + 4].mean(axis=0) for i in range(max(1, len(ca) - 3))])
    axis = smooth[-1] - smooth[0] if len(smooth) > 1 else ca[-1] - ca[0]
    z = axis / np.linalg.norm(axis)
    x = np.cross([0.31, 0.95, 0.1], z)
    x /= np.linalg.norm(x)
    frame = np.stack([x, np.cross(z, x), z])
    return Segment((backbone - ca.mean(axis=0)) @ frame.T)
