"""The files of an InitialModel run: RELION's names and tables, and what a run that goes on reads back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from verglas.particles import ParticleSet
    from verglas.refine.assignments import Assignments
    from verglas.refine.initial_model import InitialModel, State


def stem(iteration: int) -> str:
    """RELION's name of an iteration's files, without folder."""
    return f"run_it{iteration:03d}"


def write_state(folder: Path, state: State, model: InitialModel) -> None:
    """Maps, model and, last, the optimiser of an iteration: without the last it does not count as written."""
    from verglas.io.mrc import write_map
    from verglas.io.star import write_star

    name = stem(state.iteration)
    for number, volume in enumerate(state.maps.cpu().numpy(), start=1):
        write_map(folder / f"{name}_class{number:03d}.mrc", volume, model.seen.pixel_size)
    write_star(folder / f"{name}_model.star", _model_tables(folder / name, state, model))
    write_star(folder / f"{name}_optimiser.star", {"optimiser_general": _optimiser(folder / name, state, model)})


def last_state(folder: Path, model: InitialModel, like: State) -> State | None:
    """The last whole iteration in `folder` that was made with the model's settings, on the device of `like`; None without one."""
    import torch

    from verglas.io.mrc import read_map
    from verglas.io.star import list_table, numbers, read_star
    from verglas.refine.initial_model import State

    for iteration in range(model.settings.iterations, 0, -1):
        name = folder / stem(iteration)
        optimiser = name.with_name(f"{name.name}_optimiser.star")
        if not optimiser.exists() or not _same_settings(dict(read_star(optimiser)["optimiser_general"]), name, like, model):
            continue
        path = name.with_name(f"{name.name}_model.star")
        blocks = read_star(path)
        general = {label: str(value) for label, value in dict(blocks["model_general"]).items()}
        maps = [read_map(f"{name}_class{number:03d}.mrc")[0] for number in range(1, int(general["rlnNrClasses"]) + 1)]
        shares = torch.tensor(numbers(list_table(blocks, "model_classes", path), "rlnClassDistribution", path), dtype=torch.float32)
        density = torch.stack([torch.from_numpy(volume) for volume in maps]).to(like.maps)
        return State(iteration, density, shares, float(general["rlnLogLikelihood"]), float(general["rlnAveragePmax"]))
    return None


def _same_settings(written: dict[Any, Any], name: Path, like: State, model: InitialModel) -> bool:
    """Whether an optimiser table was written under the model's settings; where the files lie does not matter."""
    wanted = _optimiser(name, like, model)
    ours = {
        label: value for label, value in wanted.items() if label not in ("rlnOutputRootName", "rlnModelStarFile", "rlnCurrentIteration")
    }
    return all(str(written.get(label)) == str(value) or _equal_numbers(written.get(label), value) for label, value in ours.items())


def _equal_numbers(text: Any, value: Any) -> bool:
    return not isinstance(value, str) and text is not None and abs(float(text) - value) <= 1e-6 * abs(value)


def write_particles_of(path: Path, particles: ParticleSet, rows: torch.Tensor, found: Assignments) -> None:
    """The particles `rows` with the poses, shifts and classes that were found, as RELION's `_data.star`."""
    import numpy as np

    from verglas.particles import write_particles

    at = rows.cpu()
    _, group = np.unique(particles.column("micrograph_name", "all").astype(str), return_inverse=True)
    angles, origins = found.angles().cpu().numpy(), found.origins.double().cpu().numpy()
    columns: dict[str, Any] = {
        "group_number": group + 1,
        "rot": angles[:, 0],
        "tilt": angles[:, 1],
        "psi": angles[:, 2],
        "origin_x": origins[:, 0],
        "origin_y": origins[:, 1],
        "class_number": found.classes.cpu().numpy() + 1,
        "norm_correction": found.norm.cpu().numpy().astype(float),
        "log_likelihood": found.log_likelihood.cpu().numpy().astype(float),
        "max_probability": found.max_probability.cpu().numpy().astype(float),
        "significant_samples": found.significant.cpu().numpy(),
    }
    write_particles(path, particles.with_columns(**columns).subset(at.numpy()))


