"""Atomic models: PDB and mmCIF, through gemmi."""

import os
from dataclasses import dataclass

import gemmi
import numpy as np

from verglas.errors import FileFormatError, InputError


@dataclass(frozen=True)
class Atoms:
    """Atoms of a model: position [n, 3] (x, y, z) in Å, element symbols, b_factor in Å², occupancy, chain names, all [n].

    `site` [n]: residue number and atom name, the same for the same atom of another copy of the chain.
    """

    position: np.ndarray
    element: np.ndarray
    b_factor: np.ndarray
    occupancy: np.ndarray
    chain: np.ndarray
    site: np.ndarray

    def __len__(self) -> int:
        return len(self.element)

    @property
    def atomic_number(self) -> np.ndarray:
        """Atomic numbers, int64 [n]."""
        return np.array([gemmi.Element(name).atomic_number for name in self.element], np.int64)


def read_structure(path: str | os.PathLike[str]) -> gemmi.Structure:
    """The file as gemmi reads it. Raises FileFormatError for anything without atoms."""
    try:
        structure = gemmi.read_structure(os.fspath(path))
    except (ValueError, RuntimeError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise FileFormatError(path, "the file does not exist") from error
        raise FileFormatError(path, f"cannot be read as PDB or mmCIF: {error}") from error
    if not len(structure) or not structure[0].count_atom_sites():
        raise FileFormatError(path, "holds no atoms")
    structure.setup_entities()
    return structure


def read_atoms(path: str | os.PathLike[str], assembly: str | None = None, waters: bool = False) -> Atoms:
    """Atoms of the first model of a PDB or mmCIF file, or of its biological `assembly` ("1", "2", …).

    Of alternate conformations the most occupied is kept; waters are left out unless asked for.
    Raises InputError for an assembly that the file does not define, naming those that it does.
    """
    structure = read_structure(path)
    if assembly is not None:
        known = [found.name for found in structure.assemblies]
        if assembly not in known:
            raise InputError(path, f"has no assembly {assembly!r}; it defines {', '.join(known) or 'none'}")
        try:
            structure.transform_to_assembly(assembly, gemmi.HowToNameCopiedChain.AddNumber)
        except RuntimeError as error:
            raise FileFormatError(path, f"assembly {assembly} cannot be built: {error}") from error
    if not waters:
        structure.remove_waters()
    found = [
        (chain.name, f"{residue.seqid} {atom.name}", atom)
        for chain in structure[0]
        for residue in chain
        for atom in _one_conformation(residue)
    ]
    if not found:
        raise FileFormatError(path, "holds no atoms other than water")
    return Atoms(
        position=np.array([atom.pos.tolist() for _, _, atom in found], np.float64),
        element=np.array([atom.element.name for _, _, atom in found]),
        b_factor=np.array([atom.b_iso for _, _, atom in found], np.float64),
        occupancy=np.array([atom.occ for _, _, atom in found], np.float64),
        chain=np.array([name for name, _, _ in found]),
        site=np.array([site for _, site, _ in found]),
    )


def _one_conformation(residue: gemmi.Residue) -> list[gemmi.Atom]:
    """Each atom of the residue once, in the conformation with the highest occupancy."""
    best: dict[str, gemmi.Atom] = {}
    for atom in residue:
        if atom.name not in best or atom.occ > best[atom.name].occ:
            best[atom.name] = atom
    return list(best.values())
