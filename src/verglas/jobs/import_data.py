"""Import: movies, micrographs, coordinates, particles, a reference, a mask, a gain reference, from whatever program they come."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from verglas.errors import InputError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobParams, JobType, Metrics, NodeType, OutputSpec, param

_OUTPUTS = {
    "movies": (NodeType.MOVIES, "movies.star"),
    "micrographs": (NodeType.MICROGRAPHS, "micrographs.star"),
    "coordinates": (NodeType.COORDINATES, "coords_suffix_import.star"),
    "particles": (NodeType.PARTICLES, "particles.star"),
    "reference": (NodeType.MAP, "reference.mrc"),
    "mask": (NodeType.MASK, "mask.mrc"),
    "gain": (NodeType.MICROGRAPHS, "gain.mrc"),
}


class Params(JobParams):
    """Parameters of Import."""

    kind: Literal["movies", "micrographs", "coordinates", "particles", "reference", "mask", "gain"] = param(
        "movies", "What the files are", label="Node type:"
    )
    files: str = param(
        ...,
        "A file, a pattern in quotes such as 'movies/*.tif', several parted by ; or a STAR file that lists them",
        label="Raw input files:",
        flag="--i",
        min_length=1,
    )
    pixel_size: float = param(
        0.0,
        "Pixel size of movies or micrographs; of maps, where their header is wrong",
        label="Pixel size (Angstrom):",
        flag="--angpix",
        unit="Å",
        ge=0,
    )
    voltage: float = param(300.0, "Acceleration voltage", label="Voltage (kV):", flag="--kV", unit="kV", gt=0)
    spherical_aberration: float = param(2.7, "Spherical aberration", label="Spherical aberration (mm):", flag="--Cs", unit="mm", ge=0)
    amplitude_contrast: float = param(0.1, "Fraction of amplitude contrast", label="Amplitude contrast:", flag="--Q0", ge=0, lt=1)
    beam_tilt_x: float = param(0.0, "Beam tilt in x", label="Beamtilt in X (mrad):", flag="--beamtilt_x", unit="mrad")
    beam_tilt_y: float = param(0.0, "Beam tilt in y", label="Beamtilt in Y (mrad):", flag="--beamtilt_y", unit="mrad")
    optics_group_name: str = param(
        "opticsGroup1", "Name of the optics group", label="Optics group name:", flag="--optics_group_name", min_length=1
    )
    mtf_file: Path | None = param(None, "STAR file with the detector's MTF", label="MTF of the detector:", flag="--optics_group_mtf")
    new_pixel_size: float = param(0.0, "Reference, mask: bring to this pixel size; 0: leave it", unit="Å", ge=0)
    new_box: int = param(0, "Reference, mask: bring to this box; 0: the same field. cryoSPARC: box where the file does not say it", ge=0)
    flip_hand: bool = param(False, "Reference, mask: mirror it", flag="--invert_hand")
    gain_rotation: int = param(0, "Gain: quarter turns clockwise", label="Gain rotation:", flag="--gain_rot", ge=0, le=3)
    gain_flip: int = param(0, "Gain: then 1 reverses rows, 2 columns", label="Gain flip:", flag="--gain_flip", ge=0, le=2)
    gain_reciprocal: bool = param(False, "Gain: the file divides (EER: all but .gain files do); what is written multiplies")
    passthrough: str | None = param(None, "cryoSPARC: passthrough files, joined by uid; as for files")
    flip_y: bool = param(False, "cryoSPARC: count y of the coordinates from the other end")


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """One table or map, by kind."""
    node, path = _OUTPUTS[params.kind]
    return (OutputSpec(params.kind, node, path),)


def validate(job: Job) -> None:
    """The files are there, and what later jobs must know is given."""
    from verglas.jobs.import_files import find_files

    params = job.params
    files = find_files(params.files)
    listed = len(files) == 1 and files[0].suffix.lower() == ".star"
    if params.kind in ("movies", "micrographs") and params.pixel_size <= 0 and not listed:
        raise InputError("--pixel-size", "not given", f"Give the pixel size of the {params.kind} in Å")
    if params.mtf_file is not None:
        from verglas.io.mtf import read_mtf

        read_mtf(params.mtf_file)
    if params.kind == "coordinates" and job.inputs["micrographs"] is None:
        raise InputError("--micrographs", "not given", "Coordinates are imported for the micrographs of a STAR file")


def run(job: Job) -> Items:
    """Check every file, write what can be used."""
    from verglas.jobs import import_kinds as kinds

    importers = {
        "coordinates": kinds.import_coordinates,
        "particles": kinds.import_particles,
        "reference": kinds.import_map,
        "mask": kinds.import_map,
        "gain": kinds.import_gain,
    }
    items = importers.get(job.params.kind, kinds.import_movies)(job)
    for size, example in job.record.get("pixel_sizes_of_headers", {}).items():
        job.warn(f"{example} says {size} Å a pixel, {job.params.pixel_size:g} Å was given and is taken")
    return items


def measure(out: Path, params: Params) -> Metrics:
    """Counts, and what the microscope or the map is said to be."""
    if params.kind in ("movies", "micrographs"):
        from verglas.particles import read_micrographs

        table = read_micrographs(out / _OUTPUTS[params.kind][1])
        values = {name: float(table.optics.value(name)[0]) for name in ("voltage", "spherical_aberration", "amplitude_contrast")}
        return {"count": len(table), "pixel_size": float(table.optics.value("movie_pixel_size")[0]), **values}
    if params.kind == "particles":
        from verglas.particles import read_particles

        particles = read_particles(out / "particles.star")
        found = float(particles.optics.value("pixel_size")[0]) if "pixel_size" in particles.optics.table else None
        return {"count": len(particles), "pixel_size": found, "optics_groups": len(particles.optics)}
    if params.kind == "coordinates":
        return _measure_coordinates(out)
    from verglas.io.mrc import read_header

    header = read_header(out / _OUTPUTS[params.kind][1])
    return {"count": 1, "pixel_size": round(float(header.pixel_size), 6), "box_size": header.shape[-1]}


def _measure_coordinates(out: Path) -> Metrics:
    from verglas.io.coordinates import read_coordinates

    files = [file for file in out.rglob("*_import.star") if file.name != "coords_suffix_import.star"]
    return {"count": sum(len(read_coordinates(file)) for file in files), "micrographs": len(files)}


def checks(params: Params) -> tuple[Check, ...]:
    """Something was imported, and its numbers are those of an electron microscope."""
    found = [Check("count", 1, None, "an empty import ends every later job")]
    if params.kind in ("movies", "micrographs"):
        found += [
            Check("pixel_size", 0.1, 20, "magnifications of cryo-EM; EMPIAR's entries lie within"),
            Check("voltage", 60, 1250, "microscopes that exist"),
            Check("spherical_aberration", 0, 10, "objective lenses that exist; 0 with a corrector"),
            Check("amplitude_contrast", 0, 0.5, "0.07 to 0.1 in ice, up to 0.3 in stain"),
        ]
    elif params.kind == "particles":
        found.append(Check("pixel_size", 0.1, 50, "magnifications of cryo-EM, binned"))
    elif params.kind == "reference" and params.new_pixel_size:
        wanted = params.new_pixel_size
        found.append(Check("pixel_size", wanted - 1e-4, wanted + 1e-4, "the pixel size asked for (CASES.md, 18)"))
    return tuple(found)


JOB = JobType(
    name="Import",
    relion_number=0,
    summary="Bring in movies, micrographs, coordinates, particles, a reference, a mask or a gain reference",
    examples="""
    verglas job Import --files 'movies/*.tif' --pixel-size 0.885 --voltage 200 --spherical-aberration 2.7
    verglas job Import --kind micrographs --files 'mics/*.png' --pixel-size 1.5
    verglas job Import --kind coordinates --files 'picks/*.box' --micrographs Import/job001/micrographs.star
    verglas job Import --kind particles --files J42/particles_exported.cs --passthrough J42/passthrough_particles.cs
    verglas job Import --kind reference --files map.mrc --new-pixel-size 2.24 --new-box 128
    """,
    params=Params,
    inputs=(
        InputSpec(
            "micrographs", NodeType.MICROGRAPHS, "Coordinates, cryoSPARC particles: the micrographs that they are of", required=False
        ),
    ),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    describe=lambda metrics: f"{metrics['count']} imported",
    light=True,
)
