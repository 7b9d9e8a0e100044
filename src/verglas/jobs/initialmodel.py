"""InitialModel: a first map from the particles alone; of several starts the one that explains the images best is kept and refined."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.errors import InputError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobParams, JobType, Metrics, NodeType, OutputSpec, param
from verglas.jobs.initialmodel_files import stem, write_particles_of, write_starts, write_state
from verglas.jobs.initialmodel_starts import Start, agreement, largest_class, run_start, symmetrised_start
from verglas.jobs.refinement import check_one_grid, check_ranks, in_reading_order, iterate, say_empty_classes, take_device

if TYPE_CHECKING:
    import numpy as np

    from verglas.particles import ParticleSet
    from verglas.refine.assignments import Assignments
    from verglas.refine.initial_model import State

_MAP, _STARTS = "initial_model.mrc", "starts.star"
_PRELOAD_BYTES = 4 << 30


class Params(JobParams):
    """Parameters of InitialModel."""

    mask_diameter: float = param(
        ..., "Diameter of the particle with its rim", label="Mask diameter (A):", flag="--particle_diameter", unit="Å", gt=0
    )
    symmetry: str = param("C1", "Point group in RELION's setting, imposed from the start", label="Symmetry:", flag="--sym")
    do_run_C1: bool = param(
        False, "Start without symmetry; find its axes in the map, turn it, and go on with it", label="Run in C1 and apply symmetry later?"
    )
    classes: int = param(1, "Maps to part the particles into", label="Number of classes:", flag="--K", ge=1)
    starts: int = param(2, "Independent starts, of which the most likely is kept", ge=1)
    iterations: int = param(24, "Iterations of each start", ge=3)
    refine_iterations: int = param(
        4, "Iterations of all particles that follow for the start that is kept, as finely as the data allow; 0: none", ge=0
    )
    sgd_ini_resol: float = param(40.0, "Resolution at the start", label="Initial resolution (A):", flag="--sgd_ini_resol", unit="Å", gt=0)
    sgd_fin_resol: float = param(
        20.0, "Resolution at the end of the starts", label="Final resolution (A):", flag="--sgd_fin_resol", unit="Å", gt=0
    )
    sgd_ini_subset: int = param(
        150, "Particles an iteration at the start", label="Initial mini-batch size:", flag="--sgd_ini_subset", ge=10
    )
    sgd_fin_subset: int = param(500, "Particles an iteration at the end", label="Final mini-batch size:", flag="--sgd_fin_subset", ge=10)
    angle: float = param(0.0, "Spacing of the orientations; 0: by resolution and diameter", unit="°", ge=0, le=30)
    offset_range: float = param(17.0, "Search for the centre this far", unit="Å", ge=0)
    offset_step: float = param(0.0, "Step of that search; 0: a third of the final resolution", unit="Å", ge=0)
    most_particles: int = param(5000, "Use at most so many particles, drawn at random; 0: all", ge=0)
    write_every: int = param(8, "Write every so many iterations", flag="--sgd_write_iter", ge=1)
    do_ctf_correction: bool = param(True, "Correct for the CTF", label="Do CTF-correction?", flag="--ctf")
    ctf_intact_first_peak: bool = param(
        False, "Leave the CTF out up to its first peak", label="Ignore CTFs until first peak?", flag="--ctf_intact_first_peak"
    )


def last_of_start(params: Params) -> int:
    """Number of the last iteration of the start that is kept: with the symmetry applied later, a third is added after it."""
    return params.iterations + (params.iterations // 3 if params.do_run_C1 else 0)


def last_iteration(params: Params) -> int:
    """Number of the last iteration of all."""
    return last_of_start(params) + params.refine_iterations


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """The map, and the files of the last iteration."""
    name = stem(last_iteration(params))
    return (
        OutputSpec("map", NodeType.MAP, _MAP),
        OutputSpec("particles", NodeType.PARTICLES, f"{name}_data.star"),
        OutputSpec("model", NodeType.MODEL, f"{name}_model.star"),
        OutputSpec("optimiser", NodeType.OPTIMISER, f"{name}_optimiser.star"),
        *(OutputSpec(f"class{k}", NodeType.MAP, f"{name}_class{k:03d}.mrc") for k in range(1, params.classes + 1)),
    )


def validate(job: Job) -> None:
    """The group is known, the resolutions go the right way, and the mask fits in the images' box."""
    from verglas.particles import read_particles
    from verglas.refine.observations import check_mask_diameter
    from verglas.volume.symmetry import group_name

    params = job.params
    if group_name(params.symmetry) == "C1" and params.do_run_C1:
        raise InputError("--do-run-C1", "there is no symmetry to apply later", "Give --symmetry, or leave it out")
    if params.sgd_fin_resol >= params.sgd_ini_resol:
        raise InputError(
            "--sgd-fin-resol", f"{params.sgd_fin_resol:g} Å is not finer than {params.sgd_ini_resol:g} Å", "Give a smaller one"
        )
    particles = read_particles(job.inputs["particles"]).without_unused_optics()
    check_one_grid(particles, job.inputs["particles"])
    if len(particles) < 3 * params.classes:
        raise InputError(job.inputs["particles"], f"{len(particles)} particles for {params.classes} classes", "Give more particles")
    check_mask_diameter(params.mask_diameter, particles.optics.box_size, particles.optics.pixel_size)


