"""Explanations of STAR files of every kind, of `.cs` files and of coordinates."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from verglas.io.coordinates import read_coordinates
from verglas.io.cryosparc import read_cs
from verglas.io.inspect import Explanation, file_size
from verglas.io.inspect_particles import bad_numbers, optics_facts, particles
from verglas.io.star import StarBlock, list_table, numbers, read_star


def star(path: Path) -> Explanation:
    """A STAR file, by the tables that it holds."""
    blocks = read_star(path)
    found = _by_tables(path, blocks)
    tables = {f"data_{name}": f"{len(b)} {'rows' if isinstance(b, pd.DataFrame) else 'values'}" for name, b in list(blocks.items())[:12]}
    if len(blocks) > 12:
        tables["more tables"] = str(len(blocks) - 12)
    found.facts = {**found.facts, **tables}
    if not any(len(block) for block in blocks.values()):
        found.oddities.append("all tables are empty")
    return found


def _by_tables(path: Path, blocks: Mapping[str, StarBlock]) -> Explanation:
    for name, explain in _KINDS.items():
        if name in blocks:
            return explain(path, blocks)
    labels = {str(label) for block in blocks.values() for label in block}
    if "rlnImageName" in labels:
        return particles(path, blocks)
    if "rlnMtfValue" in labels:
        return Explanation("MTF of a detector (STAR)", {}, [], f"verglas job PostProcess --fn-mtf {path}")
    if "rlnCoordinateX" in labels:
        return coordinates(path)
    return Explanation("STAR file of no kind that a job reads")


def _movies(path: Path, blocks: Mapping[str, StarBlock]) -> Explanation:
    return _recorded(path, blocks, "movies", "rlnMicrographMovieName", f"verglas job MotionCorr --movies {path}")


def _micrographs(path: Path, blocks: Mapping[str, StarBlock]) -> Explanation:
    has_ctf = "rlnDefocusU" in list_table(blocks, "micrographs", path)
    use = f"verglas job {'AutoPick' if has_ctf else 'CtfFind'} --micrographs {path}"
    return _recorded(path, blocks, "micrographs", "rlnMicrographName", use)


def _recorded(path: Path, blocks: Mapping[str, StarBlock], name: str, label: str, use: str) -> Explanation:
    table = list_table(blocks, name, path)
    oddities: list[str] = []
    facts: dict[str, object] = {name: len(table)}
    if "optics" in blocks:
        facts |= optics_facts(list_table(blocks, "optics", path), table, path, oddities)
    else:
        oddities.append("no optics table: import the files anew")
    if "rlnDefocusU" in table:
        values = numbers(table, "rlnDefocusU", path)
        facts["defocus"] = f"{values.min() / 1e4:.2f} to {values.max() / 1e4:.2f} µm" if len(values) else "none"
    if label in table:
        absent = [file for file in table[label].astype(str) if not Path(file).is_file()]
        if absent:
            oddities.append(f"{len(absent)} of {len(table)} files are not there (seen from this folder), the first is {absent[0]}")
        if table[label].duplicated().any():
            oddities.append(f"{int(table[label].duplicated().sum())} files are listed more than once")
    else:
        oddities.append(f"no {label}")
    return Explanation(f"{name} (STAR)", facts, oddities + bad_numbers(table, path), use if len(table) else "")


def _postprocess(path: Path, blocks: Mapping[str, StarBlock]) -> Explanation:
    general = blocks["general"]
    wanted = {"rlnFinalResolution": "resolution, Å", "rlnBfactorUsedForSharpening": "B factor, Å²", "rlnMaskName": "mask"}
    wanted |= {"rlnUnfilteredMapHalf1": "half map 1", "rlnUnfilteredMapHalf2": "half map 2", "rlnPixelSize": "pixel size, Å"}
    facts: dict[str, object] = {what: general[label] for label, what in wanted.items() if isinstance(general, dict) and label in general}
    return Explanation("post-processing result (STAR)", facts, [], "the FSC and its resolution")


def _general(path: Path, blocks: Mapping[str, StarBlock]) -> Explanation:
    if "fsc" in blocks:
        return _postprocess(path, blocks)
    if "global_shift" in blocks:
        return Explanation(
            "motion of one movie (STAR)", {"frames": len(blocks["global_shift"])}, [], "read by MotionCorr's plots and Polish"
        )
    return Explanation("STAR file of no kind that a job reads")


def _model(path: Path, blocks: Mapping[str, StarBlock]) -> Explanation:
    general = blocks["model_general"]
    wanted = {"rlnReferenceDimensionality": "dimensions of the references", "rlnNrClasses": "classes", "rlnOriginalImageSize": "box, px"}
    wanted |= {"rlnPixelSize": "pixel size, Å", "rlnCurrentResolution": "resolution, Å", "rlnAveragePmax": "mean largest posterior"}
    facts: dict[str, object] = {what: general[label] for label, what in wanted.items() if isinstance(general, dict) and label in general}
    oddities = []
    if "model_classes" in blocks:
        references = list_table(blocks, "model_classes", path).get("rlnReferenceImage", pd.Series(dtype=str)).astype(str)
        absent = [name for name in references.map(lambda name: re.sub(r"^\d+@", "", name)).unique() if not Path(name).is_file()]
        if absent:
            oddities.append(f"{len(absent)} reference files are not there (seen from this folder), the first is {absent[0]}")
    return Explanation("model of a refinement or classification (STAR)", facts, oddities, f"verglas job Select --model {path}")


def _pipeline(path: Path, blocks: Mapping[str, StarBlock]) -> Explanation:
    facts: dict[str, object] = {}
    if "pipeline_processes" in blocks:
        table = list_table(blocks, "pipeline_processes", path)
        facts["jobs"] = len(table)
    return Explanation("pipeline of a project (STAR)", facts, [], f"verglas stats {path.parent}")


def _settings(path: Path, blocks: Mapping[str, StarBlock]) -> Explanation:
    return Explanation("settings of a RELION job (STAR)", {"options": len(blocks["joboptions_values"])})


def _state(path: Path, blocks: Mapping[str, StarBlock]) -> Explanation:
    return Explanation("state of a running refinement (STAR)", {}, [], "read when the same job goes on")


_KINDS: dict[str, Callable[[Path, Mapping[str, StarBlock]], Explanation]] = {
    "movies": _movies,
    "micrographs": _micrographs,
    "particles": particles,
    "model_general": _model,
    "pipeline_general": _pipeline,
    "joboptions_values": _settings,
    "optimiser_general": _state,
    "sampling_general": _state,
    "general": _general,
}


def cryosparc(path: Path) -> Explanation:
    """A cryoSPARC particle file."""
    found = read_cs(path)
    table, optics = found.particles, found.optics
    facts: dict[str, object] = {"particles": len(table), "optics groups": len(optics)}
    for column, what, unit in (("voltage", "voltage", "kV"), ("pixel_size", "pixel size", "Å"), ("box_size", "box", "px")):
        if column in optics:
            facts[what] = ", ".join(f"{value:g}" for value in sorted(set(optics[column]))) + f" {unit}"
    facts["columns"] = ", ".join(map(str, table.columns))
    oddities = list(found.notes)
    if "micrograph_name" not in table:
        oddities.append("no micrographs: give the passthrough file too where re-extraction is meant")
    return Explanation(
        "particles (cryoSPARC)", facts | {"file": file_size(path)}, oddities, f"verglas job Import --kind particles --files {path}"
    )


def coordinates(path: Path) -> Explanation:
    """Coordinates of particles."""
    table = read_coordinates(path)
    facts: dict[str, object] = {"picks": len(table)}
    if "micrograph_name" in table:
        facts["micrographs"] = table["micrograph_name"].nunique()
    if len(table):
        for axis in ("x", "y"):
            facts[axis] = f"{table[f'coordinate_{axis}'].min():g} to {table[f'coordinate_{axis}'].max():g} px"
    return Explanation(
        "coordinates",
        facts,
        [] if len(table) else ["no picks"],
        f"verglas job Import --kind coordinates --files {path}" if len(table) else "",
    )
