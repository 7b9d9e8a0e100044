"""Explanations of images, movies, maps and atomic models."""

from pathlib import Path

import gemmi
import numpy as np
import tifffile

from verglas.io.atoms import read_structure
from verglas.io.eer import is_eer, open_eer
from verglas.io.inspect import Explanation, file_size
from verglas.io.movie import open_movie
from verglas.io.mrc_header import MrcHeader, inspect_header
from verglas.io.picture import read_plane

_SAMPLE = 1 << 26  # values of a large file that are looked at


def mrc(path: Path) -> Explanation:
    """A map, stack, movie or micrograph in MRC."""
    header = inspect_header(path)
    nz, ny, nx = header.shape
    facts: dict[str, object] = {"size": f"{nx} x {ny}" + (f" x {nz}" if nz > 1 else "") + " (x, y, z)" * (nz > 1)}
    facts |= {"values": f"{header.dtype.name} (mode {header.mode})", "pixel size": f"{header.pixel_size:g} Å", "file": file_size(path)}
    if header.labels:
        facts["label"] = header.labels[0]
    values = np.memmap(path, header.dtype, "r", header.offset, header.shape)[: max(1, _SAMPLE // (ny * nx))].astype(np.float32)
    facts |= _statistics(values, "" if len(values) == nz else f" of the first {len(values)} sections")
    oddities = [*header.oddities, *_value_oddities(values)]
    if not 0 < header.pixel_size < 100:
        oddities.append(f"the pixel size {header.pixel_size:g} Å is none: jobs will ask for it")
    kind, use = _mrc_kind(path, header, oddities)
    return Explanation(kind, facts, oddities, use)


def _mrc_kind(path: Path, header: MrcHeader, oddities: list[str]) -> tuple[str, str]:
    nz, ny, nx = header.shape
    if nz == 1:
        return "micrograph or single image (MRC)", f"verglas job Import --kind micrographs --files '{path}'"
    if nz == ny == nx and path.suffix.lower() != ".mrcs":
        if header.axes != (1, 2, 3):
            oddities.append(f"axes are stored in the order {header.axes}; maps are turned when read")
        if nx % 2:
            oddities.append(f"the box of {nx} is odd; jobs work on even boxes")
        return "map (MRC)", f"verglas job Refine3D --reference {path}, or MaskCreate, PostProcess"
    if ny == nx and path.suffix.lower() == ".mrcs" and ny <= 1024:
        return "stack of images (MRC)", "particles, named 000001@" + f"{path} … in a STAR file; or class averages for AutoPick"
    return "movie or stack (MRC)", f"verglas job Import --kind movies --files '{path}'"


def tiff(path: Path) -> Explanation:
    """A TIFF or EER movie, or a single picture."""
    with tifffile.TiffFile(path) as file:
        first = file.pages.first
        if is_eer(file.pages[len(file.pages) - 1]):  # type: ignore[arg-type]
            return _eer(path, file)
        facts: dict[str, object] = {"values": str(first.dtype), "compression": tifffile.COMPRESSION(first.compression).name.lower()}
        if pixel_size := _tiff_pixel_size(first):
            facts["pixel size by the resolution tags"] = f"{pixel_size:.4g} Å"
    movie = open_movie(path)
    frame = movie.read(0)
    ny, nx = movie.shape
    facts = {"frames": movie.frames, "size": f"{nx} x {ny}", **facts, **_statistics(frame, " of the first frame"), "file": file_size(path)}
    if movie.frames == 1:
        return Explanation(
            "micrograph or gain (TIFF)", facts, _value_oddities(frame), f"verglas job Import --kind micrographs --files '{path}'"
        )
    return Explanation("movie (TIFF)", facts, _value_oddities(frame), f"verglas job Import --kind movies --files '{path}'")


def _tiff_pixel_size(page: tifffile.TiffPage) -> float:
    """Å a pixel by the resolution tags, or 0. Values of screens and printers (72 dpi and the like) do not count."""
    tag, unit = page.tags.get("XResolution"), page.tags.get("ResolutionUnit")
    if tag is None or unit is None or not tag.value[0]:
        return 0.0
    pixel_size = {2: 2.54e8, 3: 1e8}.get(int(unit.value), 0.0) * tag.value[1] / tag.value[0]
    return pixel_size if 0 < pixel_size < 100 else 0.0


def _eer(path: Path, file: tifffile.TiffFile) -> Explanation:
    movie = open_eer(path, file)
    electrons = len(movie.events(0)[0])
    pixels = movie.shape[0] * movie.shape[1]
    per_frame = electrons / pixels
    facts: dict[str, object] = {
        "internal frames": len(movie.frames),
        "size": f"{movie.shape[1]} x {movie.shape[0]}",
        "electrons in the first frame": f"{electrons} ({per_frame:.4f} a pixel)",
        "code": f"{movie.frames[0].codec.skip}-bit",
        "file": file_size(path),
    }
    oddities = [] if electrons else ["the first frame holds no electron"]
    divisors = [n for n in range(2, len(movie.frames)) if len(movie.frames) % n == 0]
    hint = f"; {', '.join(map(str, divisors[:6]))} leave no remainder" if divisors else ""
    return Explanation(
        "movie (EER)",
        facts,
        oddities,
        f"verglas job Import --kind movies --files '{path}'; MotionCorr asks for the frames per fraction{hint}",
    )


def png(path: Path) -> Explanation:
    """A grey picture."""
    image = read_plane(path)
    facts = {"size": f"{image.shape[1]} x {image.shape[0]}", **_statistics(image, ""), "rows": "row 0 is y = 0 (not flipped)"}
    oddities = [*_value_oddities(image), "a PNG has no pixel size and few grey values: use it only where there is nothing better"]
    return Explanation(
        "micrograph (PNG)", facts | {"file": file_size(path)}, oddities, f"verglas job Import --kind micrographs --files '{path}'"
    )


def atoms(path: Path) -> Explanation:
    """An atomic model."""
    structure = read_structure(path)
    model = structure[0]
    found = [(residue, atom) for chain in model for residue in chain for atom in residue]
    position = np.array([atom.pos.tolist() for _, atom in found])
    waters = sum(residue.is_water() for residue, _ in found)
    mass = sum(atom.element.weight * atom.occ for residue, atom in found if not residue.is_water())
    assemblies = [assembly.name for assembly in structure.assemblies]
    facts: dict[str, object] = {
        "atoms": len(found),
        "chains": len(model),
        "residues of polymers": sum(len(chain.get_polymer()) for chain in model),
        "mass": f"{mass / 1000:.1f} kDa",
        "extent": " x ".join(f"{length:.0f}" for length in np.ptp(position, axis=0)) + " Å",
        "mean B factor": f"{np.mean([atom.b_iso for _, atom in found]):.1f} Å²",
        "assemblies": ", ".join(assemblies) or "none defined",
    }
    oddities = [f"{waters} water atoms are left out"] if waters else []
    if len(structure) > 1:
        oddities.append(f"{len(structure)} models: the first is used")
    if not any(atom.element != gemmi.Element("C") for _, atom in found):
        oddities.append("all atoms are carbon: a trace, not a full model")
    return Explanation("atomic model (PDB or mmCIF)", facts, oddities, f"verglas simulate --model {path}; or the model of PostProcess")


def _statistics(values: np.ndarray, what: str) -> dict[str, object]:
    good = values[np.isfinite(values)]
    if not good.size:
        return {}
    return {
        f"mean, deviation{what}": f"{good.mean(dtype=np.float64):.4g}, {good.std(dtype=np.float64):.4g}",
        f"range{what}": f"{good.min():.4g} to {good.max():.4g}",
    }


def _value_oddities(values: np.ndarray) -> list[str]:
    bad = values.size - int(np.isfinite(values).sum())
    found = [f"{bad} of {values.size} values are NaN or infinite"] if bad else []
    planes = values if values.ndim == 3 else values[None]
    constant = [number for number, plane in enumerate(planes, start=1) if plane.min() == plane.max()]
    if constant and values.ndim == 3 and len(constant) < len(planes):
        found.append(f"{len(constant)} of {len(planes)} sections are constant (the first is number {constant[0]})")
    elif constant:
        found.append("all values are the same")
    return found
