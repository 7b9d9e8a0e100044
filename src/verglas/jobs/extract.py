"""Extract: particle images cut from micrographs, rescaled, normalised, bright; one stack a micrograph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from verglas.errors import InputError, ItemError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobParams, JobType, Metrics, NodeType, OutputSpec, param

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from verglas.jobs.extract_sources import Source
    from verglas.particles import Micrographs, ParticleSet
    from verglas.particles.tables import OpticsGroups

_PARTICLES, _DETAILS = "particles.star", "extract.json"
_SHOWN = 60
_MEASURED = 200


class Params(JobParams):
    """Parameters of Extract."""

    box_size: int = param(..., "Box in pixels of the micrograph", label="Particle box size (pix):", flag="--extract_size", unit="px", ge=8)
    rescale: int = param(
        0, "Rescale the images to this size; 0: leave it", label="Re-scaled size (pixels):", flag="--scale", unit="px", ge=0
    )
    do_norm: bool = param(True, "Normalise the background", label="Normalize particles?", flag="--norm")
    bg_diameter: float = param(
        -1.0,
        "Diameter of the circle outside which is background, in pixels of the micrograph; -1: 0.75 of the box",
        label="Diameter background circle (pix):",
        unit="px",
    )
    do_ramp: bool = param(True, "Take off a fitted plane, not only the mean")
    white_dust: float = param(
        -1.0, "Replace pixels brighter than this many deviations; -1: none", label="Stddev for white dust removal:", flag="--white_dust"
    )
    black_dust: float = param(
        -1.0, "Replace pixels darker than this many deviations; -1: none", label="Stddev for black dust removal:", flag="--black_dust"
    )
    do_invert: bool = param(True, "Invert the contrast: particles become bright", label="Invert contrast?", flag="--invert_contrast")
    minimum_pick_score: float | None = param(None, "Least figure of merit of a pick", label="Minimum autopick FOM:")
    min_distance: float = param(0.0, "Of picks nearer than this only the best stays; 0: all stay", unit="Å", ge=0)
    edge: Literal["fill", "drop"] = param(
        "fill", "Boxes over the edge of a micrograph: fill with the nearest pixel, as RELION does, or drop them"
    )
    recenter: bool = param(
        True, "Re-extracted particles: cut around the aligned centre", label="OR: re-center refined coordinates?", flag="--recenter"
    )
    recenter_x: float = param(0.0, "Cut around this point of the reference, x", flag="--recenter_x", unit="px of the reference")
    recenter_y: float = param(0.0, "Cut around this point of the reference, y", flag="--recenter_y", unit="px of the reference")
    recenter_z: float = param(0.0, "Cut around this point of the reference, z", flag="--recenter_z", unit="px of the reference")
    reference_pixel_size: float = param(
        0.0, "Pixel size that recenter_x, y, z are in; 0: that of the particles", flag="--ref_angpix", unit="Å", ge=0
    )
    reset_offsets: bool = param(False, "Forget the origins of re-extracted particles", flag="--reset_offsets")
    ctf_of_micrographs: bool = param(
        False, "Re-extracted particles take the micrographs' CTF values, not their own", flag="--keep_ctfs_micrographs"
    )
    float16: bool = param(False, "Write half precision (RELION 3.1 cannot read it)", flag="--float16")

    @property
    def size(self) -> int:
        """Box of the images that are written, px."""
        return self.rescale or self.box_size

    @property
    def background_radius(self) -> float:
        """Radius of the particle, px of the images that are written."""
        diameter = 0.75 * self.box_size if self.bg_diameter < 0 else self.bg_diameter
        return 0.5 * diameter * self.size / self.box_size


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """The particles; their stacks lie beside, under the micrographs' paths."""
    return (OutputSpec("particles", NodeType.PARTICLES, _PARTICLES),)


def validate(job: Job) -> None:
    """Coordinates or particles; sizes that make sense; a box that fits into the micrographs; optics that agree."""
    from verglas.particles import read_micrographs

    params, inputs = job.params, job.inputs
    if (inputs["coordinates"] is None) == (inputs["particles"] is None):
        found = "neither is given" if inputs["coordinates"] is None else "both are given"
        raise InputError("--coordinates, --particles", found, "Give coordinates, or aligned particles to extract again")
    for name, value in (("box_size", params.box_size), ("rescale", params.rescale)):
        if value % 2:
            raise InputError(f"--{name.replace('_', '-')}", f"{value} px", "Give an even number of pixels")
    if params.rescale > params.box_size:
        raise InputError("--rescale", f"{params.rescale} px, the box is {params.box_size} px", "Images can only be made smaller")
    if params.do_norm and 2 * params.background_radius > params.size - 2:
        raise InputError("--bg-diameter", f"{params.bg_diameter:g} px leave no background in a box of {params.box_size} px", "Give less")
    micrographs = read_micrographs(job.inputs["micrographs"])
    _fits(micrographs, params.box_size)
    _source(job, micrographs)