def write_starts(path: Path, rows: Sequence[dict[str, Any]], kept: float) -> None:
    """The table of starts: seed, mean log-likelihood gained, that of the spherical average, agreement with the best (Å).

    And, as a table of its own, to what resolution (Å) the refinement of the best has `kept` its shape.
    """
    import pandas as pd

    from verglas.io.star import write_star

    write_star(path, {"starts": pd.DataFrame(list(rows)), "refined": {"shape_kept": kept}})


def _model_tables(name: Path, state: State, model: InitialModel) -> dict[str, Any]:
    import numpy as np
    import pandas as pd

    seen, stage = model.seen, model.stage(max(1, state.iteration))
    classes, shells = len(state.maps), np.arange(seen.shells)
    extent = seen.box * seen.pixel_size
    general = {
        "rlnReferenceDimensionality": 3,
        "rlnDataDimensionality": 2,
        "rlnOriginalImageSize": seen.box,
        "rlnCurrentResolution": stage.resolution,
        "rlnCurrentImageSize": min(seen.box, 2 * stage.shell + 2),
        "rlnPaddingFactor": 2.0,
        "rlnPixelSize": seen.pixel_size,
        "rlnNrClasses": classes,
        "rlnNrGroups": len(seen.micrographs),
        "rlnLogLikelihood": float(state.log_likelihood),
        "rlnAveragePmax": float(state.max_probability),
    }
    table = pd.DataFrame(
        {
            "rlnReferenceImage": [f"{name}_class{number:03d}.mrc" for number in range(1, classes + 1)],
            "rlnClassDistribution": state.shares.double().numpy(),
            "rlnEstimatedResolution": stage.resolution,
        }
    )
    groups = pd.DataFrame(
        {
            "rlnGroupNumber": np.arange(1, len(seen.micrographs) + 1),
            "rlnGroupName": seen.micrographs,
            "rlnGroupNrParticles": np.bincount(seen.scale_group.cpu().numpy(), minlength=len(seen.micrographs)),
            "rlnGroupScaleCorrection": 1.0,
        }
    )
    tables: dict[str, Any] = {"model_general": general, "model_classes": table, "model_groups": groups}
    # RELION's transforms are divided by the number of pixels
    noise = model.noise.double().cpu().numpy() / seen.box**4
    for group, spectrum in enumerate(noise, start=1):
        columns = {"rlnSpectralIndex": shells, "rlnResolution": shells / extent, "rlnSigma2Noise": spectrum}
        tables[f"model_optics_group_{group}"] = pd.DataFrame(columns)
    return tables


def _optimiser(name: Path, state: State, model: InitialModel) -> dict[str, Any]:
    settings = model.settings
    return {
        "rlnOutputRootName": str(name).rpartition("_it")[0],
        "rlnModelStarFile": f"{name}_model.star",
        "rlnCurrentIteration": state.iteration,
        "rlnNumberOfIterations": settings.iterations,
        "rlnRandomSeed": settings.seed,
        "rlnParticleDiameter": settings.mask_diameter,
        "rlnSymmetryGroup": settings.symmetry,
        "rlnDoStochasticGradientDescent": 1,
        "rlnSgdInitialResolution": settings.ini_resolution,
        "rlnSgdFinalResolution": settings.fin_resolution,
        "rlnSgdInitialSubset": settings.ini_batch,
        "rlnSgdFinalSubset": settings.fin_batch,
        "verglasAngularSpacing": settings.angle,
        "verglasOffsetRange": settings.offset_range,
        "verglasOffsetStep": settings.offset_step,
        "verglasClasses": settings.classes,
        "verglasParticles": len(model.seen),
    }
