"""InitialModel: a first map from the particles alone; of several starts the one that explains the images best is kept and refined."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from verglas.errors import InputError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobType, Metrics, NodeType, OutputSpec, param
from verglas.jobs.initialmodel_starts import Start, agreement, digest_of, largest_class, run_start, symmetrised_start
from verglas.jobs.refinement import ImageParams, Prepared, check_particles, iterate, precision, prepare, say_empty_classes

if TYPE_CHECKING:
    import torch

    from verglas.refine.state import State

_MAP, _STARTS = "initial_model.mrc", "starts.star"


class Params(ImageParams):
    """Parameters of InitialModel."""

    symmetry: str = param("C1", "Point group in RELION's setting, imposed from the start", label="Symmetry:", flag="--sym")
    do_run_C1: bool = param(
        False, "Start without symmetry; find its axes in the map, turn it, and go on with it", label="Run in C1 and apply symmetry later?"
    )
    classes: int = param(1, "Maps to part the particles into", label="Number of classes:", flag="--K", ge=1)
    starts: int = param(2, "Independent starts, of which the most likely is kept", ge=1)
    iterations: int = param(24, "Iterations of each start", ge=3)
    refine_iterations: int = param(
        4, "Iterations of all particles that follow for the start that is kept, as finely as the data allow", ge=1
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
    write_every: int = param(8, "Leave the maps of a start every so many iterations", flag="--sgd_write_iter", ge=1)


def last_of_start(params: Params) -> int:
    """Number of the last iteration of the start that is kept: with the symmetry applied later, a third is added after it."""
    return params.iterations + (params.iterations // 3 if params.do_run_C1 else 0)


def last_iteration(params: Params) -> int:
    """Number of the last iteration of all."""
    return last_of_start(params) + params.refine_iterations


def _stem(params: Params) -> str:
    """RELION's name of the last iteration's files, without folder."""
    return f"run_it{last_iteration(params):03d}"


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """The map, and the files of the last iteration."""
    name = _stem(params)
    return (
        OutputSpec("map", NodeType.MAP, _MAP),
        OutputSpec("particles", NodeType.PARTICLES, f"{name}_data.star"),
        OutputSpec("model", NodeType.MODEL, f"{name}_model.star"),
        OutputSpec("optimiser", NodeType.OPTIMISER, f"{name}_optimiser.star"),
        *(OutputSpec(f"class{k}", NodeType.MAP, f"{name}_class{k:03d}.mrc") for k in range(1, params.classes + 1)),
    )


def validate(job: Job) -> None:
    """The group is known, the resolutions go the right way, and the particles can be worked with."""
    from verglas.volume.symmetry import group_name

    params = job.params
    if group_name(params.symmetry) == "C1" and params.do_run_C1:
        raise InputError("--do-run-C1", "there is no symmetry to apply later", "Give --symmetry, or leave it out")
    if params.sgd_fin_resol >= params.sgd_ini_resol:
        raise InputError(
            "--sgd-fin-resol", f"{params.sgd_fin_resol:g} Å is not finer than {params.sgd_ini_resol:g} Å", "Give a smaller one"
        )
    check_particles(job, 3 * params.classes)


def run(job: Job) -> Items:
    """Read; run the starts; keep the best; bring it to its symmetry if that was left for later; refine it; write."""
    params = job.params
    with job.phase("read"):
        ready = prepare(job, 3 * params.classes, params.most_particles)
    with job.phase("compute"):
        starts = [run_start(job, ready.seen, number) for number in range(params.starts)]
        best = max(starts, key=lambda start: start.gain)
        agreed = [agreement(start, best) for start in starts] if job.ranks.first else []
        if params.do_run_C1:
            best = symmetrised_start(job, best, last_of_start(params))
    state = _refined(job, best, ready)
    if job.ranks.first:
        with job.phase("write"):
            _write(job, best, state, starts, agreed)
        say_empty_classes(job, state.assignments.classes, params.classes)
    return ready.items


def _refined(job: Job, best: Start, ready: Prepared) -> State:
    """The start that is kept after iterations of all particles that go as far as they carry; each is written."""
    from dataclasses import replace

    from verglas.refine.classify import classify
    from verglas.refine.initial_model import TAU2_FUDGE
    from verglas.refine.output import Output
    from verglas.refine.settings import Settings
    from verglas.refine.start import first_state

    params, seen, begun = job.params, ready.seen, best.state
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
        half_precision=precision(params, ready.device) == "bf16",
        seed=params.random_seed,
    )
    begun_from = f"iteration {begun.iteration} of maps {digest_of(begun.maps)}"
    output = Output(job.out, ready.particles, ready.order, seen, settings, begun_from=begun_from)

    def start() -> State:
        state = first_state(seen, best.model.known, begun.maps, settings)
        state.models[0].class_weight = begun.shares.to(state.models[0].class_weight)
        return replace(state, iteration=begun.iteration)

    return iterate(job, ready, output, lambda begin: classify(seen, begin, settings, ranks=job.ranks), start, settings.iterations)


def _shape_kept(best: Start, after: torch.Tensor, before: torch.Tensor) -> float:
    """Resolution in Å, no finer than that of the starts, to which the final map [N, N, N] is the one it was refined from (FSC 0.5)."""
    from verglas.refine.relion_tables import NO_RESOLUTION
    from verglas.volume.fsc import fsc, resolution

    pixel_size, finest = best.model.seen.pixel_size, best.model.settings.fin_resolution
    return min(max(resolution(fsc(after, before), after.shape[-1], pixel_size, 0.5), finest), NO_RESOLUTION)


def _write(job: Job, best: Start, state: State, starts: list[Start], agreed: list[tuple[float, bool]]) -> None:
    """The map, the table of the starts and the pictures; `state`: the last of the start that was kept, `agreed`: of each start."""
    import pandas as pd

    from verglas.io.mrc import write_map
    from verglas.io.star import write_star
    from verglas.pictures.maps import draw_maps_in_a_row, draw_slices, draw_surface

    pixel_size, model = best.model.seen.pixel_size, state.models[0]
    maps, shares = model.references.cpu(), model.class_weight.cpu()
    largest = int(shares.argmax())
    density = maps[largest].numpy()
    names = [f"start {i}: {start.gain:.1f}" for i, start in enumerate(starts, start=1)]
    draw_maps_in_a_row(job.out / "picture_starts.png", [largest_class(s.state).numpy() for s in starts], names, "log-likelihood gained")
    if len(maps) > 1:
        titles = [f"class {k}: {100 * float(share):.0f} %" for k, share in enumerate(shares, start=1)]
        draw_maps_in_a_row(job.out / "picture_classes.png", list(maps.numpy()), titles)
    draw_slices(job.out / "picture_slices.png", density, pixel_size)
    draw_surface(job.out / "picture_surface.png", density, title="initial model")
    rows = [
        {"start": i, "seed": s.model.settings.seed, "gain": s.gain, "spherical": s.spherical, "agreement": to, "mirrored": int(mirrored)}
        for i, (s, (to, mirrored)) in enumerate(zip(starts, agreed, strict=True), start=1)
    ]
    kept = _shape_kept(best, maps[largest], best.state.maps[largest].cpu())
    write_star(job.out / _STARTS, {"starts": pd.DataFrame(rows), "refined": {"shape_kept": kept}})
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
    particles = read_particles(out / f"{_stem(params)}_data.star")
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
    """The starts' maps, and the iterations after them but for the last; what a run goes on from stays."""
    from verglas.refine.output import intermediate_files

    yield from (path for folder in ("start*", "symmetrised") for path in out.glob(f"{folder}/run_it*"))
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
    grows="refine_iterations",
    on_ranks=True,
)