def _fits(micrographs: Micrographs, box: int) -> None:
    """The first micrograph that can be read is at least as large as the box."""
    from verglas.io.picture import read_micrograph

    for name in micrographs.names():
        try:
            height, width = read_micrograph(name).shape
        except ItemError:
            continue
        if box > min(height, width):
            raise InputError("--box-size", f"{box} px do not fit into {name} of {width} x {height} px", "Give a smaller box")
        return


def _source(job: Job, micrographs: Micrographs) -> Source:
    from verglas.jobs.extract_sources import from_coordinates, from_particles
    from verglas.particles import read_particles

    if job.inputs["coordinates"] is not None:
        return from_coordinates(micrographs, job.inputs["coordinates"])
    return from_particles(micrographs, read_particles(job.inputs["particles"]), job.params)


def run(job: Job) -> Items:
    """Cut micrograph by micrograph; what is finished already is kept; join the tables."""
    from verglas.compute.device import choose_device, describe_device, use_threads
    from verglas.io.names import output_names
    from verglas.particles import read_micrographs

    use_threads(job.params.threads)
    device = choose_device(job.params.device)
    job.record["device"] = describe_device(device)
    with job.phase("read"):
        micrographs = read_micrographs(job.inputs["micrographs"])
        source = _source(job, micrographs)
    names = micrographs.names()
    optics = _image_optics(source.optics, job.params)
    stacks = output_names(names, job.out, ".mrcs")
    items, tables, lost = Items("micrographs", total=len(names)), [], 0
    with job.progress("micrographs", len(names)) as bar:
        for index, (name, stack) in enumerate(zip(names, stacks)):
            job.check_stop()
            try:
                table, left_out = _one_micrograph(job, source, index, name, stack, optics, device)
                lost += left_out
                if len(table):
                    tables.append(table)
                    items.done += 1
                else:
                    items.skip(name, table.attrs["why"])
            except ItemError as error:
                items.fail(name, error.reason)
            bar.advance()
    _finish(job, items, tables, optics, lost, source.unused)
    return items


def _one_micrograph(
    job: Job, source: Source, index: int, name: str, stack: Path, optics: OpticsGroups, device: Any
) -> tuple[pd.DataFrame, int]:
    """Its particles' table and the number of picks left out; an empty table says why in `attrs`."""
    finished = _finished(stack, job.params)
    if finished is not None:
        return finished
    rows = source.rows(index)
    if rows is None or not len(rows):
        return _nothing("no coordinate file" if rows is None else "nothing picked"), 0
    picked, image = len(rows), _read(job, name)
    pixel_size = float(source.optics.value(_pixel_column(source.optics))[rows["optics_group"].iloc[0] - 1])
    rows, why = _usable(rows, image.shape, job.params, pixel_size)
    if not len(rows):
        return _nothing(why), picked
    rows = _write_stack(job, image, rows, stack, optics, device)
    left_out = picked - len(rows)
    if not len(rows):
        return _nothing(f"none of {picked} images holds anything"), left_out
    _write_table(stack, rows, optics, left_out)
    return rows, left_out


def _nothing(why: str) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame()
    table.attrs["why"] = why
    return table


def _pixel_column(optics: OpticsGroups) -> str:
    return "micrograph_pixel_size" if "micrograph_pixel_size" in optics.table else "movie_pixel_size"


def _read(job: Job, name: str) -> np.ndarray:
    from verglas.io.picture import read_micrograph

    with job.phase("read"):
        image = read_micrograph(name)
    if image.max() == image.min():
        raise ItemError(name, "is constant: it holds no image")
    if job.params.box_size > min(image.shape):
        raise ItemError(name, f"is smaller than the box: {image.shape[1]} x {image.shape[0]} px")
    return image


