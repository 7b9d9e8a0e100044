"""Refine3D: automatic refinement of one structure in two independent halves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobType, Metrics, NodeType, OutputSpec, param
from verglas.jobs.refinement import (
    EngineParams,
    Prepared,
    check_particles,
    check_symmetry,
    clean,
    engine_settings,
    iterate,
    prepare,
    read_mask,
    read_reference,
)

if TYPE_CHECKING:
    import numpy as np

    from verglas.refine.output import Output
    from verglas.refine.state import State

_LEAST_PARTICLES = 20


class Params(EngineParams):
    """Parameters of Refine3D."""

    symmetry: str = param("C1", "Point group in RELION's setting", label="Symmetry:", flag="--sym")
    ini_high: float = param(
        60.0, "Low-pass of the reference at the start", label="Initial low-pass filter (A):", flag="--ini_high", unit="Å", gt=0
    )
    absolute_greyscale: bool = param(
        False, "The reference was made from these particles' grey values", label="Ref. map is on absolute greyscale?"
    )
    healpix_order: int = param(
        2,
        "First angular step 60°/2^order, halved by oversampling: 2 is 15°; from the order of local searches on, about the given angles",
        label="Initial angular sampling:",
        flag="--healpix_order",
        ge=0,
        le=6,
    )
    local_search_order: int = param(
        4,
        "From this order on search about each pose only",
        label="Local searches from auto-sampling:",
        flag="--auto_local_healpix_order",
        ge=1,
        le=8,
    )
    iterations: int = param(
        40, "At most so many iterations before the one that joins the halves; converged runs end earlier", flag="--auto_iter_max", ge=1
    )
    low_resol_join_halves: float = param(
        40.0, "Average the halves below this resolution, 0: never", flag="--low_resol_join_halves", unit="Å", ge=0
    )
    solvent_correct_fsc: bool = param(
        False, "Judge by the FSC inside the mask, corrected for it", label="Use solvent-flattened FSCs?", flag="--solvent_correct_fsc"
    )
    limit_resolution: float | None = param(None, "Compare nothing finer than this", flag="--strict_highres_exp", unit="Å", gt=0)
    tau2_fudge: float = param(1.0, "Weight of the data against the prior", flag="--tau2_fudge", gt=0)


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """Map of all particles, the halves, the particles and the model."""
    return (
        OutputSpec("particles", NodeType.PARTICLES, "run_data.star"),
        OutputSpec("half1", NodeType.HALF_MAP, "run_half1_class001_unfil.mrc"),
        OutputSpec("half2", NodeType.HALF_MAP, "run_half2_class001_unfil.mrc"),
        OutputSpec("map", NodeType.MAP, "run_class001.mrc"),
        OutputSpec("model", NodeType.MODEL, "run_model.star"),
    )


def validate(job: Job) -> None:
    """The particles can be refined, the group is known, and a corrected FSC has its mask."""
    from verglas.errors import InputError
    from verglas.volume.symmetry import group_name

    params = job.params
    group_name(params.symmetry)
    particles = check_particles(job, _LEAST_PARTICLES)
    missing = [name for name in ("rot", "tilt", "psi") if name not in particles]
    if params.healpix_order >= params.local_search_order and missing:
        raise InputError(
            job.inputs["particles"],
            f"has no angles ({', '.join(missing)}) to search about from order {params.healpix_order} on",
            "Refine them first, or give a smaller --healpix-order",
        )
    if job.params.solvent_correct_fsc and job.inputs["mask"] is None:
        raise InputError("--solvent-correct-fsc", "needs a mask", "Give --mask, or leave it out")


def run(job: Job) -> Items:
    """Read, split, refine (each iteration is written), write the result, draw."""
    from verglas.refine.autorefine import refine
    from verglas.refine.output import Output

    params = job.params
    with job.phase("read"):
        ready = prepare(job, _LEAST_PARTICLES)
        reference = read_reference(job.inputs["reference"], ready.seen)
        mask = read_mask(job.inputs["mask"], ready.seen)
    if job.ranks.first:
        check_symmetry(job, [reference], params.symmetry, ready.seen)
    settings = engine_settings(
        params,
        ready.device,
        dims=3,
        iterations=params.iterations,
        symmetry=params.symmetry,
        tau2_fudge=params.tau2_fudge,
        ini_high=params.ini_high,
        limit_resolution=params.limit_resolution,
        healpix_order=params.healpix_order,
        local_order=params.local_search_order,
        absolute_greyscale=params.absolute_greyscale,
        low_resol_join=params.low_resol_join_halves,
        solvent_correct_fsc=params.solvent_correct_fsc,
    )
    output = Output(job.out, ready.particles, ready.order, ready.seen, settings, job.inputs["mask"])
    state = iterate(
        job,
        ready,
        output,
        lambda begin: refine(ready.seen, begin, settings, mask, job.ranks),
        lambda: _start(job, ready, reference, settings),
        None,
        partial(_finish, corrected=params.solvent_correct_fsc),
    )
    if job.ranks.first and not state.progress.fine_enough:
        job.warn(f"not converged after {state.iteration - 1} iterations: the last one joined the halves as they were")
    return ready.items


def _start(job: Job, ready: Prepared, reference: Any, settings: Any) -> State:
    from verglas.refine.assignments import from_particles, split_halves
    from verglas.refine.start import first_state

    half, note = split_halves(ready.particles, job.params.random_seed)
    (job.warn if "cannot be used" in note else job.say)(note)
    assignments = from_particles(ready.particles, len(ready.seen.micrographs), half, device=ready.seen.device)
    return first_state(ready.seen, assignments, reference[None], settings)


def _finish(output: Output, state: State, corrected: bool) -> None:
    """The files of a finished run, and its pictures; `corrected`: the FSC is that inside the mask."""
    from verglas.pictures.refinement import draw_progress

    assert state.joined is not None
    output.write_final(state)
    density, angles = (each.cpu().numpy() for each in (state.joined.references[0], state.assignments.angles()))
    curves = {"corrected for the mask" if corrected else "unmasked": state.fsc.cpu().numpy()}
    draw_refined(output.folder, density, output.seen.pixel_size, curves, state.history[-1]["resolution"], angles)
    draw_progress(output.folder / "picture_progress.png", state.history)


def draw_refined(
    out: Path, density: np.ndarray, pixel_size: float, curves: dict[str, np.ndarray], resolution: float, angles: np.ndarray
) -> None:
    """Pictures of a refined map [N, N, N], of the FSC of its halves ([shells], by name) and of where the particles [n, 3] look."""
    from verglas.pictures.curves import draw_fsc
    from verglas.pictures.maps import draw_slices, draw_surface
    from verglas.pictures.refinement import draw_directions

    draw_fsc(out / "picture_fsc.png", curves, len(density), pixel_size, resolution, "half maps")
    draw_slices(out / "picture_slices.png", density, pixel_size)
    draw_surface(out / "picture_surface.png", density)
    draw_directions(out / "picture_directions.png", angles[:, 0], angles[:, 1])


def measure(out: Path, params: Params) -> Metrics:
    """Resolution of the half maps on disk, accuracy, certainty and the split, from the files."""
    import numpy as np
    import torch

    from verglas.io.mrc import read_map
    from verglas.io.relion_iterations import optimisers
    from verglas.io.star import list_table, numbers, read_star
    from verglas.particles import read_particles
    from verglas.volume.fsc import fsc, resolution

    (first, pixel_size), (second, _) = (read_map(out / f"run_half{half}_class001_unfil.mrc") for half in (1, 2))
    curve = fsc(torch.from_numpy(first), torch.from_numpy(second))
    particles = read_particles(out / "run_data.star")
    half = particles.column("half")
    path = out / "run_model.star"
    classes = list_table(read_star(path), "model_classes", path)
    return {
        "items_out": len(particles),
        "resolution": resolution(curve, first.shape[-1], pixel_size),
        "accuracy_rotation": float(numbers(classes, "rlnAccuracyRotations", path)[0]),
        "accuracy_offset": float(numbers(classes, "rlnAccuracyTranslationsAngst", path)[0]),
        "max_probability": float(particles.column("max_probability").mean()),
        "smaller_half": float(min((half == 1).mean(), (half == 2).mean())),
        "iterations": max(optimisers(out), default=0) + 1,
        "map_deviation": float(np.std(read_map(out / "run_class001.mrc")[0])),
    }


def checks(params: Params) -> tuple[Check, ...]:
    """The halves agree beyond where they were joined and filtered, and both hold particles."""
    joined = params.low_resol_join_halves or params.ini_high
    return (
        Check(
            "resolution", 0.1, min(joined, params.ini_high), "halves that agree no further than they were joined or filtered show nothing"
        ),
        Check("smaller_half", 0.2, 0.5, "an FSC needs two halves of comparable size (CASES 9)"),
        Check("accuracy_rotation", 0.0, 30.0, "poses that cannot be told apart at 30° do not align (RELION's estimate at 99 %)"),
        Check("max_probability", 0.0, 1.0, "a probability"),
        Check("map_deviation", 1e-12, None, "an empty map holds no particle"),
    )


JOB = JobType(
    name="Refine3D",
    relion_number=10,
    summary="Refine one structure automatically, in two independent halves",
    examples="""
    verglas job Refine3D --particles Extract/job012/particles.star --reference InitialModel/job009/initial_model.mrc \\
        --symmetry D2 --mask-diameter 150 --ini-high 40
    verglas job Refine3D --particles run_data.star --reference run_class001.mrc --mask mask.mrc --solvent-correct-fsc --mask-diameter 150
    torchrun --nproc-per-node 4 -m verglas job Refine3D --particles run_data.star --reference run_class001.mrc --mask-diameter 150
    """,
    params=Params,
    inputs=(
        InputSpec("particles", NodeType.PARTICLES, "Particles to refine", flag="--i"),
        InputSpec("reference", NodeType.MAP, "Map to start from", flag="--ref"),
        InputSpec("mask", NodeType.MASK, "Mask that the references are multiplied by", required=False, flag="--solvent_mask"),
    ),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    clean=clean,
    describe=lambda m: f"{m['resolution']:.2f} Å after {m['iterations']} iterations",
    on_ranks=True,
)