def run(job: Job) -> Items:
    """Read; run the starts; keep the best; bring it to its symmetry if that was left for later; refine it; write."""
    from verglas.refine.observations import Observations

    params, device = job.params, take_device(job)
    with job.phase("read"):
        particles, order, source, items = _usable_particles(job)
        check_ranks(job, len(particles))
        seen = Observations(
            particles,
            source,
            mask_diameter=params.mask_diameter,
            device=device,
            correct_ctf=params.do_ctf_correction,
            intact_until_first_peak=params.ctf_intact_first_peak,
        )
    with job.phase("compute"):
        starts = [run_start(job, seen, number) for number in range(params.starts)]
        best = max(starts, key=lambda start: start.gain)
        agreed = [agreement(start, best) for start in starts] if job.ranks.first else []
        if params.do_run_C1:
            best = symmetrised_start(job, best, last_of_start(params))
    begun = best.state
    if params.refine_iterations:
        best, found = _refined(job, best, order)
    else:
        found = _assigned(job, best, order)
    if job.ranks.first:
        with job.phase("write"):
            _write(job, best, starts, agreed, _shape_kept(best, begun))
        say_empty_classes(job, found.classes, params.classes)
    return items


def _assigned(job: Job, best: Start, order: np.ndarray) -> Assignments:
    """What is known of all particles by the maps of a start that is not refined; written, with the start's last iteration."""
    import torch

    with job.phase("compute"):
        found = best.model.assign(best.state)
    if job.ranks.first:
        with job.phase("write"):
            write_state(job.out, best.state, best.model)
            path = job.out / f"{stem(best.state.iteration)}_data.star"
            write_particles_of(path, best.model.seen.particles, torch.from_numpy(order), found)
    return found


def _refined(job: Job, best: Start, order: np.ndarray) -> tuple[Start, Assignments]:
    """The start after iterations of all particles that go as far as they carry, and what is known of these then; written as they go."""
    from dataclasses import replace
    from hashlib import sha256

    from verglas.compute.device import has_fast_bf16
    from verglas.refine.classify import classify
    from verglas.refine.initial_model import TAU2_FUDGE, State
    from verglas.refine.output import Output
    from verglas.refine.settings import Settings
    from verglas.refine.start import first_state

    params, seen, begun = job.params, best.model.seen, best.state
    step = best.model.settings.offset_step / seen.pixel_size
    settings = Settings(
        dims=3,
        mask_diameter=params.mask_diameter,
        classes=params.classes,
        iterations=last_iteration(params),
        symmetry=params.symmetry,
        tau2_fudge=TAU2_FUDGE,
        ini_high=params.sgd_fin_resol,
        offset_range_px=params.offset_range / seen.pixel_size,
        offset_step_px=max(step / 2, min(2.0, step)),
        absolute_greyscale=True,
        correct_ctf=params.do_ctf_correction,
        ctf_intact_first_peak=params.ctf_intact_first_peak,
        half_precision=has_fast_bf16(seen.device),
        seed=params.random_seed,
    )

    def start() -> Any:
        state = first_state(seen, best.model.known, begun.maps, settings)
        state.models[0].class_weight = begun.shares.to(state.models[0].class_weight)
        return replace(state, iteration=begun.iteration)

    maps = sha256(begun.maps.cpu().numpy().tobytes()).hexdigest()
    output = Output(job.out, seen.particles, order, seen, settings, begun_from=f"iteration {begun.iteration} of maps {maps}")
    state = iterate(job, output, lambda begin: classify(seen, begin, settings, ranks=job.ranks), start, settings.iterations)
    model = state.models[0]
    return replace(best, state=State(state.iteration, model.references, model.class_weight.float().cpu())), state.assignments


