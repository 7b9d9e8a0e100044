"""Select: a part of a table, by value, by class, without duplicates, or split; classes chosen by hand or by rule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from verglas.errors import InputError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobParams, JobType, Metrics, NodeType, OutputSpec, param

if TYPE_CHECKING:
    import numpy as np

    from verglas.particles import ParticleSet

_BY_CLASS = ("classes", "class_averages", "best_class")


class Params(JobParams):
    """Parameters of Select."""

    action: Literal["values", "classes", "class_averages", "best_class", "duplicates", "split"] = param(
        "values",
        "values: rows in a range; classes: by number; class_averages: 2D classes by rule; best_class: 3D classes by rule; "
        "duplicates: one of each; split: into parts",
    )
    select_from: Literal["micrographs", "particles"] = param("particles", "Which of the two tables is selected from")
    select_label: str = param("ctf_max_resolution", "Column to select by (rlnCtfMaxResolution is accepted too)", flag="--select")
    select_minval: float | None = param(None, "Smallest value to keep", label="Minimum metadata value:", flag="--minval")
    select_maxval: float | None = param(None, "Largest value to keep", label="Maximum metadata value:", flag="--maxval")
    classes: str = param("", "Numbers of the classes to keep, for example 1,4,7")
    mask_diameter: float = param(0.0, "Diameter of the particle, for class_averages", unit="Å", ge=0)
    duplicate_threshold: float = param(
        30.0, "Particles closer than this are one", label="Minimum inter-particle distance (A)", unit="Å", gt=0
    )
    nr_split: int = param(2, "Parts to split into", label="OR: number of equal subsets:", flag="--nr_split", ge=2)
    do_random: bool = param(False, "Split in random order", label="Randomise order before making subsets?:", flag="--random_order")


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """The selected table; with classes also the averages or the map that were kept."""
    node = NodeType.PARTICLES if params.select_from == "particles" else NodeType.MICROGRAPHS
    if params.action == "split":
        return tuple(OutputSpec(f"split{i}", node, f"{params.select_from}_split{i}.star") for i in range(1, params.nr_split + 1))
    found = [OutputSpec(params.select_from, node, f"{params.select_from}.star")]
    if params.action == "class_averages":
        found.append(OutputSpec("class_averages", NodeType.REFERENCES_2D, "class_averages.mrcs"))
    if params.action == "best_class":
        found.append(OutputSpec("map", NodeType.MAP, "best_class.mrc"))
    return tuple(found)


def validate(job: Job) -> None:
    """The inputs that the action needs are there, and its options make sense together."""
    params, inputs = job.params, job.inputs
    if inputs[params.select_from] is None:
        raise InputError(f"--{params.select_from}", "not given", f"--select-from {params.select_from} needs it")
    if params.action in (*_BY_CLASS, "duplicates") and params.select_from != "particles":
        raise InputError("--action", f"{params.action} selects particles", "Use --select-from particles")
    if params.action in ("class_averages", "best_class") and inputs["model"] is None:
        raise InputError("--model", "not given", f"{params.action} reads the classes from run_itNNN_model.star")
    if params.action == "class_averages" and params.mask_diameter <= 0:
        raise InputError("--mask-diameter", "not given", "class_averages needs the diameter of the particle in Å")
    if params.action == "values" and params.select_minval is None and params.select_maxval is None:
        raise InputError("--select-minval", "neither a smallest nor a largest value is given", "Give one or both")
    if params.action == "classes":
        _class_numbers(params.classes)


def run(job: Job) -> Items:
    """Read, decide which rows stay, write."""
    import numpy as np

    from verglas import particles as tables

    of_particles = job.params.select_from == "particles"
    read = tables.read_particles if of_particles else tables.read_micrographs
    write: Any = tables.write_particles if of_particles else tables.write_micrographs
    with job.phase("read"):
        table = read(job.inputs[job.params.select_from])
    if job.params.action == "split":
        rows = np.random.default_rng(job.params.random_seed).permutation(len(table)) if job.params.do_random else np.arange(len(table))
        with job.phase("write"):
            for spec, part in zip(outputs(job.params), np.array_split(rows, job.params.nr_split)):
                write(job.out / spec.path, table.subset(np.sort(part)))
        return Items("rows", total=len(table), done=len(table))
    with job.phase("compute"):
        keep = _CHOOSERS[job.params.action](job, table)
    with job.phase("write"):
        write(job.out / f"{job.params.select_from}.star", table.subset(keep))
    job.say(f"{int(keep.sum())} of {len(table)} rows kept")
    return Items("rows", total=len(table), done=len(table), notes={"kept": int(keep.sum())})


def measure(out: Path, params: Params) -> Metrics:
    """Rows in each file left."""
    from verglas import particles as tables

    read: Any = tables.read_particles if params.select_from == "particles" else tables.read_micrographs
    counts = [len(read(out / spec.path)) for spec in outputs(params) if spec.path.endswith(".star")]
    metrics: Metrics = {"rows": sum(counts), "smallest_part": min(counts)}
    if params.action == "class_averages":
        from verglas.io.mrc import read_header

        metrics["classes_kept"] = read_header(out / "class_averages.mrcs").shape[0]
    return metrics


def checks(params: Params) -> tuple[Check, ...]:
    """An empty selection is a failure."""
    return (Check("smallest_part", 1, None, "an empty selection ends every later job (CASES.md, 16)"),)


def _by_values(job: Job, table: Any) -> np.ndarray:
    import numpy as np

    from verglas.io import relion_names

    labels = relion_names.PARTICLE_COLUMNS | relion_names.MICROGRAPH_COLUMNS
    name = labels.get(job.params.select_label, job.params.select_label)
    if name not in table:
        raise InputError(
            job.inputs[job.params.select_from], f"no column {job.params.select_label}", f"It has {', '.join(table.table.columns)}"
        )
    values = np.asarray(table.column(name), dtype=np.float64)
    low, high = job.params.select_minval, job.params.select_maxval
    return (values >= (-np.inf if low is None else low)) & (values <= (np.inf if high is None else high))


def _by_numbers(job: Job, table: ParticleSet) -> np.ndarray:
    import numpy as np

    return np.isin(table.column("class_number"), _class_numbers(job.params.classes))


def _by_averages(job: Job, table: ParticleSet) -> np.ndarray:
    import numpy as np
    import torch

    from verglas.io.mrc import read_stack, write_stack
    from verglas.pictures.galleries import save_gallery
    from verglas.refine.class_selection import choose_class_averages

    classes = _read_classes(job.inputs["model"])
    stack = classes["image"][0].partition("@")[2]
    averages = read_stack(stack)
    pixel_size = table.optics.pixel_size
    scores = choose_class_averages(
        torch.from_numpy(averages), classes["occupancy"], classes["resolution"], pixel_size, job.params.mask_diameter
    )
    kept = np.flatnonzero(scores.keep)
    if not len(kept):
        raise InputError(
            job.inputs["model"], "no class average shows a particle by the rule", "Look at the averages and use --action classes"
        )
    write_stack(job.out / "class_averages.mrcs", averages[kept], pixel_size)
    order = np.argsort(-scores.occupancy)
    captions = [
        f"{'✓' if scores.keep[k] else '✗'} {k + 1}: {scores.occupancy[k]:.1%}, {scores.resolution[k]:.1f} Å, ×{scores.contrast[k]:.1f}"
        for k in order
    ]
    save_gallery(job.out / "picture_selected.png", averages[order], captions)
    job.say(f"classes kept: {', '.join(str(k + 1) for k in kept)} of {len(averages)}")
    return np.isin(table.column("class_number"), kept + 1)


def _by_volumes(job: Job, table: ParticleSet) -> np.ndarray:
    import numpy as np
    import torch

    from verglas.io.mrc import read_map, write_map
    from verglas.refine.class_selection import choose_volumes

    classes = _read_classes(job.inputs["model"])
    maps = np.stack([read_map(name)[0] for name in classes["image"]])
    pixel_size = table.optics.pixel_size
    shells = np.where(np.isfinite(classes["resolution"]), np.rint(maps.shape[-1] * pixel_size / classes["resolution"]), 0)
    keep = choose_volumes(torch.from_numpy(maps), classes["occupancy"], shells)
    best = np.flatnonzero(keep)[np.argmax(classes["occupancy"][keep])]
    write_map(job.out / "best_class.mrc", maps[best], pixel_size)
    job.say(f"classes kept: {', '.join(str(k + 1) for k in np.flatnonzero(keep))} of {len(maps)}")
    return np.isin(table.column("class_number"), np.flatnonzero(keep) + 1)


def _duplicates(job: Job, table: ParticleSet) -> np.ndarray:
    from verglas.particles.duplicates import keep_one_of_duplicates

    return keep_one_of_duplicates(table, job.params.duplicate_threshold)


_CHOOSERS = {
    "values": _by_values,
    "classes": _by_numbers,
    "class_averages": _by_averages,
    "best_class": _by_volumes,
    "duplicates": _duplicates,
}


def _read_classes(model: Path) -> dict[str, Any]:
    """Reference names, occupancies and estimated resolutions (Å, inf where there is none) of a model STAR."""
    import numpy as np

    from verglas.io.star import list_table, numbers, read_star

    frame = list_table(read_star(model), "model_classes", model)
    resolution = numbers(frame, "rlnEstimatedResolution", model)
    return {
        "image": [str(name) for name in frame["rlnReferenceImage"]],
        "occupancy": numbers(frame, "rlnClassDistribution", model),
        "resolution": np.where(resolution >= 999, np.inf, resolution),
    }


def _class_numbers(text: str) -> list[int]:
    try:
        found = [int(number) for number in text.split(",")]
    except ValueError as error:
        raise InputError("--classes", f"{text!r} is not a list of class numbers", "Write it as 1,4,7") from error
    return found


JOB = JobType(
    name="Select",
    relion_number=7,
    summary="Keep a part of a table: by value, by class (by hand or by rule), without duplicates, or split",
    examples="""
    verglas job Select --select-from micrographs --micrographs CtfFind/job003/micrographs_ctf.star \\
        --select-label rlnCtfMaxResolution --select-maxval 6
    verglas job Select --action class_averages --particles Class2D/job008/run_it025_data.star \\
        --model Class2D/job008/run_it025_model.star --mask-diameter 120
    verglas job Select --action best_class --particles Class3D/job015/run_it025_data.star \\
        --model Class3D/job015/run_it025_model.star
    verglas job Select --action duplicates --particles Extract/job012/particles.star --duplicate-threshold 30
    """,
    params=Params,
    inputs=(
        InputSpec("micrographs", NodeType.MICROGRAPHS, "Micrographs to select from", required=False),
        InputSpec("particles", NodeType.PARTICLES, "Particles to select from", required=False),
        InputSpec("model", NodeType.MODEL, "Classes to choose from (run_itNNN_model.star)", required=False),
    ),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    describe=lambda metrics: f"{metrics['rows']} rows kept",
    light=True,
)
