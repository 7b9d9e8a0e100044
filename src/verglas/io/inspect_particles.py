"""Explanations of particle tables and of the optics groups that any table refers to."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from verglas.errors import FileFormatError
from verglas.io.inspect import Explanation
from verglas.io.mrc_header import inspect_header
from verglas.io.relion_versions import upgrade_particles
from verglas.io.star import StarBlock, list_table, numbers

_NUMBERS = (
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
    "rlnCoordinateX",
    "rlnCoordinateY",
    "rlnAngleRot",
    "rlnAngleTilt",
    "rlnAnglePsi",
)
_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")


def particles(path: Path, blocks: Mapping[str, StarBlock]) -> Explanation:
    """Particles of any RELION version."""
    oddities: list[str] = []
    if "optics" in blocks and "particles" in blocks:
        optics, table = list_table(blocks, "optics", path), list_table(blocks, "particles", path)
    else:
        optics, table, notes = upgrade_particles(blocks, path)
        oddities += notes
    facts = {"particles": len(table)} | optics_facts(optics, table, path, oddities)
    if "rlnMicrographName" in table:
        facts["micrographs"] = table["rlnMicrographName"].nunique()
    facts["poses"] = _present(table, ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst"))
    if "rlnClassNumber" in table:
        counts = table["rlnClassNumber"].value_counts()
        facts["classes"] = f"{len(counts)}, of {counts.min()} to {counts.max()} particles"
    _halves(table, facts, oddities)
    _images(path, table, facts, oddities)
    if "rlnDefocusU" not in table:
        oddities.append("no rlnDefocusU: CTF correction is not possible (RELION would use zeros without a word)")
    oddities += bad_numbers(table, path)
    use = f"verglas job Class2D --particles {path}"
    if "rlnImageName" not in table:
        use = f"verglas job Extract --particles {path}, with the micrographs that they lie in" if "rlnMicrographName" in table else ""
    return Explanation("particles (STAR)", facts, oddities, use if len(table) else "")


def optics_facts(optics: pd.DataFrame, table: pd.DataFrame, path: Path, oddities: list[str]) -> dict[str, object]:
    """Facts of the optics table; what is missing or undefined goes to the oddities."""
    facts: dict[str, object] = {"optics groups": len(optics)}
    shown = {
        "rlnVoltage": ("voltage", "kV"),
        "rlnImagePixelSize": ("pixel size", "Å"),
        "rlnMicrographPixelSize": ("micrograph pixel size", "Å"),
    }
    shown |= {"rlnMicrographOriginalPixelSize": ("movie pixel size", "Å"), "rlnImageSize": ("box", "px")}
    for label, (what, unit) in shown.items():
        if label in optics:
            facts[what] = ", ".join(f"{value:g}" for value in np.unique(numbers(optics, label, path))) + f" {unit}"
    oddities += [f"the optics table has no {label}" for label in _OPTICS if label not in optics]
    if "rlnImageName" in table:
        oddities += [f"the optics table has no {label}" for label in ("rlnImagePixelSize", "rlnImageSize") if label not in optics]
    if "rlnOpticsGroup" in optics and "rlnOpticsGroup" in table:
        defined = set(optics["rlnOpticsGroup"])
        for group, count in table.loc[~table["rlnOpticsGroup"].isin(defined), "rlnOpticsGroup"].value_counts().items():
            oddities.append(f"{count} rows are in optics group {group}, which is not defined")
        if list(optics["rlnOpticsGroup"]) != list(range(1, len(optics) + 1)):
            oddities.append(f"optics groups are numbered {', '.join(map(str, optics['rlnOpticsGroup']))}; jobs renumber them")
    return facts


def _halves(table: pd.DataFrame, facts: dict[str, object], oddities: list[str]) -> None:
    if "rlnRandomSubset" not in table or not len(table):
        return
    counts = table["rlnRandomSubset"].value_counts().to_dict()
    facts["half sets"] = ", ".join(f"{count} in {half}" for half, count in sorted(counts.items(), key=str))
    if set(counts) != {1, 2} or min(counts.values()) < 0.25 * len(table):
        oddities.append(f"half sets are not two of like size ({facts['half sets']}): Refine3D will make new ones")


def _images(path: Path, table: pd.DataFrame, facts: dict[str, object], oddities: list[str]) -> None:
    """Whether the images that the rows name are there."""
    if "rlnImageName" not in table:
        oddities.append("no rlnImageName: the particles are not extracted")
        return
    parts = table["rlnImageName"].astype(str).str.extract(r"^(?:(\d+)@)?(.+)$")
    stacks = parts[1]
    facts["stacks"] = stacks.nunique()
    index = pd.to_numeric(parts[0], errors="coerce")
    if index.isna().any():
        oddities.append(f"{int(index.isna().sum())} image names have no index (000001@stack)")
    if (index == 0).any():
        oddities.append(f"row {int(np.flatnonzero(index == 0)[0]) + 1}: image index 0; the first image is 1")
    if table["rlnImageName"].duplicated().any():
        oddities.append(f"{int(table['rlnImageName'].duplicated().sum())} images are listed more than once")
    if not stacks.str.lower().str.endswith(".mrcs").all():
        oddities.append("stacks whose name does not end in .mrcs: RELION would refuse them")
    absent = [stack for stack in stacks.unique() if not Path(stack).is_file()]
    if absent:
        oddities.append(f"{len(absent)} of {stacks.nunique()} stacks are not there (seen from this folder), the first is {absent[0]}")
        return
    for stack, largest in index.groupby(stacks).max().items():
        held = inspect_header(str(stack)).shape[0]
        if largest > held:
            oddities.append(f"image {int(largest)} of {stack} is asked for; it holds {held}")


def bad_numbers(table: pd.DataFrame, path: Path) -> list[str]:
    """What is wrong with the columns that must hold numbers."""
    found = []
    for label in _NUMBERS:
        if label in table:
            try:
                numbers(table, label, path)
            except FileFormatError as error:
                found.append(error.problem)
    return found


def _present(table: pd.DataFrame, labels: tuple[str, ...]) -> str:
    have = [label for label in labels if label in table]
    return "none" if not have else "all" if len(have) == len(labels) else ", ".join(have)