def _usable_particles(job: Job) -> tuple[ParticleSet, np.ndarray, Any, Items]:
    """The particles to work with, as they lie in their stacks; the place of each row; their images; the account of those left out."""
    import numpy as np

    from verglas.particles import read_particles
    from verglas.particles.images import StackImages
    from verglas.refine.observations import unusable

    everything = read_particles(job.inputs["particles"]).without_unused_optics()
    items = Items("particles", total=len(everything))
    most = job.params.most_particles or len(everything)
    rows = np.arange(len(everything))
    if len(rows) > most:
        order = np.argsort(everything.column("image_name").astype(str), kind="stable")
        rows = np.sort(order[np.random.default_rng(job.params.random_seed).permutation(len(rows))[:most]])
        items.skipped += len(everything) - most
        items.notes["not_drawn"] = len(everything) - most
    particles = everything.subset(rows)
    bad = unusable(StackImages(particles), job.ranks)
    for row, reason in bad.items():
        items.fail(str(particles.column("image_name")[row]), reason)
    particles, order = in_reading_order(particles.subset(np.setdiff1d(np.arange(len(particles)), list(bad))).without_unused_optics())
    if len(particles) < 3 * job.params.classes:
        raise InputError(job.inputs["particles"], f"{len(particles)} usable images are left", "Check the extraction")
    items.done = len(particles)
    images = StackImages(particles)
    small = 4 * len(images) * images.box**2 < _PRELOAD_BYTES
    return particles, order, images.preload() if small else images, items


def _shape_kept(best: Start, begun: State) -> float:
    """Resolution in Å, no finer than that of the starts, to which the final map is the one that it was refined from (FSC 0.5)."""
    from verglas.refine.relion_tables import NO_RESOLUTION
    from verglas.volume.fsc import fsc, resolution

    pixel_size, finest = best.model.seen.pixel_size, best.model.settings.fin_resolution
    number = int(best.state.shares.argmax())
    after, before = (state.maps[number].cpu() for state in (best.state, begun))
    return min(max(resolution(fsc(after, before), after.shape[-1], pixel_size, 0.5), finest), NO_RESOLUTION)


def _write(job: Job, best: Start, starts: list[Start], agreed: list[tuple[float, bool]], kept: float) -> None:
    """Maps, tables and pictures of the run; `kept`: to what resolution the starts' shape was."""
    from verglas.io.mrc import write_map
    from verglas.pictures.maps import draw_maps_in_a_row, draw_slices, draw_surface

    pixel_size, density = best.model.seen.pixel_size, largest_class(best.state).numpy()
    names = [f"start {i}: {start.gain:.1f}" for i, start in enumerate(starts, start=1)]
    draw_maps_in_a_row(job.out / "picture_starts.png", [largest_class(s.state).numpy() for s in starts], names, "log-likelihood gained")
    if len(best.state.maps) > 1:
        shares = [f"class {k}: {100 * float(share):.0f} %" for k, share in enumerate(best.state.shares, start=1)]
        draw_maps_in_a_row(job.out / "picture_classes.png", list(best.state.maps.cpu().numpy()), shares)
    draw_slices(job.out / "picture_slices.png", density, pixel_size)
    draw_surface(job.out / "picture_surface.png", density, title="initial model")
    rows = [
        {"start": i, "seed": s.model.settings.seed, "gain": s.gain, "spherical": s.spherical, "agreement": to, "mirrored": int(mirrored)}
        for i, (s, (to, mirrored)) in enumerate(zip(starts, agreed, strict=True), start=1)
    ]
    write_starts(job.out / _STARTS, rows, kept)
    write_map(job.out / _MAP, density, pixel_size)


