"""What is imaged: atoms with elements and B factors, centred, with the symmetry axes where RELION has them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from verglas.errors import InputError
from verglas.simulate.axes import setting_of_chains

# Hydrogens that ride on a heavy atom of a protein, on average (C 4.9, N 1.35, O 1.5, S 0.03 and H 7.8 a residue).
RIDING_HYDROGENS = {"C": 1.25, "N": 1.05, "O": 0.15, "S": 0.3}
MASS = {"H": 1.008, "C": 12.011, "N": 14.007, "O": 15.999, "P": 30.974, "S": 32.06}


@dataclass(frozen=True)
class Specimen:
    """Atoms of one particle. `position` Å, float64 [n, 3] (x, y, z), centred on the origin; `b_factor` Å², [n]; `chain` [n]."""

    name: str
    symmetry: str
    position: np.ndarray
    element: np.ndarray
    b_factor: np.ndarray
    chain: np.ndarray

    @property
    def hydrogens(self) -> np.ndarray:
        """Hydrogens that each atom carries without their being in the model, float64 [n]: fewer where it has some of its own."""
        riding = np.array([RIDING_HYDROGENS.get(str(element), 0.0) for element in self.element])
        present = int((self.element == "H").sum())
        return riding * max(0.0, 1 - present / max(float(riding.sum()), 1.0))

    @property
    def atom_masses(self) -> np.ndarray:
        """Mass of each atom with the hydrogens on it, Da, float64 [n]."""
        heavy = np.array([_mass(str(element)) for element in self.element])
        return heavy + MASS["H"] * self.hydrogens

    @property
    def mass_kda(self) -> float:
        """Mass of the particle, kDa."""
        return float(self.atom_masses.sum() / 1000)

    @property
    def diameter(self) -> float:
        """Twice the distance of the farthest atom from the centre, Å."""
        return float(2 * np.linalg.norm(self.position, axis=1).max())

    def centred(self) -> Specimen:
        """The same with its centre of mass at the origin."""
        return replace(self, position=self.position - np.average(self.position, axis=0, weights=self.atom_masses))


def specimen_from_file(path: Path, symmetry: str = "C1", assembly: str | None = None) -> Specimen:
    """A PDB or mmCIF file as a specimen, turned so that its axes lie in RELION's setting of `symmetry`.

    Raises InputError when the chains are not related by that symmetry.
    """
    from verglas.io.atoms import read_atoms

    atoms = read_atoms(path, assembly=assembly)
    found = Specimen(
        name=Path(path).stem,
        symmetry=symmetry,
        position=np.asarray(atoms.position, np.float64),
        element=np.array([str(element).capitalize() for element in atoms.element]),
        b_factor=np.asarray(atoms.b_factor, np.float64),
        chain=np.asarray(atoms.chain).astype(str),
    ).centred()
    if not len(found.position):
        raise InputError(path, "holds no atoms", "Give a PDB or mmCIF file of the particle")
    if symmetry.upper() == "C1":
        return found
    rotation, centre = setting_of_chains(found.position, found.chain, np.asarray(atoms.site), symmetry, where=str(path))
    return replace(found, position=(found.position - centre) @ rotation.T)


def _mass(element: str) -> float:
    if element in MASS:
        return MASS[element]
    import gemmi

    return float(gemmi.Element(element).weight)