def _usable(rows: pd.DataFrame, shape: tuple[int, ...], params: Params, pixel_size: float) -> tuple[pd.DataFrame, str]:
    """The rows to cut, and why there are none, if there are none."""
    import numpy as np

    from verglas.micrograph.extraction import beyond_edge, centre_inside, centre_pixels
    from verglas.micrograph.peaks import keep_separate

    why, count = "nothing picked", len(rows)
    if params.minimum_pick_score is not None and "pick_score" in rows:
        rows = rows[rows["pick_score"] >= params.minimum_pick_score]
        why = f"none of {count} picks reaches a score of {params.minimum_pick_score:g}"
    centres = centre_pixels(rows[["coordinate_x", "coordinate_y"]].to_numpy(float))
    size = (shape[0], shape[1])
    keep = centre_inside(centres, size)
    if len(rows) and not keep.any():
        why = f"all {len(rows)} picks lie outside the {size[1]} x {size[0]} px"
    if params.edge == "drop" and keep.any():
        keep &= beyond_edge(centres, size, params.box_size) == 0
        why = f"all {len(rows)} boxes reach over the edge"
    rows = rows[keep]
    if params.min_distance > 0 and len(rows):
        at = rows[["coordinate_x", "coordinate_y"]].to_numpy(float) * pixel_size
        quality = next((rows[name].to_numpy(float) for name in ("max_probability", "pick_score") if name in rows), np.zeros(len(rows)))
        rows = rows.iloc[np.sort(keep_separate(at, quality, params.min_distance))]
    return rows.reset_index(drop=True), why


def _write_stack(job: Job, image: np.ndarray, rows: pd.DataFrame, stack: Path, optics: OpticsGroups, device: Any) -> pd.DataFrame:
    """Cut, and write the sound images; the rows that they belong to, with their image names."""
    import numpy as np
    import torch

    from verglas.io.mrc import write_stack
    from verglas.micrograph.extraction import centre_pixels, particle_images

    params = job.params
    with job.phase("compute"):
        centres = centre_pixels(rows[["coordinate_x", "coordinate_y"]].to_numpy(float))
        batches = particle_images(
            torch.from_numpy(image).to(device),
            centres,
            params.box_size,
            rescale=params.size,
            invert=params.do_invert,
            normalise_radius=params.background_radius if params.do_norm else None,
            ramp=params.do_ramp,
            white_dust=params.white_dust,
            black_dust=params.black_dust,
            seed=params.random_seed,
        )
        cut = [(batch.images.cpu().numpy(), batch.sound.cpu().numpy()) for batch in batches]
    images, sound = np.concatenate([pair[0] for pair in cut]), np.concatenate([pair[1] for pair in cut])
    for x, y in centres[~sound]:
        job.warn(f"{rows['micrograph_name'].iloc[0]}: the image at {x}, {y} is constant or not a number and is left out")
    if sound.any():
        with job.phase("write"):
            pixel_size = float(optics.value("pixel_size")[rows["optics_group"].iloc[0] - 1])
            write_stack(stack, images[sound], pixel_size, "float16" if params.float16 else "float32")
    rows = rows[sound].reset_index(drop=True)
    return rows.assign(image_name=[f"{number:06d}@{stack}" for number in range(1, len(rows) + 1)])


def _image_optics(optics: OpticsGroups, params: Params) -> OpticsGroups:
    """Optics groups of the images: pixel size after rescaling, box."""
    pixel_size = optics.value(_pixel_column(optics)) * params.box_size / params.size
    return optics.with_columns(pixel_size=pixel_size, box_size=params.size, dimensionality=2)


def _table_name(stack: Path) -> Path:
    return stack.with_name(f"{stack.stem}_extract.star")


def _write_table(stack: Path, rows: pd.DataFrame, optics: OpticsGroups, left_out: int) -> None:
    from verglas.particles import ParticleSet, write_particles

    write_particles(_table_name(stack), ParticleSet(optics, rows.assign(verglasLeftOut=left_out)))


def _finished(stack: Path, params: Params) -> tuple[pd.DataFrame, int] | None:
    """The table and the number left out of a micrograph that an earlier run finished, None where its files are missing or do not agree."""
    from verglas.io.mrc import read_header
    from verglas.particles import read_particles

    if not (stack.exists() and _table_name(stack).exists()):
        return None
    try:
        rows, shape = read_particles(_table_name(stack)).table, read_header(stack).shape
    except InputError:
        return None
    if shape != (len(rows), params.size, params.size) or "verglasLeftOut" not in rows:
        return None
    return rows.drop(columns="verglasLeftOut"), int(rows["verglasLeftOut"].iloc[0])


def _finish(job: Job, items: Items, tables: list[pd.DataFrame], optics: OpticsGroups, lost: int, unused: int) -> None:
    """Write the joined table, details and pictures; nothing where there are no particles."""
    import pandas as pd

    from verglas.io.atomic import write_json
    from verglas.particles import ParticleSet, write_particles

    count = sum(map(len, tables))
    items.notes |= {"particles": count, "picks_left_out": lost, "particles_of_other_micrographs": unused}
    if lost or unused:
        job.say(f"{lost} picks left out (outside, over the edge, double, below the score, or blank); {unused} of micrographs not listed")
    if not count:
        return
    common = [name for name in tables[0] if all(name in table for table in tables)]
    joined = ParticleSet(optics, pd.concat([table[common] for table in tables], ignore_index=True))
    with job.phase("write"):
        write_particles(job.out / _PARTICLES, joined)
        write_json(job.out / _DETAILS, {"left_out": lost, "unused": unused, "micrographs": len(tables)})
        _draw(job, joined)
    job.say(f"{count} particles of {optics.value('pixel_size')[0]:.4g} Å a pixel from {len(tables)} micrographs")