def measure(out: Path, params: Params) -> Metrics:
    """How well the particles fit the start that was kept, how far the starts agree, and how much of it is in the final map."""
    import numpy as np

    from verglas.io.mrc import read_map
    from verglas.io.star import list_table, numbers, read_star
    from verglas.particles import read_particles

    path = out / _STARTS
    tables = read_star(path)
    starts = list_table(tables, "starts", path)
    gain, sphere, agreement = (numbers(starts, label, path) for label in ("gain", "spherical", "agreement"))
    particles = read_particles(out / f"{stem(last_iteration(params))}_data.star")
    best, (density, _) = int(gain.argmax()), read_map(out / _MAP)
    between: Metrics = {"agreement": float(agreement.max())} if len(starts) > 1 else {}
    return {
        "starts": len(starts),
        **between,
        "log_likelihood": float(gain[best]),
        "gain_over_sphere": float(gain[best] - sphere[best]),
        "shape_kept": float(numbers(list_table(tables, "refined", path), "shape_kept", path)[0]),
        "starts_mirrored": int(numbers(starts, "mirrored", path).sum()),
        "max_probability": float(particles.column("max_probability").astype(np.float64).mean()),
        "items_out": len(particles),
        "map_deviation": float(density.std()),
    }


def checks(params: Params) -> tuple[Check, ...]:
    """The start says something about orientations, independent starts found the same shape, and so did what followed."""
    found = [
        Check("shape_kept", None, 2 * params.sgd_fin_resol, "detail is added to the start's shape; another shape is no refinement of it"),
        Check("gain_over_sphere", 0.0, None, "a start no more likely than its own spherical average holds no orientation"),
        Check("map_deviation", 1e-12, None, "an empty map explains nothing"),
        Check("max_probability", 0.01, 1.0, "poses drawn at random of about 1,000 and more would give less"),
    ]
    if params.starts > 1:
        source = "two starts on 500 simulated D2 particles agreed with the truth to their cut-off; at twice that they differ in shape"
        found.append(Check("agreement", None, 2 * params.sgd_fin_resol, source))
    return tuple(found)


def describe(metrics: Metrics) -> str:
    """How likely the map is, and how far the starts agree where there were several."""
    agreed = f"starts agree to {metrics['agreement']:.0f} Å" if "agreement" in metrics else "one start, compared with no other"
    return f"log-likelihood {metrics['log_likelihood']:.1f}, {agreed}"


def clean(out: Path) -> Iterator[Path]:
    """The iterations of the starts, and those after them but for the last."""
    from verglas.refine.output import intermediate_files

    yield from out.glob("start*/run_it*")
    yield from intermediate_files(out)


JOB = JobType(
    name="InitialModel",
    relion_number=18,
    summary="Make a first 3D map from the particles alone",
    examples="""
    verglas job InitialModel --particles Select/job010/particles.star --mask-diameter 140 --symmetry D2
    verglas job InitialModel --particles particles.star --mask-diameter 180 --symmetry O --do-run-C1 --starts 3
    verglas job InitialModel --particles particles.star --mask-diameter 140 --classes 3 --out first
    torchrun --nproc-per-node 4 -m verglas job InitialModel --particles particles.star --mask-diameter 140 --symmetry D2
    """,
    params=Params,
    inputs=(InputSpec("particles", NodeType.PARTICLES, "Particles, best after 2D classification", flag="--i"),),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    clean=clean,
    describe=describe,
    on_ranks=True,
)
