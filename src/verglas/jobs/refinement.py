"""What the jobs that run the likelihood engine share: parameters, reading, checks before the start, going on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from verglas.errors import InputError
from verglas.jobs.declaration import Items, Job, JobParams, param

if TYPE_CHECKING:
    import numpy as np
    import torch

    from verglas.particles import ParticleSet
    from verglas.refine.observations import Observations
    from verglas.refine.output import Output
    from verglas.refine.settings import Settings
    from verglas.refine.state import State
    from verglas.refine.writing import Act, Writer

_PRELOAD_BYTES = 4 << 30
_MOST_PRELOADED = 0.8  # of the free memory
_LEAST_OF_RANK = 10  # particles: then each rank has some of either half
_MISFIT = 0.15  # of a reference to its symmetry: maps on their axes have a few hundredths


class ImageParams(JobParams):
    """Parameters of every job that compares images with references: how the images are taken, and kept."""

    mask_diameter: float = param(
        ..., "Diameter of the soft mask on the particles", label="Mask diameter (A):", flag="--particle_diameter", unit="Å", gt=0
    )
    do_ctf_correction: bool = param(True, "Correct for the CTF", label="Do CTF-correction?", flag="--ctf")
    ctf_intact_first_peak: bool = param(
        False, "Leave the CTF out up to its first peak", label="Ignore CTFs until first peak?", flag="--ctf_intact_first_peak"
    )
    preload: bool = param(
        False,
        "Keep all images in memory, also where they take more than 4 GiB",
        label="Pre-read all particles into RAM?",
        flag="--preread_images",
    )
    coarse_precision: Literal["auto", "float32", "bf16"] = param(
        "auto", "Numbers in the coarse comparison; auto takes bf16 where the processor is made for it"
    )


class EngineParams(ImageParams):
    """Parameters that every classification and refinement has."""

    offset_range: float = param(
        5.0, "Search for the centre this far", label="Offset search range (pix):", flag="--offset_range", unit="px", ge=0
    )
    offset_step: float = param(
        2.0, "Step of that search, before oversampling", label="Offset search step (pix):", flag="--offset_step", unit="px", gt=0
    )
    do_norm_correction: bool = param(True, "Correct for the particles' strength", flag="--norm")
    do_scale_correction: bool = param(True, "Correct for the micrographs' intensity scale", flag="--scale")
    pad: Literal[1, 2] = param(2, "Padding of the references in Fourier interpolation", flag="--pad")


@dataclass(frozen=True)
class Prepared:
    """Particles in the engine's order (`reading_order`), the place of each row of the file, and the account of items.

    `writer`: the process that writes the files, where there is one.
    """

    seen: Observations
    particles: ParticleSet
    order: np.ndarray
    items: Items
    device: torch.device
    writer: Writer | None


def check_particles(job: Job, least: int) -> ParticleSet:
    """The particles of the job's input, after the checks that need no image. Raises InputError."""
    from verglas.particles import ctf_parameters, read_particles
    from verglas.refine.observations import check_mask_diameter

    path = job.inputs["particles"]
    particles = read_particles(path).without_unused_optics()
    check_one_grid(particles, path)
    if len(particles) < least:
        raise InputError(path, f"holds {len(particles)} particles, {least} are needed", "Give more particles or fewer classes")
    check_mask_diameter(job.params.mask_diameter, particles.optics.box_size, particles.optics.pixel_size)
    if job.params.do_ctf_correction:
        ctf_parameters(particles)
    return particles


def check_one_grid(particles: ParticleSet, path: Path) -> None:
    """Raise InputError where the optics groups have images of different boxes or pixel sizes."""
    boxes, pixels = particles.optics.value("box_size"), particles.optics.value("pixel_size")
    if len(set(boxes.tolist())) > 1 or len(set(pixels.round(4).tolist())) > 1:
        found = ", ".join(f"{box:g} px of {pixel:g} Å" for box, pixel in zip(boxes, pixels))
        raise InputError(path, f"optics groups have different images: {found}", "Extract all particles with one box and pixel size")


