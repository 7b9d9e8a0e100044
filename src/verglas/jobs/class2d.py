"""Class2D: sort particles into 2D classes and average them, with or without aligning them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from verglas.errors import InputError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobType, Metrics, NodeType, OutputSpec, param
from verglas.jobs.refinement import EngineParams, check_particles, clean, engine_settings, iterate, prepare, say_empty_classes

if TYPE_CHECKING:
    from verglas.refine.output import Output
    from verglas.refine.state import State


class Params(EngineParams):
    """Parameters of Class2D."""

    classes: int = param(50, "Classes to sort into", label="Number of classes:", flag="--K", ge=1)
    iterations: int = param(25, "Iterations", label="Number of iterations:", flag="--iter", ge=1)
    tau2_fudge: float = param(2.0, "Weight of the data against the prior", label="Regularisation parameter T:", flag="--tau2_fudge", gt=0)
    psi_step: float = param(
        12.0, "Step of the angle before oversampling", label="In-plane angular sampling:", flag="--psi_step", unit="°", gt=0, le=90
    )
    limit_resolution: float | None = param(
        None, "Compare nothing finer than this", label="Limit resolution E-step to (A):", flag="--strict_highres_exp", unit="Å", gt=0
    )
    skip_align: bool = param(
        False, "Keep the given angles in the plane and shifts, only sort", label="Perform image alignment?", flag="--skip_align"
    )


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """The last iteration's particles, model, averages and optimiser."""
    name = f"run_it{params.iterations:03d}"
    return (
        OutputSpec("particles", NodeType.PARTICLES, f"{name}_data.star"),
        OutputSpec("model", NodeType.MODEL, f"{name}_model.star"),
        OutputSpec("optimiser", NodeType.OPTIMISER, f"{name}_optimiser.star"),
        OutputSpec("class_averages", NodeType.REFERENCES_2D, f"{name}_classes.mrcs"),
    )


def validate(job: Job) -> None:
    """The particles can be classified: one box, a CTF, a mask that fits, two particles a class, angles that are to be kept."""
    particles = check_particles(job, 2 * job.params.classes)
    if job.params.skip_align and "psi" not in particles:
        raise InputError(job.inputs["particles"], "has no angles in the plane (psi) to keep", "Align them first: leave out --skip-align")


def run(job: Job) -> Items:
    """Read, classify (each iteration is written), draw."""
    import torch

    from verglas.refine.assignments import from_particles
    from verglas.refine.classify import classify
    from verglas.refine.output import Output
    from verglas.refine.start import first_state, random_averages

    params = job.params
    with job.phase("read"):
        ready = prepare(job, 2 * params.classes)
    seen = ready.seen
    settings = engine_settings(
        params,
        ready.device,
        dims=2,
        classes=params.classes,
        iterations=params.iterations,
        tau2_fudge=params.tau2_fudge,
        psi_step=params.psi_step,
        limit_resolution=params.limit_resolution,
        align=not params.skip_align,
    )
    output = Output(job.out, ready.particles, ready.order, seen, settings)

    def start() -> State:
        unknown = ("rot", "tilt") if params.skip_align else ("rot", "tilt", "psi")
        flat = ready.particles.with_columns(**dict.fromkeys(unknown))
        assignments = from_particles(flat, len(seen.micrographs), device=seen.device)
        rows = torch.arange(len(seen), device=seen.device)
        references = random_averages(seen, rows, assignments, params.classes, params.random_seed, job.ranks)
        return first_state(seen, assignments, references, settings)

    state = iterate(job, ready, output, lambda begin: classify(seen, begin, settings, ranks=job.ranks), start, params.iterations, _draw)
    if job.ranks.first:
        say_empty_classes(job, state.assignments.classes, params.classes)
    return ready.items


def _draw(output: Output, state: State) -> None:
    from verglas.pictures.refinement import draw_progress

    draw_averages(output.folder, state.iteration)
    draw_progress(output.folder / "picture_progress.png", state.history)


def draw_averages(out: Path, iteration: int) -> None:
    """Picture of the class averages that an iteration left in folder `out`."""
    from verglas.io.mrc import read_stack
    from verglas.pictures.galleries import save_classes

    name = out / f"run_it{iteration:03d}"
    shares, resolutions = read_classes(Path(f"{name}_model.star"))
    save_classes(out / "picture_classes.png", read_stack(f"{name}_classes.mrcs"), shares, resolutions, "class averages")


def read_classes(model: Path):  # type: ignore[no-untyped-def]  # numpy is not imported at the top
    """Occupancies and resolutions in Å (inf where a class shows nothing) of a model STAR, float64 [classes] each."""
    import numpy as np

    from verglas.io.star import list_table, numbers, read_star

    table = list_table(read_star(model), "model_classes", model)
    resolution = numbers(table, "rlnEstimatedResolution", model)
    return numbers(table, "rlnClassDistribution", model), np.where(resolution >= 999, np.inf, resolution)


def measure(out: Path, params: Params) -> Metrics:
    """Occupancies, resolutions and certainty, from the last iteration's files."""
    import numpy as np

    from verglas.io.mrc import read_stack
    from verglas.particles import read_particles

    name = out / f"run_it{params.iterations:03d}"
    shares, resolutions = read_classes(Path(f"{name}_model.star"))
    particles = read_particles(f"{name}_data.star")
    averages = read_stack(f"{name}_classes.mrcs")
    counts = np.bincount(particles.column("class_number"), minlength=params.classes + 1)[1:]
    return {
        "items_out": len(particles),
        "classes_occupied": int((counts > 0).sum()),
        "classes_in_file": len(averages),
        "largest_class": float(shares.max()),
        "best_resolution": float(resolutions.min()),
        "max_probability": float(particles.column("max_probability").mean()),
        "averages_deviation": float(averages.std()),
    }


def checks(params: Params) -> tuple[Check, ...]:
    """Every class is in the file, something was found, nothing finer than the data can hold."""
    return (
        Check("classes_in_file", params.classes, params.classes, "one average a class was asked for"),
        Check(
            "classes_occupied", max(1, (params.classes + 3) // 4), params.classes, "fewer than a quarter: the rest collapsed (METHOD.md §5)"
        ),
        Check("largest_class", 0.0, 1.0 if params.classes == 1 else 0.95, "one class that takes nearly all has sorted nothing"),
        Check("best_resolution", 0.1, 60.0, "averages of particles show their shape at 60 Å"),
        Check("max_probability", 0.0, 1.0, "a probability"),
        Check("averages_deviation", 1e-12, None, "empty averages show nothing"),
    )


JOB = JobType(
    name="Class2D",
    relion_number=8,
    summary="Sort particles into 2D classes and average each",
    examples="""
    verglas job Class2D --particles Extract/job005/particles.star --classes 50 --mask-diameter 120
    verglas job Class2D --particles particles.star --classes 10 --iterations 15 --mask-diameter 150 --psi-step 12 --out DIR
    verglas job Class2D --particles run_it025_data.star --classes 5 --skip-align --mask-diameter 120 --out DIR
    torchrun --nproc-per-node 4 -m verglas job Class2D --particles particles.star --classes 50 --mask-diameter 120
    """,
    params=Params,
    inputs=(InputSpec("particles", NodeType.PARTICLES, "Particles to sort", flag="--i"),),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    clean=clean,
    describe=lambda m: f"{m['classes_occupied']} classes, best {m['best_resolution']:.1f} Å",
    on_ranks=True,
)
