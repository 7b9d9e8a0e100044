"""Pictures of what RELION found: those that the same job of ours leaves, as far as its files tell what they show."""

from __future__ import annotations

from pathlib import Path


def draw(job: str, out: Path, last: int) -> None:
    """Draw the results of a job type in folder `out`; `last`: the number of its last iteration, where it is known beforehand."""
    painters = {
        "Class2D": _classes_2d,
        "Class3D": _classes_3d,
        "InitialModel": _first_map,
        "Refine3D": _refinement,
        "MaskCreate": _mask,
        "PostProcess": _post_process,
    }
    painters[job](out, last)


def _classes_2d(out: Path, last: int) -> None:
    from verglas.jobs.class2d import draw_averages

    draw_averages(out, last)


def _classes_3d(out: Path, last: int) -> None:
    import numpy as np

    from verglas.io.mrc import read_map
    from verglas.jobs.class2d import read_classes
    from verglas.jobs.class3d import draw_classes
    from verglas.particles import read_particles
    from verglas.refine.output import map_names

    stem = out / f"run_it{last:03d}"
    shares, _ = read_classes(Path(f"{stem}_model.star"))
    maps, pixel_sizes = zip(*(read_map(name) for name in map_names(str(stem), len(shares))))
    draw_classes(out, np.stack(maps), shares.tolist(), pixel_sizes[0], read_particles(f"{stem}_data.star").angles())


def _first_map(out: Path, last: int) -> None:
    from verglas.relion.measure import MAP

    _draw_map(out, MAP, "initial model")


def _refinement(out: Path, last: int) -> None:
    import torch

    from verglas.io.mrc import read_map
    from verglas.jobs.refine3d import draw_refined
    from verglas.particles import read_particles
    from verglas.volume.fsc import fsc, resolution

    half1, half2 = (torch.from_numpy(read_map(out / f"run_half{half}_class001_unfil.mrc")[0]) for half in (1, 2))
    density, pixel_size = read_map(out / "run_class001.mrc")
    curve = fsc(half1, half2)
    reached = resolution(curve, len(density), pixel_size)
    draw_refined(out, density, pixel_size, {"unmasked": curve.numpy()}, reached, read_particles(out / "run_data.star").angles())


def _mask(out: Path, last: int) -> None:
    _draw_map(out, "mask.mrc", "the mask", 0.5)


def _post_process(out: Path, last: int) -> None:
    from verglas.io.star import list_table, numbers, read_star
    from verglas.pictures.curves import draw_fsc

    path = out / "postprocess.star"
    blocks = read_star(path)
    table, resolution = list_table(blocks, "fsc", path), float(str(dict(blocks["general"])["rlnFinalResolution"]))
    labels = {
        "corrected": "rlnFourierShellCorrelationCorrected",
        "masked": "rlnFourierShellCorrelationMaskedMaps",
        "unmasked": "rlnFourierShellCorrelationUnmaskedMaps",
        "phase-randomised": "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps",
    }
    curves = {name: numbers(table, label, path) for name, label in labels.items()}
    size = 2 * (len(table) - 1)
    pixel_size = 1 / (size * float(numbers(table, "rlnResolution", path)[1]))
    draw_fsc(out / "picture_fsc.png", curves, size, pixel_size, resolution, f"{resolution:.2f} Å at 0.143")
    _draw_map(out, "postprocess_masked.mrc", f"{resolution:.2f} Å")


def _draw_map(out: Path, name: str, title: str = "", level: float | None = None) -> None:
    from verglas.io.mrc import read_map
    from verglas.pictures.maps import draw_slices, draw_surface

    density, pixel_size = read_map(out / name)
    draw_slices(out / "picture_slices.png", density, pixel_size, title=title)
    draw_surface(out / "picture_surface.png", density, level, title)
