"""Class3D: sort particles into 3D classes, with or without aligning them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.errors import InputError
from verglas.jobs.class2d import read_classes
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
    reference_files,
    say_empty_classes,
)

if TYPE_CHECKING:
    import numpy as np

    from verglas.refine.output import Output
    from verglas.refine.state import State


class Params(EngineParams):
    """Parameters of Class3D."""

    classes: int = param(3, "Classes to sort into", label="Number of classes:", flag="--K", ge=1)
    iterations: int = param(25, "Iterations", label="Number of iterations:", flag="--iter", ge=1)
    symmetry: str = param("C1", "Point group in RELION's setting", label="Symmetry:", flag="--sym")
    tau2_fudge: float = param(4.0, "Weight of the data against the prior", label="Regularisation parameter T:", flag="--tau2_fudge", gt=0)
    ini_high: float = param(
        60.0, "Low-pass of the reference at the start", label="Initial low-pass filter (A):", flag="--ini_high", unit="Å", gt=0
    )
    absolute_greyscale: bool = param(
        False, "The reference was made from these particles' grey values", label="Ref. map is on absolute greyscale?"
    )
    limit_resolution: float | None = param(
        None, "Compare nothing finer than this", label="Limit resolution E-step to (A):", flag="--strict_highres_exp", unit="Å", gt=0
    )
    healpix_order: int = param(
        2,
        "Angular step 60°/2^order, halved by oversampling: 2 is 15°",
        label="Angular sampling interval:",
        flag="--healpix_order",
        ge=0,
        le=7,
    )
    local_search_sigma: float | None = param(
        None,
        "Search only about the given angles, with this prior",
        label="Perform local angular searches?",
        flag="--sigma_ang",
        unit="°",
        gt=0,
    )
    skip_align: bool = param(False, "Keep the given angles and shifts, only sort", label="Perform image alignment?", flag="--skip_align")


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """The last iteration's particles, model, optimiser and maps."""
    name = f"run_it{params.iterations:03d}"
    maps = (OutputSpec(f"class{k}", NodeType.MAP, f"{name}_class{k:03d}.mrc") for k in range(1, params.classes + 1))
    return (
        OutputSpec("particles", NodeType.PARTICLES, f"{name}_data.star"),
        OutputSpec("model", NodeType.MODEL, f"{name}_model.star"),
        OutputSpec("optimiser", NodeType.OPTIMISER, f"{name}_optimiser.star"),
        *maps,
    )


def validate(job: Job) -> None:
    """The particles can be classified, the group is known, and there are references for the classes."""
    from verglas.volume.symmetry import group_name

    params, references = job.params, reference_files(job.inputs["reference"])
    group_name(params.symmetry)
    particles = check_particles(job, 2 * params.classes)
    if len(references) not in (1, params.classes):
        raise InputError("--reference", f"{len(references)} given for {params.classes} classes", "Give one for all, or one each")
    if params.skip_align or params.local_search_sigma:
        missing = [name for name in ("rot", "tilt", "psi") if name not in particles]
        if missing:
            raise InputError(job.inputs["particles"], f"has no angles ({', '.join(missing)})", "Refine them first, or search everywhere")


def run(job: Job) -> Items:
    """Read, classify (each iteration is written), draw."""
    from verglas.refine.classify import classify
    from verglas.refine.output import Output

    params = job.params
    with job.phase("read"):
        ready = prepare(job, 2 * params.classes)
        references = [read_reference(path, ready.seen) for path in reference_files(job.inputs["reference"])]
        mask = read_mask(job.inputs["mask"], ready.seen)
    if job.ranks.first:
        check_symmetry(job, references, params.symmetry, ready.seen)
    settings = engine_settings(
        params,
        ready.device,
        dims=3,
        classes=params.classes,
        iterations=params.iterations,
        symmetry=params.symmetry,
        tau2_fudge=params.tau2_fudge,
        ini_high=params.ini_high,
        limit_resolution=params.limit_resolution,
        healpix_order=params.healpix_order,
        local_sigma=params.local_search_sigma,
        align=not params.skip_align,
        absolute_greyscale=params.absolute_greyscale,
    )
    output = Output(job.out, ready.particles, ready.order, ready.seen, settings, job.inputs["mask"])
    state = iterate(
        job,
        ready,
        output,
        lambda begin: classify(ready.seen, begin, settings, mask, job.ranks),
        lambda: _start(ready, references, settings),
        params.iterations,
        _draw,
    )
    if job.ranks.first:
        say_empty_classes(job, state.assignments.classes, params.classes)
    return ready.items