def _draw(job: Job, particles: ParticleSet) -> None:
    """Some particles, evenly chosen, as they are and smoothed."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    from verglas.io.mrc import read_stack
    from verglas.pictures.galleries import save_gallery

    chosen = np.unique(np.linspace(0, len(particles) - 1, min(_SHOWN, len(particles))).astype(int))
    names = particles.column("image_name")[chosen]
    images = np.stack([read_stack(path, [int(number) - 1])[0] for number, _, path in (str(name).partition("@") for name in names)])
    sigma = max(0.5, 3.7 / float(particles.optics.value("pixel_size")[0]))
    smooth = np.stack([gaussian_filter(image, sigma) for image in images])
    save_gallery(job.out / "picture_particles.png", smooth, title=f"{len(chosen)} of {len(particles)} particles, low-passed to 20 Å")


def measure(out: Path, params: Params) -> Metrics:
    """Particles, box and pixel size by the stacks; mean and deviation of the background of a sample."""
    import numpy as np
    import torch

    from verglas.io.mrc import read_header
    from verglas.micrograph.normalisation import background_mask
    from verglas.particles import StackImages, read_particles

    particles = read_particles(out / _PARTICLES)
    images = StackImages(particles)
    sample = np.unique(np.linspace(0, len(images) - 1, min(_MEASURED, len(images))).astype(int))
    outside = images.read(sample).float()[:, background_mask(images.box, params.background_radius)]
    header = read_header(str(particles.column("image_name")[0]).partition("@")[2])
    return {
        "particles": len(particles),
        "micrographs": len(np.unique(particles.column("micrograph_name").astype(str))),
        "box_size": header.shape[-1],
        "pixel_size": round(float(header.pixel_size), 6),
        "background_mean": float(outside.mean(1).abs().max()),
        "background_deviation_low": float(outside.std(1, correction=0).min()),
        "background_deviation_high": float(outside.std(1, correction=0).max()),
        "not_finite": int((~torch.isfinite(outside)).sum()),
    }


def checks(params: Params) -> tuple[Check, ...]:
    """Particles there are, of the size asked for, and normalised as RELION's refinement expects."""
    found = [
        Check("particles", 1, None, "no particles end every later job (CASES.md, 16)"),
        Check("box_size", params.size, params.size, "the size asked for"),
        Check("not_finite", 0, 0, "one NaN poisons a whole reconstruction (CASES.md, 17)"),
    ]
    if params.do_norm and params.white_dust < 0 and params.black_dust < 0:
        source = "background of mean 0 and deviation 1 by construction (relion_preprocess --norm)"
        found += [
            Check("background_mean", 0, 0.01, source),
            Check("background_deviation_low", 0.99, 1.01, source),
            Check("background_deviation_high", 0.99, 1.01, source),
        ]
    return tuple(found)


def clean(out: Path) -> Iterator[Path]:
    """The tables of single micrographs, once they are joined."""
    return out.rglob("*_extract.star")


JOB = JobType(
    name="Extract",
    relion_number=5,
    summary="Cut particle images from micrographs, rescale and normalise them",
    examples="""
    verglas job Extract --micrographs CtfFind/job003/micrographs_ctf.star \\
        --coordinates AutoPick/job004/coords_suffix_autopick.star --box-size 144 --rescale 36
    verglas job Extract --micrographs CtfFind/job003/micrographs_ctf.star \\
        --particles Refine3D/job010/run_data.star --box-size 144 --rescale 72 --min-distance 30
    """,
    params=Params,
    inputs=(
        InputSpec("micrographs", NodeType.MICROGRAPHS, "Micrographs to cut from", flag="--i"),
        InputSpec("coordinates", NodeType.COORDINATES, "Picked coordinates (coords_suffix_….star)", required=False, flag="--coord_suffix"),
        InputSpec("particles", NodeType.PARTICLES, "Aligned particles to extract again", required=False, flag="--reextract_data_star"),
    ),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    clean=clean,
    describe=lambda metrics: f"{metrics['particles']} particles, {metrics['box_size']} px of {metrics['pixel_size']:g} Å",
)
