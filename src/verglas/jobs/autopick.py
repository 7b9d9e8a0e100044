"""AutoPick: particles found by their shape: blobs, class averages, or projections of a map.

Every micrograph leaves all its peaks under `candidates/`; where noise ends and particles begin is decided once, from the peaks of all
micrographs together, and then the coordinate files are written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.errors import InputError, ItemError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobParams, JobType, Metrics, NodeType, OutputSpec, param

if TYPE_CHECKING:
    from verglas.jobs.autopick_peaks import Picker
    from verglas.micrograph.pick_candidates import Candidates
    from verglas.micrograph.pick_threshold import Cut

COORDINATES, SUFFIX = "coords_suffix_autopick.star", "_autopick.star"
_SUMMARY, _DETAILS, _CANDIDATES = "summary.star", "autopick.json", "candidates"
_PICTURES = 3
_NOISE = ("verglasNoiseDeviation", "verglasNoiseMean")


class Params(JobParams):
    """Parameters of AutoPick. Without references blobs are picked, by diameters log_diam_min to log_diam_max."""

    log_diam_min: float = param(
        0.0, "Smallest diameter of a blob", label="Min. diameter for LoG filter (A)", flag="--LoG_diam_min", unit="Å", ge=0
    )
    log_diam_max: float = param(
        0.0, "Largest diameter of a blob", label="Max. diameter for LoG filter (A)", flag="--LoG_diam_max", unit="Å", ge=0
    )
    log_adjust_threshold: float = param(
        0.0,
        "Move the automatic threshold by this many deviations of the noise: fewer picks where positive",
        label="Adjust default threshold (stddev):",
        flag="--LoG_adjust_threshold",
    )
    log_refine: bool = param(True, "Pick blobs with their own mean radial profile, found by the Laplacian of Gaussian")
    particle_diameter: float = param(
        0.0, "Diameter of the circle that references are compared in", label="Mask diameter (A)", flag="--particle_diameter", unit="Å", ge=0
    )
    lowpass: float = param(20.0, "Resolution to look at", label="Lowpass filter references (A)", flag="--lowpass", unit="Å", gt=0)
    psi_sampling: float = param(
        5.0, "Step of the in-plane angle of references", label="In-plane angular sampling (deg)", flag="--ang", unit="°", gt=0, le=360
    )
    healpix_order: int = param(
        1, "Directions of a 3D reference: 0 is 60°, 1 is 30°, 2 is 15°", label="3D angular sampling:", flag="--healpix_order", ge=0, le=4
    )
    symmetry: str = param("C1", "Symmetry of a 3D reference", label="Symmetry:", flag="--sym")
    use_ctf: bool = param(
        True,
        "Multiply references by the micrograph's CTF, where it is known",
        label="Are References CTF corrected?",
        flag="--ctf",
    )
    invert: bool = param(True, "Particles are dark in the micrographs", label="References have inverted contrast?", flag="--invert")
    threshold: float | None = param(
        None,
        "Lowest correlation (blobs without log_refine: deviations) of a pick; none: where the peaks of all micrographs part in two",
        label="Picking threshold:",
        flag="--threshold",
    )
    min_distance: float = param(
        0.0,
        "Least distance of two picks; 0: half of particle_diameter, or 0.8 of log_diam_min",
        label="Minimum inter-particle distance (A):",
        flag="--min_distance",
        unit="Å",
        ge=0,
    )
    max_stddev_noise: float = param(
        -1.0,
        "Largest deviation around a pick, over the micrograph's usual one; -1: no limit",
        label="Maximum stddev noise:",
        flag="--max_stddev_noise",
    )
    min_avg_noise: float = param(
        -999.0, "Least mean around a pick, in deviations of the micrograph", label="Minimum avg noise:", flag="--min_avg_noise"
    )
    background_limit: float = param(
        12.0, "Mean density, in deviations, beyond which a place is ice, carbon or a clump and not picked from; 0: pick anywhere", ge=0
    )
    skip_side: float = param(
        0.0,
        "Pixels to keep from the edge besides half a particle; negative: picks may be cut by the edge",
        flag="--skip_side",
        unit="px",
    )


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """The coordinates: one file a micrograph beside the one that names their micrographs."""
    return (OutputSpec("coordinates", NodeType.COORDINATES, COORDINATES),)


def validate(job: Job) -> None:
    """Either references and their diameter, or the diameters of blobs; references must be readable."""
    params, inputs = job.params, job.inputs
    if inputs["references"] is not None and inputs["reference"] is not None:
        raise InputError("--reference", "a map and 2D references are given", "Give one of them")
    if inputs["references"] is None and inputs["reference"] is None:
        if params.log_diam_min <= 0 or params.log_diam_max < params.log_diam_min:
            found = f"from {params.log_diam_min:g} to {params.log_diam_max:g} Å"
            raise InputError("--log-diam-min", f"blobs {found}", "Give --log-diam-min and --log-diam-max, or references")
        return
    if params.particle_diameter <= 0:
        raise InputError("--particle-diameter", "not given", "References are compared in a circle of this diameter, in Å")
    if inputs["reference"] is not None:
        from verglas.volume.symmetry import group_name

        group_name(params.symmetry)


def run(job: Job) -> Items:
    """Find the peaks of every micrograph, then the threshold, then write the coordinates."""
    from verglas.compute.device import choose_device, describe_device, use_threads
    from verglas.io.names import output_names
    from verglas.jobs.autopick_peaks import Picker
    from verglas.particles import read_micrographs

    use_threads(job.params.threads)
    device = choose_device(job.params.device)
    job.record["device"] = describe_device(device)
    with job.phase("read"):
        micrographs = read_micrographs(job.inputs["micrographs"])
    names = micrographs.names()
    peaks = output_names(names, job.out / _CANDIDATES, ".star")
    items = Items("micrographs", total=len(names))
    picker = Picker(job, micrographs, device)
    job.record["references_see_ctf"] = picker.sees_ctf
    with job.progress("micrographs", len(names)) as bar:
        for row, (name, file) in enumerate(zip(names, peaks)):
            job.check_stop()
            try:
                if _readable(file) is None:
                    _write_peaks(file, picker.peaks(row))
            except ItemError as error:
                items.fail(name, error.reason)
            bar.advance()
    found = {name: _readable(file) for name, file in zip(names, peaks) if file.exists()}
    items.done = len(found)
    if not found:
        return items
    picks = _write_picks(job, names, found, picker.spacing)
    empty = [name for name, count in picks.items() if count == 0]
    items.notes |= {"picks": sum(picks.values()), "micrographs_without_picks": empty}
    for name in empty:
        job.say(f"{name}: nothing picked")
    with job.phase("write"):
        _draw(job, picker, names, picks)
    return items


def _write_peaks(file: Path, found: Candidates) -> None:
    import pandas as pd

    from verglas.io.coordinates import write_coordinates

    x, y = found.xy.T
    columns = {"coordinate_x": x, "coordinate_y": y, "pick_score": found.score, "class_number": found.class_number, "psi": found.psi}
    write_coordinates(file, pd.DataFrame(columns | dict(zip(_NOISE, (found.noise_deviation, found.noise_mean)))))


def _readable(file: Path) -> Any:
    """The peaks of a finished micrograph, None where the file is missing or damaged."""
    from verglas.errors import FileFormatError
    from verglas.io.coordinates import read_coordinates

    try:
        table = read_coordinates(file) if file.exists() else None
        return table if table is None else table.astype({"class_number": "int64"})
    except (FileFormatError, KeyError):
        return None


def _write_picks(job: Job, names: list[str], found: dict[str, Any], spacing: float) -> dict[str, int]:
    """Coordinate files, summary and details; returns the number of picks of each micrograph."""
    import numpy as np
    import pandas as pd

    from verglas.io.atomic import write_json, write_text
    from verglas.io.coordinates import write_coordinates
    from verglas.io.names import output_names
    from verglas.io.star import write_star
    from verglas.micrograph.pick_threshold import find_cut
    from verglas.pictures.picks import draw_scores

    params = job.params
    found = {name: table[_quiet(table, params)] for name, table in found.items()}
    scores = np.concatenate([table["pick_score"].to_numpy(np.float64) for table in found.values()])
    cut = find_cut(scores)
    threshold = _threshold(params, cut)
    counts, means = {}, []
    for name, file in zip(names, output_names(names, job.out, SUFFIX)):
        if name in found:
            picked = found[name][found[name]["pick_score"] > threshold].drop(columns=list(_NOISE)).reset_index(drop=True)
            counts[name] = len(picked)
            means.append(picked["pick_score"].mean() if len(picked) else 0.0)
            if not _same(_readable(file), picked):
                write_coordinates(file, picked)
    table = {"rlnMicrographName": list(counts), "rlnGroupNrParticles": list(counts.values()), "rlnAutopickFigureOfMerit": means}
    write_star(job.out / _SUMMARY, {"": pd.DataFrame(table)})
    details = {"threshold": threshold, "automatic": params.threshold is None, "separation": cut.separation, "peaks": len(scores)}
    write_json(job.out / _DETAILS, details | {"spacing": spacing, "micrographs": str(job.inputs["micrographs"])})
    draw_scores(job.out / "picture_scores.png", scores, threshold)
    write_text(job.out / COORDINATES, f"{job.inputs['micrographs']}\n")
    job.say(f"threshold {threshold:.4g}: {sum(counts.values())} picks of {len(scores)} peaks in {len(counts)} micrographs")
    if params.threshold is None and cut.separation < 2:
        apart = f"Ashman's D {cut.separation:.1f}"
        job.warn(f"peaks of noise and of particles hardly part ({apart}); look at the pictures, or give --threshold")
    return counts


def _same(old: Any, new: Any) -> bool:
    """Whether a coordinate file holds these picks already: then it keeps its time."""
    return old is not None and old.shape == new.shape and bool((old.to_numpy(float) == new.to_numpy(float)).all())


def _quiet(table: Any, params: Params) -> Any:
    """Mask of the peaks whose surroundings pass max_stddev_noise and min_avg_noise."""
    deviation, mean = (table[label].astype(float) for label in _NOISE)
    quiet = mean >= params.min_avg_noise
    return quiet & (deviation <= params.max_stddev_noise) if params.max_stddev_noise > 0 else quiet


def _threshold(params: Params, cut: Cut) -> float:
    if params.threshold is not None:
        return float(params.threshold)
    return cut.threshold + params.log_adjust_threshold * cut.noise[1]


def _draw(job: Job, picker: Picker, names: list[str], picks: dict[str, int]) -> None:
    """A few micrographs with their picks: the fullest, a middling one, the emptiest."""
    import numpy as np

    from verglas.io.coordinates import read_coordinates
    from verglas.io.names import output_names
    from verglas.pictures.picks import draw_picks

    files = dict(zip(names, output_names(names, job.out, SUFFIX)))
    order = sorted(picks, key=lambda name: -picks[name])
    chosen = [order[i] for i in sorted({round(share * (len(order) - 1)) for share in np.linspace(0, 1, _PICTURES)})]
    for number, name in enumerate(chosen, start=1):
        row = names.index(name)
        xy = read_coordinates(files[name])[["coordinate_x", "coordinate_y"]].to_numpy(float)
        title = f"{name}: {len(xy)} picks"
        pixel_size = float(picker.pixel_sizes[row])
        draw_picks(job.out / f"picture_picks_{number}.png", picker.image(row).numpy(), pixel_size, xy, picker.diameter, title=title)


def measure(out: Path, params: Params) -> Metrics:
    """Counts and mean score from the summary; the threshold and how well it parts; the share of the area that the picks cover."""
    import json

    import numpy as np

    from verglas.io.star import list_table, numbers, read_star

    table = list_table(read_star(out / _SUMMARY), "", out / _SUMMARY)
    counts = numbers(table, "rlnGroupNrParticles", out / _SUMMARY)
    details = json.loads((out / _DETAILS).read_text())
    found: Metrics = {
        "picks": int(counts.sum()),
        "micrographs": len(counts),
        "micrographs_without_picks": int((counts == 0).sum()),
        "picks_per_micrograph": float(np.median(counts)) if len(counts) else 0.0,
        "share_with_picks": float((counts > 0).mean()) if len(counts) else 0.0,
        "threshold": details["threshold"],
    }
    if details["automatic"]:
        found["separation"] = details["separation"]
    return found


def checks(params: Params) -> tuple[Check, ...]:
    """Something was picked, on most micrographs."""
    return (
        Check("picks", 1, None, "nothing picked ends every later job (CASES.md, 16)"),
        Check("share_with_picks", 0.5, 1, "when most micrographs are empty, diameter, contrast or threshold are wrong"),
    )


def clean(out: Path) -> Iterator[Path]:
    """All peaks, once the coordinates are written."""
    return (out / _CANDIDATES).rglob("*.star")


JOB = JobType(
    name="AutoPick",
    relion_number=4,
    summary="Find particles in micrographs: blobs, 2D references, or projections of a map",
    examples="""
    verglas job AutoPick --micrographs CtfFind/job003/micrographs_ctf.star --log-diam-min 90 --log-diam-max 120
    verglas job AutoPick --micrographs CtfFind/job003/micrographs_ctf.star \\
        --references Select/job009/class_averages.mrcs --particle-diameter 130
    verglas job AutoPick --micrographs CtfFind/job003/micrographs_ctf.star --reference Import/job010/reference.mrc \\
        --symmetry D2 --healpix-order 1 --particle-diameter 130
    """,
    params=Params,
    inputs=(
        InputSpec("micrographs", NodeType.MICROGRAPHS, "Micrographs to pick from", flag="--i"),
        InputSpec("references", NodeType.REFERENCES_2D, "Stack of 2D references, bright (class averages)", required=False, flag="--ref"),
        InputSpec("reference", NodeType.MAP, "A map, projected for references", required=False, flag="--ref"),
    ),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    clean=clean,
    describe=lambda metrics: f"{metrics['picks']} picks, {metrics['picks_per_micrograph']:g} a micrograph",
)