def kept_in_memory(size: int, wanted: bool, free: int) -> bool:
    """Whether so many bytes of images are kept in memory, of which so much is `free`: few are, many where it is `wanted`.

    Raises InputError where they are wanted and would not leave enough for the work.
    """
    if wanted and size > _MOST_PRELOADED * free:
        problem = f"the images take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free"
        raise InputError("--preload", problem, "Leave it out: images are then read as they are needed")
    return wanted or size < min(_PRELOAD_BYTES, free // 2)


def take_device(job: Job) -> torch.device:
    """Where this rank computes; the record says it, and who shares the work."""
    from collections import Counter

    import torch

    from verglas.compute.device import describe_device

    ranks = job.ranks
    device = ranks.settle(job.params.device, job.params.threads)
    job.record["device"] = describe_device(device)
    if ranks.size > 1:
        shared = {"ranks": ranks.size, "ranks_per_host": Counter(ranks.hosts), "backend": ranks.backend}
        job.record["ranks"] = {**shared, "threads": torch.get_num_threads()}
    return device


def check_ranks(job: Job, particles: int) -> None:
    """Raise InputError for more ranks than the particles can be shared among, in two halves that may differ in size."""
    if job.ranks.size > 1 and particles < _LEAST_OF_RANK * job.ranks.size:
        problem = f"holds {particles} particles for {job.ranks.size} ranks"
        raise InputError(job.inputs["particles"], problem, f"Start at most {max(1, particles // _LEAST_OF_RANK)} ranks")


def prepare(job: Job, least: int, most: int = 0) -> Prepared:
    """Read the particles, leave out and name those that would poison the rest, and make the engine's view of them.

    With `most` only so many are used, drawn at random; the others are skipped.
    """
    import torch

    from verglas.compute.memory import free_bytes
    from verglas.particles import KeptImages, StackImages
    from verglas.refine.kernels import path_taken
    from verglas.refine.observations import Observations
    from verglas.refine.writing import Writer

    params, device = job.params, take_device(job)
    # a card is done with few particles before their files are written; the process has started when the images are read
    writer = Writer() if device.type == "cuda" and job.ranks.first else None
    everything = check_particles(job, least)
    items = Items("particles", total=len(everything))
    if 0 < most < len(everything):
        items.skipped = items.notes["not_drawn"] = len(everything) - most
        everything = _drawn(everything, most, params.random_seed)
    check_ranks(job, len(everything))
    particles, order = _in_reading_order(_usable(job, everything, least, items, device))
    source: Any = StackImages(particles)
    size = source.dtype.itemsize * len(source) * source.box**2 // job.ranks.size
    free = min(job.ranks.everyones(free_bytes(torch.device("cpu"))))
    preloaded = kept_in_memory(size, params.preload, free)
    if preloaded:
        source = source.preload() if job.ranks.size == 1 else KeptImages(source)
    items.done = len(particles)
    job.record |= {"coarse_precision": precision(params, device), "slices": path_taken(device), "preloaded": preloaded}
    if job.record["slices"].startswith("torch"):
        job.warn(f"slices are sampled by {job.record['slices']}: local searches take about ten times as long")
    seen = Observations(
        particles,
        source,
        mask_diameter=params.mask_diameter,
        device=device,
        correct_ctf=params.do_ctf_correction,
        intact_until_first_peak=params.ctf_intact_first_peak,
    )
    return Prepared(seen, particles, order, items, device, writer)


def _usable(job: Job, everything: ParticleSet, least: int, items: Items, device: torch.device) -> ParticleSet:
    """The particles whose images can be worked with; the others are entered into `items` and said. InputError where too few are left."""
    import numpy as np

    from verglas.particles import StackImages
    from verglas.refine.observations import unusable

    bad = unusable(StackImages(everything), job.ranks, device=device)
    for row, reason in bad.items():
        items.fail(str(everything.column("image_name")[row]), reason)
    kept = everything.subset(np.setdiff1d(np.arange(len(everything)), list(bad))).without_unused_optics()
    if len(kept) < least:
        mend = "Check the extraction" if bad else "Use more of them: --most-particles"
        raise InputError(job.inputs["particles"], f"{len(kept)} usable images are left of {len(everything)}", mend)
    _say_pixel_clash(job, everything)
    if bad:
        job.warn(f"{len(bad)} of {len(everything)} particles are left out: {items.problems[0].item} {items.problems[0].reason}, …")
    return kept


def _drawn(particles: ParticleSet, most: int, seed: int) -> ParticleSet:
    """`most` of the particles: which, hangs on the seed and the images' names, not on the order of the rows, which they keep."""
    import numpy as np

    order = np.argsort(particles.column("image_name").astype(str), kind="stable")
    return particles.subset(np.sort(order[np.random.default_rng(seed).permutation(len(order))[:most]]))


def _in_reading_order(particles: ParticleSet) -> tuple[ParticleSet, np.ndarray]:
    """The particles as they lie in their stacks, so that no result depends on the order of the rows, and the place of each row there."""
    import numpy as np

    from verglas.particles import reading_order

    as_read = reading_order(particles)
    order = np.empty(len(particles), np.int64)
    order[as_read] = np.arange(len(particles))
    return particles.subset(as_read), order


def _say_pixel_clash(job: Job, particles: ParticleSet) -> None:
    """Say so where the first stack's header has another pixel size than the table: one of them is wrong, the table's is taken."""
    from verglas.io.mrc import read_header

    stack = str(particles.column("image_name")[0]).partition("@")[2]
    header, table = read_header(stack).pixel_size, particles.optics.pixel_size
    if header > 0 and abs(header / table - 1) > 0.01:
        job.warn(f"{stack}: its header says {header:.4g} Å a pixel, rlnImagePixelSize {table:.4g} Å is taken: if that is wrong, mend it")


def precision(params: ImageParams, device: torch.device) -> str:
    """float32 or bf16 for the coarse comparison."""
    from verglas.compute.device import has_fast_bf16

    if params.coarse_precision != "auto":
        return params.coarse_precision
    return "bf16" if has_fast_bf16(device) else "float32"


def read_reference(path: Path, seen: Observations) -> torch.Tensor:
    """A reference map on the particles' own grid (CASES 18), float32 [N, N, N]; left alone where it is on it already."""
    import torch

    from verglas.io.mrc import read_map
    from verglas.volume.resample import rescale_map

    volume, pixel_size = read_map(path)
    density = torch.from_numpy(volume)
    if density.shape[-1] != seen.box or abs(pixel_size / seen.pixel_size - 1) > 1e-3:
        density = rescale_map(density, pixel_size, seen.pixel_size, seen.box)
    if not torch.isfinite(density).all() or float(density.std()) == 0:
        raise InputError(path, "is constant or holds values that are not numbers", "Give a map with a structure in it")
    return density


def read_mask(path: Path | None, seen: Observations) -> torch.Tensor | None:
    """A solvent mask on the particles' grid, or None. Raises InputError for another grid, values outside 0 to 1, and a mask of nothing."""
    import torch

    from verglas.io.mrc import read_map

    if path is None:
        return None
    mask, pixel_size = read_map(path)
    if mask.shape[-1] != seen.box or abs(pixel_size / seen.pixel_size - 1) > 1e-2:
        found = f"{mask.shape[-1]} voxels of {pixel_size:g} Å, the particles have {seen.box} of {seen.pixel_size:g} Å"
        raise InputError(path, f"has {found}", "Make the mask from a map of these particles, or rescale it")
    if mask.min() < -1e-3 or mask.max() > 1 + 1e-3 or mask.max() < 0.5:
        raise InputError(path, f"holds values from {mask.min():g} to {mask.max():g}", "A mask goes from 0 (solvent) to 1 (particle)")
    return torch.from_numpy(mask).to(seen.device)


def reference_files(given: list[Path]) -> list[Path]:
    """The maps that are given, those of a STAR table (`rlnReferenceImage`) in its place. Raises InputError for a table without them."""
    from verglas.io.star import read_star

    found: list[Path] = []
    for path in given:
        if path.suffix != ".star":
            found.append(path)
            continue
        tables = [table for table in read_star(path).values() if "rlnReferenceImage" in table]
        if not tables:
            raise InputError(path, "names no maps in a column rlnReferenceImage", "Give maps, or a table with that column")
        found += [Path(str(name)) for name in tables[0]["rlnReferenceImage"]]
    for path in found:
        if not path.exists():
            raise InputError("--reference", f"{path} is not there", f"Paths are relative to {Path.cwd()}")
    return found


def check_symmetry(job: Job, references: list[torch.Tensor], symmetry: str, seen: Observations) -> None:
    """Say so when a reference does not have the symmetry about RELION's axes: halves would agree and both be wrong.

    Where its axes are found elsewhere, the map turned to them is left in the job's folder, and said.
    """
    from verglas.io.mrc import write_map
    from verglas.volume.axes import find_axes
    from verglas.volume.symmetry import symmetry_misfit

    shells = max(3, seen.box // 6)
    misfits = [symmetry_misfit(reference.to(seen.device), symmetry, shells) for reference in references]
    job.record["symmetry_misfit"] = max(misfits)
    for number, (reference, misfit) in enumerate(zip(references, misfits), start=1):
        if misfit <= _MISFIT:
            continue
        which = f"reference {number}" if len(references) > 1 else "the reference"
        said = f"{which} is not symmetric under {symmetry} about RELION's axes (misfit {misfit:.2f})"
        turned = find_axes(reference, symmetry, radius=job.params.mask_diameter / 2 / seen.pixel_size, max_shell=shells).apply(reference)
        if symmetry_misfit(turned, symmetry, shells) <= _MISFIT:
            path = job.out / f"reference{number}_on_axes.mrc"
            write_map(path, turned.numpy(), seen.pixel_size)
            said += f": begin again with {path}, where it is turned to its axes"
        else:
            said += ", nor about any others: is that its symmetry?"
        job.warn(f"{said}; the map will be wrong though its halves agree")


def iterate(
    job: Job,
    ready: Prepared,
    output: Output,
    steps: Callable[[State], Iterator[State]],
    start: Callable[[], State],
    total: int | None,
    finish: Act | None = None,
) -> State:
    """The last of the states that `steps` makes; each is written and told. Goes on from the last complete iteration on disk.

    `start` makes the state before the first iteration (of many ranks, the first's counts); `total` iterations are due, None where the
    data decide; `finish` writes and draws what a finished run leaves. Stops between iterations when the user asks. Of many ranks the
    first writes.
    """
    from contextlib import nullcontext

    from verglas.io.relion_iterations import remove_iterations_after
    from verglas.refine.iteration import shared
    from verglas.refine.writing import written_aside

    first = job.ranks.first
    state = shared(job.ranks, output.last_state() if first else None)
    if state is None:
        with job.phase("compute"):
            state = shared(job.ranks, start())
    else:
        job.say(f"going on after iteration {state.iteration}")
        if first:
            remove_iterations_after(job.out, state.iteration)
    running = steps(state)
    with (
        job.progress("iterations", 0 if total is None else total - state.iteration) as bar,
        job.phase("write"),
        written_aside(output, ready.writer) if first else nullcontext() as write,
    ):
        while True:
            job.check_stop()
            with job.phase("compute"):
                after = next(running, None)
            if after is None:
                break
            state = after
            if write is not None:
                if state.joined is None:
                    write(state)
                job.say(describe(state))
            bar.advance()
        if write is not None and finish is not None:
            write(state, finish)
    return state


def describe(state: State) -> str:
    """One line about an iteration."""
    figures = state.history[-1]
    words = [f"iteration {state.iteration}: {figures['resolution']:.1f} Å", f"compared to {figures['compared_to']:.1f} Å"]
    words.append(f"Pmax {figures['max_probability']:.2f}")
    if "healpix_order" in figures:
        how = ", poses fitted" if figures.get("fit") else ", local" if figures["local"] else ""
        words.append(f"next order {figures['healpix_order']:.0f}{how}")
        words.append(f"poses changed {figures['rotation_change']:.1f}°, {figures['offset_change']:.2f} Å")
    else:
        words.append(f"classes changed {100 * figures['class_change']:.0f} %")
    return ", ".join(words)


def engine_settings(params: EngineParams, device: torch.device, **own: Any) -> Settings:
    """The engine's settings from the parameters that all jobs share and those of one job."""
    from verglas.refine.settings import Settings

    return Settings(
        mask_diameter=params.mask_diameter,
        offset_range_px=params.offset_range,
        offset_step_px=params.offset_step,
        correct_ctf=params.do_ctf_correction,
        ctf_intact_first_peak=params.ctf_intact_first_peak,
        correct_norm=params.do_norm_correction,
        correct_scale=params.do_scale_correction,
        padding=params.pad,
        half_precision=precision(params, device) == "bf16",
        seed=params.random_seed,
        **own,
    )


def clean(out: Path) -> Iterator[Path]:
    """Files of all iterations but the last."""
    from verglas.refine.output import intermediate_files

    return intermediate_files(out)


def say_empty_classes(job: Job, found: torch.Tensor, classes: int) -> None:
    """Name the classes, of so many, that no particle belongs to; `found` int64 [n], from 0."""
    empty = [str(k + 1) for k in range(classes) if not (found == k).any()]
    if empty:
        job.warn(f"no particle is in class {', '.join(empty)}: fewer classes would do")
