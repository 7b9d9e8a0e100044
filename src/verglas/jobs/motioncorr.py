"""MotionCorr: movies become micrographs, free of motion, weighted by dose; each movie's motion beside its micrograph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from verglas.errors import InputError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobParams, JobType, Metrics, NodeType, OutputSpec, param

if TYPE_CHECKING:
    from verglas.jobs.motioncorr_movie import Finished

_MICROGRAPHS = "corrected_micrographs.star"
_SHOWN = 12


class Params(JobParams):
    """Parameters of MotionCorr."""

    first_frame_sum: int = param(1, "First frame to use, from 1", label="First frame for corrected sum:", flag="--first_frame_sum", ge=1)
    last_frame_sum: int = param(-1, "Last frame to use; -1: all", label="Last frame for corrected sum:", flag="--last_frame_sum", ge=-1)
    dose_per_frame: float = param(1.0, "Dose a frame", label="Dose per frame (e/A2):", flag="--dose_per_frame", unit="e⁻/Å²", gt=0)
    pre_exposure: float = param(0.0, "Dose before the first frame", label="Pre-exposure (e/A2):", flag="--preexposure", unit="e⁻/Å²", ge=0)
    eer_grouping: int = param(
        32, "EER movies: internal frames *per fraction* (not the number of fractions)", label="EER fractionation:", flag="--eer_grouping",
        unit="frames", ge=1,
    )  # fmt: skip
    eer_upsampling: Literal[1, 2] = param(1, "EER movies: 1 for 4K, 2 for 8K; the movie's pixel size is that of 1", flag="--eer_upsampling")
    float16: bool = param(False, "Write half precision (RELION 3.1 cannot read it)", label="Write output in float16?", flag="--float16")
    dose_weighting: bool = param(
        True, "Weight frequencies of each frame by radiation damage", label="Do dose-weighting?", flag="--dose_weighting"
    )
    save_noDW: bool = param(
        False, "Write the sum without dose weights as well", label="Save non-dose weighted as well?", flag="--save_noDW"
    )
    grouping_for_ps: int = param(
        -1, "Frames summed for each power spectrum that CtfFind will use; -1: as many as make 4 e⁻/Å²; 0: none",
        label="Sum power spectra every e/A2:", flag="--grouping_for_ps", unit="frames", ge=-1,
    )  # fmt: skip
    ps_size: int = param(512, "Size of that power spectrum", flag="--ps_size", unit="px", ge=64)
    bfactor: float = param(
        150.0, "Damping of high frequencies in the first alignments; later ones weigh frequencies by the movie's own signal",
        label="Bfactor:", flag="--bfactor", unit="px²", gt=0,
    )  # fmt: skip
    patch_x: int = param(5, "Patches along x; 1 by 1: only whole frames are moved", label="Number of patches X:", flag="--patch_x", ge=1)
    patch_y: int = param(5, "Patches along y", label="Number of patches Y:", flag="--patch_y", ge=1)
    group_frames: int = param(1, "Frames averaged for the patches, of low dose", label="Group frames:", flag="--group_frames", ge=1)
    bin_factor: float = param(1.0, "Binning, need not be whole", label="Binning factor:", flag="--bin_factor", ge=1)
    gain_rot: int = param(0, "Quarter turns of the gain, clockwise", label="Gain rotation:", flag="--gain_rot", ge=0, le=3)
    gain_flip: int = param(0, "Then 1 reverses its rows, 2 its columns", label="Gain flip:", flag="--gain_flip", ge=0, le=2)
    gain_reciprocal: bool | None = param(
        None, "The gain divides the frames; no: it multiplies them; none: it multiplies, but with EER movies all but a .gain file divides"
    )
    skip_defect: bool = param(False, "Do not look for hot pixels", flag="--skip_defect")
    max_iter: int = param(10, "Most iterations of an alignment", flag="--max_iter", ge=1)
    dose_motionstats_cutoff: float = param(4.0, "Dose that parts early from late motion", flag="--dose_motionstats_cutoff", unit="e⁻/Å²")


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """The table of micrographs; they lie beside, under their movies' paths."""
    return (OutputSpec("micrographs", NodeType.MICROGRAPHS, _MICROGRAPHS),)


