"""What is measured of RELION's files where they are not named or made up as ours: the same figures, by the same rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from verglas.jobs.declaration import Check, JobType, Metrics

MAP = "initial_model.mrc"
_JUDGED = 500  # particles that a first map is judged by, as with ours
_NOT_OF_RELION = ("agreement", "shape_kept")  # RELION makes one start, and writes nothing of what it was before


def measure_of(declared: JobType, last: int) -> Callable[[Path, Any], Metrics]:
    """The measurement of RELION's files for a declared job; `last` is the number of its last iteration, where it is known."""
    if declared.name == "InitialModel":
        return lambda out, params: _initial_model(out, params, last)
    if declared.name == "PostProcess":
        return _postprocess
    return declared.measure


def checks_of(declared: JobType) -> Callable[[Any], tuple[Check, ...]]:
    """The declared checks, without those that RELION's files say nothing for; it spreads a first map's probability over far more poses."""
    if declared.name == "Class3D":  # RELION limits what is compared: its maps, and what it says of them, go on beyond that
        return lambda params: tuple(replace(c, low=0.1) if c.metric == "best_resolution" else c for c in declared.checks(params))
    if declared.name != "InitialModel":
        return declared.checks
    other = {"max_probability": Check("max_probability", 0.0, 1.0, "a probability, over some 100,000 oversampled poses")}
    return lambda params: tuple(other.get(c.metric, c) for c in declared.checks(params) if c.metric not in _NOT_OF_RELION)


def _initial_model(out: Path, params: Any, last: int) -> Metrics:
    """How well the particles fit the map, by our likelihood, as for our own maps."""
    from verglas.io.mrc import read_map
    from verglas.particles import read_particles

    everything = read_particles(out / f"run_it{last:03d}_data.star")
    drawn = everything.subset((everything.column("significant_samples") > 0).nonzero()[0])
    gain, sphere = _gain(drawn, out / f"run_it{last:03d}", params)
    return {
        "starts": 1,
        "log_likelihood": gain,
        "gain_over_sphere": gain - sphere,
        "max_probability": float(drawn.column("max_probability").astype(float).mean()),
        "items_out": len(drawn),
        "map_deviation": float(read_map(out / MAP)[0].std()),
    }


def _gain(drawn: Any, stem: Path, params: Any) -> tuple[float, float]:
    """Mean log-likelihood that particles gain by RELION's maps, and by the maps' spherical averages."""
    import torch

    from verglas.io.mrc import read_map
    from verglas.jobs.class2d import read_classes
    from verglas.jobs.initialmodel_starts import settings_of
    from verglas.particles.images import StackImages
    from verglas.refine.initial_model import InitialModel, State, spherical
    from verglas.refine.observations import Observations

    particles = drawn.without_unused_optics()
    seen = Observations(
        particles,
        StackImages(particles),
        mask_diameter=params.mask_diameter,
        device=torch.device("cpu"),
        correct_ctf=params.do_ctf_correction,
        intact_until_first_peak=params.ctf_intact_first_peak,
    )
    model = InitialModel(seen, settings_of(params, 0))
    maps = [torch.from_numpy(read_map(f"{stem}_class{k:03d}.mrc")[0]) for k in range(1, params.classes + 1)]
    shares = torch.tensor(read_classes(Path(f"{stem}_model.star"))[0].tolist())
    state, rows = State(model.settings.iterations, torch.stack(maps), shares), model.sample(_JUDGED)
    return model.mean_log_likelihood(state, rows), model.mean_log_likelihood(spherical(state), rows)


def _postprocess(out: Path, params: Any) -> Metrics:
    """What postprocess.star says, with the mask's true share of the box from the mask that it names."""
    import numpy as np

    from verglas.io.mrc import read_map
    from verglas.io.star import list_table, numbers, read_star
    from verglas.volume.fsc import corrected_at

    path = out / "postprocess.star"
    blocks = read_star(path)
    general = {label: str(value) for label, value in dict(blocks["general"]).items()}
    curves = list_table(blocks, "fsc", path)
    density, pixel_size = read_map(out / "postprocess.mrc", params.angpix)
    resolution = float(general["rlnFinalResolution"])
    randomised_from = float(general["rlnRandomiseFrom"])
    shell, first = (round(density.shape[-1] * pixel_size / each) for each in (resolution, randomised_from))
    random = numbers(curves, "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps", path)
    mask, _ = read_map(general["rlnMaskName"])
    return {
        "resolution": resolution,
        "shell": shell,
        "bfactor": float(general["rlnBfactorUsedForSharpening"]),
        "mask_share": float((mask >= 0.5).mean()),
        "randomised_from": randomised_from,
        "random_fsc_at_resolution": float(random[shell]) if corrected_at(shell, first) else 0.0,
        "resolution_by_nyquist": resolution / (2 * pixel_size),
        "map_deviation": float(np.std(density)),
    }