def _start(ready: Prepared, references: list[Any], settings: Any) -> State:
    import torch

    from verglas.refine.assignments import from_particles
    from verglas.refine.start import first_state

    seen = ready.seen
    assignments = from_particles(ready.particles, len(seen.micrographs), device=seen.device)
    copies = references * settings.classes if len(references) == 1 else references
    return first_state(seen, assignments, torch.stack(copies), settings)


def _draw(output: Output, state: State) -> None:
    from verglas.pictures.refinement import draw_progress

    model, angles = state.models[0], state.assignments.angles().cpu().numpy()
    draw_classes(output.folder, model.references.cpu().numpy(), model.class_weight.tolist(), output.seen.pixel_size, angles)
    draw_progress(output.folder / "picture_progress.png", state.history)


def draw_classes(out: Path, maps: np.ndarray, shares: list[float], pixel_size: float, angles: np.ndarray) -> None:
    """Pictures of classes [K, N, N, N], the largest first, and of where the particles [n, 3] (rot, tilt, psi) look."""
    from verglas.pictures.maps import draw_maps_in_a_row, draw_slices
    from verglas.pictures.refinement import draw_directions

    order = sorted(range(len(shares)), key=lambda k: -shares[k])
    names = [f"class {k + 1}: {100 * shares[k]:.1f} %" for k in order]
    draw_maps_in_a_row(out / "picture_classes.png", [maps[k] for k in order], names)
    draw_slices(out / "picture_slices.png", maps[order[0]], pixel_size, title=names[0])
    draw_directions(out / "picture_directions.png", angles[:, 0], angles[:, 1])


def measure(out: Path, params: Params) -> Metrics:
    """Occupancies, resolutions and certainty, from the last iteration's files."""
    import numpy as np

    from verglas.io.mrc import read_map
    from verglas.particles import read_particles

    name = out / f"run_it{params.iterations:03d}"
    shares, resolutions = read_classes(Path(f"{name}_model.star"))
    particles = read_particles(f"{name}_data.star")
    counts = np.bincount(particles.column("class_number"), minlength=params.classes + 1)[1:]
    largest = read_map(f"{name}_class{int(shares.argmax()) + 1:03d}.mrc")[0]
    return {
        "items_out": len(particles),
        "classes_occupied": int((counts > 0).sum()),
        "largest_class": float(shares.max()),
        "smallest_class": float(shares.min()),
        "best_resolution": float(resolutions.min()),
        "max_probability": float(particles.column("max_probability").mean()),
        "map_deviation": float(largest.std()),
    }


def checks(params: Params) -> tuple[Check, ...]:
    """Something was found, and nothing finer than was asked for."""
    finest = 0.95 * params.limit_resolution if params.limit_resolution else 0.1
    return (
        Check("classes_occupied", 1, params.classes, "classes that were asked for"),
        Check("best_resolution", finest, params.ini_high, "a class that gained nothing over the start has found no particles"),
        Check("max_probability", 0.0, 1.0, "a probability"),
        Check("map_deviation", 1e-12, None, "an empty map holds no particle"),
    )


JOB = JobType(
    name="Class3D",
    relion_number=9,
    summary="Sort particles into 3D classes",
    examples="""
    verglas job Class3D --particles Extract/job012/particles.star --reference Refine3D/job011/run_class001.mrc \\
        --classes 4 --symmetry D2 --mask-diameter 150 --limit-resolution 7
    verglas job Class3D --particles run_data.star --reference run_class001.mrc --classes 3 --skip-align --mask-diameter 150 --out DIR
    torchrun --nproc-per-node 4 -m verglas job Class3D --particles run_data.star --reference run_class001.mrc --mask-diameter 150
    """,
    params=Params,
    inputs=(
        InputSpec("particles", NodeType.PARTICLES, "Particles to sort", flag="--i"),
        InputSpec("reference", NodeType.MAP, "Map to start from; for all classes, one each, or a STAR of them", many=True, flag="--ref"),
        InputSpec("mask", NodeType.MASK, "Mask that the references are multiplied by", required=False, flag="--solvent_mask"),
    ),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    clean=clean,
    describe=lambda m: f"{m['classes_occupied']} classes, largest {m['largest_class']:.0%}, best {m['best_resolution']:.1f} Å",
    on_ranks=True,
)