def validate(job: Job) -> None:
    """Frames in order; optics that can be used; a gain that fits the movies that can be read, in size and in what it evens out."""
    from verglas.jobs.motioncorr_gain import check_gain_by_movies
    from verglas.jobs.motioncorr_movie import check_gain
    from verglas.particles import read_micrographs

    params = job.params
    if 0 < params.last_frame_sum < params.first_frame_sum:
        raise InputError("--last-frame-sum", f"{params.last_frame_sum} is before the first, {params.first_frame_sum}", "Give -1 for all")
    if params.ps_size % 2:
        raise InputError("--ps-size", f"{params.ps_size} px", "Give an even number")
    movies = read_micrographs(job.inputs["movies"])
    if movies.kind != "movies":
        raise InputError(job.inputs["movies"], "lists micrographs, not movies", "Give the movies' STAR file of Import")
    for column in ("movie_pixel_size", "voltage"):
        if not (movies.optics.value(column) > 0).all():
            raise InputError("optics table", f"{column} is {movies.optics.value(column).tolist()}", "Import the movies with it")
    check_gain(job, movies)
    check_gain_by_movies(job, movies)


def run(job: Job) -> Items:
    """Movie by movie, several at once on several cores; what is finished already is kept; one table in the end."""
    from verglas.compute.device import choose_device, describe_device
    from verglas.jobs.motioncorr_movie import correct_all
    from verglas.particles import read_micrographs

    device = choose_device(job.params.device)
    job.record["device"] = describe_device(device)
    with job.phase("read"):
        movies = read_micrographs(job.inputs["movies"])
    items = Items("movies", total=len(movies))
    rows: list[Finished | None] = [None] * len(movies)
    with job.phase("compute"), job.progress("movies", len(movies)) as bar:
        for index, result in correct_all(job, movies, device):
            bar.advance()
            if isinstance(result, Exception):
                items.fail(movies.names()[index], getattr(result, "reason", str(result)))
                continue
            rows[index] = result
            items.done += 1
            for note in result.notes:
                job.say(f"{movies.names()[index]}: {note}")
    done = [row for row in rows if row is not None]
    if not done:
        first = items.problems[0]
        raise InputError(job.inputs["movies"], f"none of {len(movies)} movies could be processed", f"{first.item}: {first.reason}")
    items.notes["short_movies"] = [row.movie_name for row in done if row.short]
    with job.phase("write"):
        _write_table(job, movies, rows)
        _draw(job)
    return items


def _write_table(job: Job, movies: Any, rows: list[Finished | None]) -> None:
    import numpy as np

    from verglas.particles import write_micrographs
    from verglas.particles.tables import Micrographs

    kept = movies.subset(np.array([row is not None for row in rows]))
    done = [row for row in rows if row is not None]
    columns: dict[str, list[Any]] = {}
    if all(row.plain_name for row in done):
        columns["micrograph_name_no_dose_weighting"] = [row.plain_name for row in done]
    if all(row.spectrum_name for row in done):
        columns["power_spectrum"] = [row.spectrum_name for row in done]
    columns |= {name: [getattr(row, name) for row in done] for name in ("micrograph_name", "motion_file")}
    columns["optics_group"] = kept.table["optics_group"].tolist()
    columns |= {name: [getattr(row, name) for row in done] for name in ("motion_total", "motion_early", "motion_late")}
    sizes = np.array(movies.optics.value("movie_pixel_size")) * job.params.bin_factor
    for group, size in {group: row.pixel_size for group, row in zip(columns["optics_group"], done)}.items():
        sizes[group - 1] = size
    import pandas as pd

    write_micrographs(job.out / _MICROGRAPHS, Micrographs(movies.optics.with_columns(micrograph_pixel_size=sizes), pd.DataFrame(columns)))


