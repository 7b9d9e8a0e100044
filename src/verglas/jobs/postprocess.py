"""PostProcess: the half maps' resolution, corrected for the mask, and their mean sharpened and filtered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from verglas.errors import InputError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobParams, JobType, Metrics, NodeType, OutputSpec, param

if TYPE_CHECKING:
    import torch

    from verglas.volume.postprocess import PostProcessed

STAR = "postprocess.star"


class Params(JobParams):
    """Parameters of PostProcess."""

    angpix: float | None = param(
        None, "Pixel size, where the header's is wrong", label="Calibrated pixel size (A)", flag="--angpix", unit="Å", gt=0
    )
    do_auto_bfac: bool = param(True, "Sharpen by the Guinier plot", label="Estimate B-factor automatically?", flag="--auto_bfac")
    autob_lowres: float = param(
        10.0, "Low-resolution end of the fit", label="Lowest resolution for auto-B fit (A):", flag="--autob_lowres", unit="Å", gt=0
    )
    autob_highres: float = param(0.0, "High-resolution end of the fit, 0: the map's resolution", flag="--autob_highres", unit="Å", ge=0)
    adhoc_bfac: float | None = param(
        None, "Use this B-factor instead; negative sharpens", label="User-provided B-factor:", flag="--adhoc_bfac", unit="Å²"
    )
    fn_mtf: str | None = param(None, "MTF of the detector, a STAR file", label="MTF of the detector (STAR file)", flag="--mtf")
    mtf_angpix: float | None = param(
        None, "Pixel of the detector", label="Original detector pixel size:", flag="--mtf_angpix", unit="Å", gt=0
    )
    do_skip_fsc_weighting: bool = param(False, "Leave out the FSC weights", label="Skip FSC-weighting?", flag="--skip_fsc_weighting")
    low_pass: float | None = param(
        None,
        "Low-pass of the final map; left out: its resolution, 0: none",
        label="Ad-hoc low-pass filter (A):",
        flag="--low_pass",
        unit="Å",
        ge=0,
    )
    model_bfactor: float = param(100.0, "B-factor of the model's atoms in the comparison with it", unit="Å²", ge=0)
    model_assembly: str | None = param(None, "Biological assembly of the model to take, such as 1; left out: its atoms as they are")
    place_model: bool = param(True, "Search for the model's place in the map; otherwise it is taken as it lies, from the map's corner")


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """Sharpened map, the same masked, and the curves."""
    return (
        OutputSpec("map", NodeType.FINAL_MAP, "postprocess.mrc"),
        OutputSpec("masked", NodeType.FINAL_MAP, "postprocess_masked.mrc"),
        OutputSpec("star", NodeType.POSTPROCESS, STAR),
    )


def half_2_of(half1: Path) -> Path:
    """The other half map by name, as RELION finds it. Raises InputError where the name holds no `half1`."""
    if "half1" not in half1.name:
        raise InputError(half1, "has no 'half1' in its name, so the other half cannot be found by it", "Give it with --half2")
    return half1.with_name(half1.name.replace("half1", "half2"))


def validate(job: Job) -> None:
    """The second half map exists and is not the first; a B-factor is given where none is to be found."""
    half1 = Path(job.inputs["half1"])
    half2 = Path(job.inputs["half2"] or half_2_of(half1))
    if not half2.exists():
        raise InputError(half2, "not found; it is the second half map", "Give it with --half2")
    if half2.resolve() == half1.resolve():
        raise InputError("--half2", "is the same file as the first half map", "Give the other half")
    if not job.params.do_auto_bfac and job.params.adhoc_bfac is None:
        raise InputError("--adhoc-bfac", "not given, and the B-factor is not to be found automatically", "Give one (0 for none)")


def run(job: Job) -> Items:
    """Read, compute, write maps, curves and pictures; compare with the model where one is given."""
    import torch

    from verglas.io.mrc import read_map, write_map
    from verglas.jobs.postprocess_star import write_postprocess
    from verglas.volume.postprocess import postprocess

    params, inputs = job.params, job.inputs
    half1 = Path(inputs["half1"])
    half2 = Path(inputs["half2"] or half_2_of(half1))
    with job.phase("read"):
        arrays = [read_map(path, params.angpix) for path in (half1, half2, inputs["mask"])]
        first, second, mask = (torch.from_numpy(array) for array, _ in arrays)
        pixel_size = _common_pixel_size([half1, half2, inputs["mask"]], [pixel for _, pixel in arrays])
        mtf = _read_mtf(params.fn_mtf)
    with job.phase("compute"):
        result = postprocess(
            first,
            second,
            mask,
            pixel_size,
            bfactor=params.adhoc_bfac,
            fit_lowest=params.autob_lowres,
            fit_highest=params.autob_highres,
            mtf=mtf,
            mtf_pixel_size=params.mtf_angpix,
            fsc_weighting=not params.do_skip_fsc_weighting,
            lowpass=params.low_pass,
            seed=params.random_seed,
        )
        model = _against_model(job, result, mask, pixel_size)
    if params.adhoc_bfac is None and result.guinier.slope == 0:
        job.warn(f"not sharpened: the map ends before {params.autob_lowres:g} Å (--autob-lowres), where a B-factor could be fitted")
    job.say(f"mask {100 * result.mask_share:.2f} % of the box")  # the resolution is told with the verdict, if it is one to be told
    with job.phase("write"):
        _draw(job.out, result, mask, pixel_size, model)
        write_map(job.out / "postprocess.mrc", result.map.numpy(), pixel_size)
        write_map(job.out / "postprocess_masked.mrc", result.masked_map.numpy(), pixel_size)
        write_postprocess(job.out / STAR, result, pixel_size, [half1, half2, inputs["mask"]], params.fn_mtf, model)
    return Items("maps", total=1, done=1)


def _common_pixel_size(paths: list[Path], sizes: list[float]) -> float:
    for path, size in zip(paths, sizes, strict=True):
        if abs(size - sizes[0]) > 1e-3 * sizes[0]:
            raise InputError(path, f"its pixel is {size:g} Å, that of {paths[0]} {sizes[0]:g} Å", "Give maps of one grid, or --angpix")
    return sizes[0]


def _read_mtf(path: str | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    if path is None:
        return None
    import torch

    from verglas.io.mtf import read_mtf

    frequency, value = read_mtf(path)
    return torch.tensor(frequency), torch.tensor(value)  # copies: a table's columns are read-only


def _against_model(job: Job, result: PostProcessed, mask: torch.Tensor, pixel_size: float) -> torch.Tensor | None:
    """FSC [shells] of the masked map with the density of the atomic model, or None without a model."""
    if job.inputs["model"] is None:
        return None
    import torch
    from gemmi import Element

    from verglas.io.atoms import read_atoms
    from verglas.volume.align import align_maps
    from verglas.volume.atoms import density_from_atoms
    from verglas.volume.fsc import fsc

    atoms = read_atoms(job.inputs["model"], assembly=job.params.model_assembly)
    place, size = torch.as_tensor(atoms.position, dtype=torch.float64), len(mask)
    weight = torch.tensor([Element(symbol).atomic_number for symbol in atoms.element]) * torch.as_tensor(atoms.occupancy)
    place = place - (place.mean(dim=0) if job.params.place_model else pixel_size * (size // 2))
    density = density_from_atoms(place, weight, size, pixel_size, job.params.model_bfactor)
    if job.params.place_model:
        found = align_maps(density, result.masked_map, try_mirror=False, max_shell=max(8, result.curves.shell))
        job.say(f"model placed with a mean correlation of {found.correlation:.2f}")
        density = found.apply(density)
    return fsc(density * mask, result.masked_map)


def _draw(out: Path, result: PostProcessed, mask: torch.Tensor, pixel_size: float, model: torch.Tensor | None) -> None:
    from verglas.pictures.curves import draw_fsc, draw_guinier
    from verglas.pictures.maps import draw_slices, draw_surface

    curves, guinier = result.curves, result.guinier
    named = {"corrected": curves.corrected, "masked": curves.masked, "unmasked": curves.unmasked, "phase-randomised": curves.randomised}
    named |= {} if model is None else {"against model": model}
    title = f"{curves.resolution:.2f} Å at 0.143, mask {100 * result.mask_share:.1f} % of the box"
    arrays = {name: curve.numpy() for name, curve in named.items()}
    draw_fsc(out / "picture_fsc.png", arrays, len(mask), pixel_size, curves.resolution, title)
    logs = {"mean map": guinier.original.numpy(), "FSC-weighted": guinier.weighted.numpy(), "sharpened": guinier.sharpened.numpy()}
    line = (guinier.slope, guinier.intercept, guinier.fit_low, guinier.fit_high) if guinier.slope else None
    draw_guinier(out / "picture_guinier.png", guinier.squared.numpy(), logs, line, f"B = {result.bfactor:.0f} Å²")
    draw_slices(out / "picture_slices.png", result.map.numpy(), pixel_size, mask.numpy(), title)
    draw_surface(out / "picture_surface.png", result.masked_map.numpy(), title=title)


def measure(out: Path, params: Params) -> Metrics:
    """What postprocess.star says, and whether its map holds anything."""
    import numpy as np

    from verglas.io.mrc import read_map
    from verglas.jobs.postprocess_star import read_postprocess

    found: Metrics = dict(read_postprocess(out / STAR))
    density, pixel_size = read_map(out / "postprocess.mrc")
    return found | {"resolution_by_nyquist": float(found["resolution"] or 0) / (2 * pixel_size), "map_deviation": float(np.std(density))}


def checks(params: Params) -> tuple[Check, ...]:
    """The resolution is one that the maps can have, and not the mask's work."""
    return (
        Check("resolution_by_nyquist", 1.0, 20.0, "Nyquist; past ten times that, the box holds a blob"),
        Check("random_fsc_at_resolution", None, 0.1, "RELION warns of a mask that is too sharp above 0.1"),
        Check("mask_share", 0.005, 0.45, "a sphere a fifth of the box across is 0.4 % of it, the largest that fits 52 %"),
        Check("bfactor", -1000.0, 100.0, "Rosenthal & Henderson 2003: -500 Å² in images of their time; far past it the fit has failed"),
        Check("map_deviation", 1e-12, None, "an empty map has no resolution"),
    )


JOB = JobType(
    name="PostProcess",
    relion_number=15,
    summary="Measure the resolution of two half maps, sharpen and filter their mean",
    examples="""
    verglas job PostProcess --half1 Refine3D/job019/run_half1_class001_unfil.mrc --mask MaskCreate/job020/mask.mrc
    verglas job PostProcess --half1 run_half1_class001_unfil.mrc --mask mask.mrc --adhoc-bfac -120 --model 1ado.cif --out pp
    verglas job PostProcess --half1 half1.mrc --half2 other.mrc --mask mask.mrc --fn-mtf mtf.star --mtf-angpix 0.7
    """,
    params=Params,
    inputs=(
        InputSpec("half1", NodeType.HALF_MAP, "First half map, unfiltered", flag="--i"),
        InputSpec("half2", NodeType.HALF_MAP, "Second half map; left out, found by the first one's name", required=False, flag="--i2"),
        InputSpec("mask", NodeType.MASK, "Solvent mask", flag="--mask"),
        InputSpec("model", NodeType.MAP, "Atomic model (PDB or mmCIF) to compare the map with", required=False),
    ),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    describe=lambda metrics: f"{metrics['resolution']:.2f} Å, B {metrics['bfactor']:.0f} Å²",
)
