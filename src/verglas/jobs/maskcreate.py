"""MaskCreate: a soft mask around the density of a map, by RELION's rule; its true share of the box is measured and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from verglas.errors import InputError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobParams, JobType, Metrics, NodeType, OutputSpec, param

if TYPE_CHECKING:
    import torch

MASK = "mask.mrc"
_DETAILS = "mask.json"


class Params(JobParams):
    """Parameters of MaskCreate."""

    lowpass_filter: float = param(
        15.0, "Low-pass the map before the threshold, 0 for none", label="Lowpass filter map (A)", flag="--lowpass", unit="Å", ge=0
    )
    inimask_threshold: float | None = param(
        None,
        "Density of the surface; left out, it is found: by molecular_weight if given, else by Otsu's rule",
        label="Initial binarisation threshold:",
        flag="--ini_threshold",
    )
    molecular_weight: float = param(
        0.0, "Mass of the particle, for the automatic threshold and for the check; 0: unknown", unit="kDa", ge=0
    )
    extend_inimask: float = param(
        3.0, "Grow the mask by this much", label="Extend binary map this many pixels:", flag="--extend_inimask", unit="px"
    )
    width_mask_edge: float = param(
        3.0, "Width of the soft edge", label="Add a soft-edge of this many pixels:", flag="--width_soft_edge", unit="px", ge=0
    )


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """The mask."""
    return (OutputSpec("mask", NodeType.MASK, MASK),)


def run(job: Job) -> Items:
    """Read the map, find the threshold where it isn't given, write mask and pictures."""
    import torch

    from verglas.io.atomic import write_json
    from verglas.io.mrc import read_map, write_map
    from verglas.pictures.maps import draw_slices, draw_surface
    from verglas.volume.filters import lowpass
    from verglas.volume.masks import solvent_mask

    params = job.params
    with job.phase("read"):
        array, pixel_size = read_map(job.inputs["map"])
        density = torch.from_numpy(array)
    with job.phase("compute"):
        smooth = lowpass(density, pixel_size, params.lowpass_filter) if params.lowpass_filter > 0 else density
        threshold, rule = _threshold(smooth, pixel_size, params)
        mask = solvent_mask(
            smooth, pixel_size, threshold=threshold, lowpass_resolution=0, extend=params.extend_inimask, edge=params.width_mask_edge
        )
    job.say(f"threshold {threshold:.5g} ({rule})")
    with job.phase("write"):
        draw_slices(job.out / "picture_slices.png", array, pixel_size, mask.numpy(), f"mask at threshold {threshold:.4g} ({rule})")
        draw_surface(job.out / "picture_surface.png", mask.numpy(), 0.5, "surface of the mask")
        write_json(job.out / _DETAILS, {"threshold": threshold, "rule": rule, "command": _relion_equivalent(params, threshold)})
        write_map(job.out / MASK, mask.numpy(), pixel_size)
    return Items("maps", total=1, done=1)


def _threshold(smooth: torch.Tensor, pixel_size: float, params: Params) -> tuple[float, str]:
    """The density of the surface and the rule that it came from."""
    from verglas.volume.masks import otsu_threshold, threshold_for_mass

    if params.inimask_threshold is not None:
        return params.inimask_threshold, "given"
    if params.molecular_weight > 0:
        return threshold_for_mass(smooth, pixel_size, params.molecular_weight), f"volume of {params.molecular_weight:g} kDa of protein"
    return otsu_threshold(smooth), "Otsu's rule"


def _relion_equivalent(params: Params, threshold: float) -> str:
    return (
        f"relion_mask_create --lowpass {params.lowpass_filter:g} --ini_threshold {threshold:.6g} "
        f"--extend_inimask {params.extend_inimask:g} --width_soft_edge {params.width_mask_edge:g}"
    )


def validate(job: Job) -> None:
    """A shrinking mask may not be asked for together with a mass: the mass says how large it is."""
    if job.params.extend_inimask < 0 and job.params.molecular_weight > 0 and job.params.inimask_threshold is None:
        raise InputError("--extend-inimask", "is negative, the mask would be smaller than the protein", "Give 0 or more, or a threshold")


def measure(out: Path, params: Params) -> Metrics:
    """The mask's share of the box (voxels of at least ½), its range, and its volume by that of the protein."""
    import json

    from verglas.io.mrc import read_map
    from verglas.volume.masks import PROTEIN_VOLUME

    mask, pixel_size = read_map(out / MASK)
    inside = int((mask >= 0.5).sum())
    details = json.loads((out / _DETAILS).read_text())
    found: Metrics = {
        "mask_share": inside / mask.size,
        "mask_volume": inside * pixel_size**3,
        "mask_low": float(mask.min()),
        "mask_high": float(mask.max()),
        "threshold": details["threshold"],
    }
    if params.molecular_weight > 0:
        found["protein_volumes"] = inside * pixel_size**3 / (1000 * params.molecular_weight * PROTEIN_VOLUME)
    return found


def checks(params: Params) -> tuple[Check, ...]:
    """A mask is between 0 and 1 and holds a particle, not a speck nor the box."""
    found = [
        Check("mask_low", -1e-6, 1e-6, "a solvent mask is 0 in the solvent"),
        Check("mask_high", 1 - 1e-6, 1 + 1e-6, "and 1 on the particle"),
        Check("mask_share", 0.005, 0.45, "a sphere a fifth of the box across is 0.4 % of it, the largest that fits 52 %"),
    ]
    if params.molecular_weight > 0:
        found.append(Check("protein_volumes", 1, 12, "the protein's own volume (1.23 Å³ a dalton: Harpaz et al. 1994) and a rim around it"))
    return tuple(found)


JOB = JobType(
    name="MaskCreate",
    relion_number=12,
    summary="Make a soft mask around a map's density",
    examples="""
    verglas job MaskCreate --map Refine3D/job019/run_class001.mrc --molecular-weight 157
    verglas job MaskCreate --map map.mrc --inimask-threshold 0.012 --extend-inimask 3 --width-mask-edge 6 --out mask
    """,
    params=Params,
    inputs=(InputSpec("map", NodeType.MAP, "Map to make the mask from", flag="--i"),),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    describe=lambda metrics: f"{100 * float(metrics['mask_share'] or 0):.2f} % of the box",
)