def _draw(job: Job) -> None:
    import torch

    from verglas.micrograph.motion_files import read_motion
    from verglas.particles import read_micrographs
    from verglas.pictures.motion import draw_motion, draw_motion_summary

    table = read_micrographs(job.out / _MICROGRAPHS)
    draw_motion_summary(job.out / "picture_motion_all.png", table.column("motion_total"), table.column("motion_early"))
    shown = [read_motion(name) for name in table.column("motion_file")[:_SHOWN]]
    places, local = [], []
    for motion in shown:
        y, x = torch.meshgrid(torch.linspace(0.1, 0.9, 5), torch.linspace(0.1, 0.9, 5), indexing="ij")
        points = torch.stack([x * motion.shape[1], y * motion.shape[0]], dim=-1).reshape(-1, 2)
        places.append(points.numpy() if motion.model else points[:0].numpy())
        local.append((motion.shifts_at(points) - motion.global_shifts).numpy()[: len(places[-1])])
    draw_motion(
        job.out / "picture_motion.png",
        [Path(name).stem for name in table.names()[:_SHOWN]],
        [motion.shape for motion in shown],
        [motion.global_shifts.numpy() for motion in shown],
        places,
        local,
        table.optics_value("movie_pixel_size")[:_SHOWN].tolist(),
    )


def measure(out: Path, params: Params) -> Metrics:
    """Motion of the movies, and what their micrographs look like."""
    import numpy as np

    from verglas.io.mrc import read_image
    from verglas.micrograph.motion_files import read_motion
    from verglas.particles import read_micrographs

    table = read_micrographs(out / _MICROGRAPHS)
    motions = [read_motion(name) for name in table.column("motion_file")]
    pixel = table.optics_value("movie_pixel_size")
    steps = [motion.global_shifts.diff(dim=0).norm(dim=-1) * size for motion, size in zip(motions, pixel)]
    jumps = [float(step.max()) for step in steps if len(step)]  # a movie of one frame takes no step
    local = []
    for motion, size in zip(motions, pixel):
        corners = (motion.shifts_at(_field(motion.shape)) - motion.global_shifts) * size
        local.append(float(corners.norm(dim=-1).max()))
    deviations = [float(read_image(name).std()) for name in table.names()[:_SHOWN]]
    total = table.column("motion_total").astype(float)
    return {
        "micrographs": len(table),
        "items_out": len(table),
        "motion_total_median": float(np.median(total)),
        "motion_total_max": float(total.max()),
        "largest_step": max(jumps, default=0.0),
        "local_motion_max": max(local),
        "with_local_model": sum(bool(motion.model) for motion in motions),
        "least_deviation": min(deviations),
    }


def _field(shape: tuple[int, int]) -> Any:
    import torch

    y, x = torch.meshgrid(torch.linspace(0, shape[0], 7), torch.linspace(0, shape[1], 7), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def checks(params: Params) -> tuple[Check, ...]:
    """Motion that a microscope can show, and local models that are not wild."""
    return (
        Check("micrographs", 1, None, "something must come out"),
        Check("motion_total_max", 0, 500, "stage drift is some Å to some tens of Å; hundreds are a lost alignment (Zheng et al. 2017)"),
        Check("largest_step", 0, 60, "the reach of the alignment, Å between frames"),
        Check(
            "local_motion_max", 0, 30, "beam-induced local motion is some Å (Brilot et al. 2012); a wild model showed 52 Å (RELION.md 10)"
        ),
        Check("least_deviation", 1e-6, None, "a micrograph is not constant"),
    )


def clean(out: Path) -> Iterator[Path]:
    """Power spectra, once CtfFind has used them."""
    yield from sorted(out.rglob("*_PS.mrc"))


JOB = JobType(
    name="MotionCorr",
    relion_number=1,
    summary="Correct the specimen's motion in movies; weight by dose; write micrographs",
    examples="""
    verglas job MotionCorr --movies Import/job001/movies.star --gain gain.mrc --dose-per-frame 2 --patch-x 3 --patch-y 3
    verglas job MotionCorr --movies Import/job001/movies.star --dose-per-frame 1.3 --bin-factor 2 --save-noDW
    """,
    params=Params,
    inputs=(
        InputSpec("movies", NodeType.MOVIES, "STAR file of the movies", flag="--i"),
        InputSpec(
            "gain", NodeType.MICROGRAPHS, "Gain reference (MRC, TIFF or .gain); it multiplies the frames", required=False, flag="--gainref"
        ),
        InputSpec(
            "defects", NodeType.MICROGRAPHS, "Defects: a map (1 is bad) or lines of x y width height", required=False, flag="--defect_file"
        ),
    ),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    clean=clean,
    describe=lambda metrics: f"{metrics['micrographs']} micrographs, moved {metrics['motion_total_median']:.1f} Å (median)",
)
