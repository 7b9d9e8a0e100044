"""What Import does with each kind of file: check every one, write the table or the map that later jobs read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.errors import FileFormatError, InputError, ItemError
from verglas.jobs.declaration import Items, Job, Problem
from verglas.jobs.import_files import find_files, one_file

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from verglas.particles import Micrographs, ParticleSet
    from verglas.particles.tables import OpticsGroups

COORDINATES = "coords_suffix_import.star"
SUFFIX = "_import.star"


def import_movies(job: Job) -> Items:
    """Movies or micrographs: `movies.star` or `micrographs.star` of those that can be opened."""
    from verglas.particles import write_micrographs

    kind = job.params.kind
    listed = _listed(job)
    names = listed.names()
    items, good = Items(kind, total=len(names)), []
    shapes: dict[Any, Any] = {}
    check = _check_movie if kind == "movies" else _check_micrograph
    with job.progress(kind, len(names)) as bar, job.phase("read"):
        for row, name in enumerate(names):
            job.check_stop()
            try:
                shapes.setdefault(check(name, job), []).append(name)
                good.append(row)
            except ItemError as error:
                items.fail(name, error.reason)
            bar.advance()
    _say_sizes(job, shapes)
    items.done = len(good)
    if good:
        import numpy as np

        with job.phase("write"):
            write_micrographs(job.out / f"{kind}.star", listed.subset(np.array(good)))
    return items


def _say_sizes(job: Job, shapes: dict[Any, list[str]]) -> None:
    if len(shapes) > 1:
        usual = max(shapes, key=lambda shape: len(shapes[shape]))
        for shape, names in shapes.items():
            if shape != usual:
                what = " x ".join(map(str, reversed(shape)))
                job.warn(f"{len(names)} of {what}, most are {' x '.join(map(str, reversed(usual)))}: {', '.join(names[:5])}")
    job.record["sizes"] = {" x ".join(map(str, reversed(shape))): len(names) for shape, names in shapes.items()}


def _check_movie(name: str, job: Job) -> tuple[int, ...]:
    """Frames and size of a movie that opens, (frames, ny, nx); of an EER movie its internal frames, which MotionCorr groups."""
    from verglas.io.movie import open_movie

    try:
        movie = open_movie(name, eer_grouping=1)
    except FileFormatError as error:
        raise ItemError(name, error.problem) from error
    except FileNotFoundError as error:
        raise ItemError(name, "the file does not exist") from error
    return (movie.frames, *movie.shape)


def _check_micrograph(name: str, job: Job) -> tuple[int, ...]:
    from verglas.io.mrc import read_header
    from verglas.io.picture import read_micrograph

    if Path(name).suffix.lower() != ".mrc":
        return read_micrograph(name).shape
    try:
        header = read_header(name)
    except FileFormatError as error:
        raise ItemError(name, error.problem) from error
    except FileNotFoundError as error:
        raise ItemError(name, "the file does not exist") from error
    if header.shape[0] != 1:
        raise ItemError(name, f"holds {header.shape[0]} sections, one image was expected")
    if header.pixel_size > 0 and job.params.pixel_size > 0 and abs(header.pixel_size / job.params.pixel_size - 1) > 0.01:
        job.record.setdefault("pixel_sizes_of_headers", {}).setdefault(f"{header.pixel_size:.4g}", name)
    return header.shape[1:]


def _listed(job: Job) -> Micrographs:
    """The movies or micrographs of the files given, or of the one STAR file given, checked or not."""
    import pandas as pd

    from verglas.particles import Micrographs, read_micrographs

    params = job.params
    files = find_files(params.files)
    column = "movie_name" if params.kind == "movies" else "micrograph_name"
    if len(files) == 1 and files[0].suffix.lower() == ".star":
        found = _from_star(files[0], column)
        if found is None:
            listed = read_micrographs(files[0])
            if listed.kind != params.kind:
                raise InputError(files[0], f"lists {listed.kind}", f"Import them with --kind {listed.kind}")
            return listed
        names = found
    else:
        names = [_plain(path) for path in files]
    table = pd.DataFrame({column: names, "optics_group": 1})
    return Micrographs(_optics(params), table)


def _from_star(path: Path, column: str) -> list[str] | None:
    """Names in a STAR file without optics table; None where it has one."""
    from verglas.io.relion_names import MICROGRAPH_COLUMNS
    from verglas.io.star import read_star

    blocks = read_star(path)
    if "optics" in blocks:
        return None
    label = next(label for label, name in MICROGRAPH_COLUMNS.items() if name == column)
    for block in blocks.values():
        if label in block:
            values = block[label]
            return [values] if isinstance(values, str) else [str(value) for value in values]
    raise FileFormatError(path, f"has no table with {label}", "Is it the right kind of list?")


def _plain(path: Path) -> str:
    """The path as it is written into tables: without `./` and doubled slashes, and nothing else changed (`..` may cross a link)."""
    return str(path)


def _optics(params: Any) -> OpticsGroups:
    import pandas as pd

    from verglas.particles.tables import OpticsGroups

    if params.pixel_size <= 0:
        raise InputError("--pixel-size", "not given", f"Give the pixel size of the {params.kind} in Å")
    values: dict[str, Any] = {
        "name": params.optics_group_name,
        "optics_group": 1,
        "movie_pixel_size": params.pixel_size,
        "voltage": params.voltage,
        "spherical_aberration": params.spherical_aberration,
        "amplitude_contrast": params.amplitude_contrast,
    }
    if params.kind == "micrographs":
        values["micrograph_pixel_size"] = params.pixel_size
    if params.mtf_file is not None:
        values["mtf_file"] = str(params.mtf_file)
    if params.beam_tilt_x or params.beam_tilt_y:
        values |= {"beam_tilt_x": params.beam_tilt_x, "beam_tilt_y": params.beam_tilt_y}
    return OpticsGroups(pd.DataFrame([values]))


def import_particles(job: Job) -> Items:
    """`particles.star` from a STAR of any RELION or a cryoSPARC file; rows whose stack cannot be read are left out and named."""
    import numpy as np

    from verglas.io.mrc import read_header
    from verglas.particles import StackImages, write_particles

    file = one_file(job.params.files)
    with job.phase("read"):
        particles = _particles(file, job)
    items = Items("particles", total=len(particles))
    if "image_name" in particles:
        stack_of = np.array([str(name).partition("@")[2] for name in particles.column("image_name")])
        bad: dict[str, str] = {}
        for stack in dict.fromkeys(stack_of.tolist()):
            try:
                read_header(stack)
            except (FileFormatError, OSError) as error:
                bad[stack] = error.problem if isinstance(error, FileFormatError) else "the file does not exist"
        for stack, reason in bad.items():
            count = int((stack_of == stack).sum())
            items.failed += count
            items.problems.append(Problem(stack, f"{reason} ({count} particles)"))
        particles = particles.subset(~np.isin(stack_of, list(bad)))
        if len(particles) and len(np.unique(particles.optics.value("box_size"))) == 1:
            StackImages(particles.with_optics(pixel_size=1.0))  # every image must lie in its stack
    items.done = len(particles)
    if len(particles):
        with job.phase("write"):
            write_particles(job.out / "particles.star", particles)
    return items


def _particles(file: Path, job: Job) -> ParticleSet:
    from verglas.particles import ParticleSet, read_micrographs, read_particles
    from verglas.particles.tables import OpticsGroups

    if not file.name.endswith((".cs", ".cs.gz")):
        return read_particles(file)
    from verglas.io.cryosparc import match_micrographs, read_cs

    params = job.params
    extra = find_files(params.passthrough) if params.passthrough else []
    found = read_cs(file, extra, flip_y=params.flip_y, box_size=params.new_box or None, pixel_size=params.pixel_size or None)
    for note in found.notes:
        job.warn(f"{file}: {note}")
    table = found.particles
    if "image_name" in table:
        places = {name: _stack_place(name, file) for name in dict.fromkeys(str(v).partition("@")[2] for v in table["image_name"])}
        renamed = [f"{number}@{places[stack]}" for number, _, stack in (str(v).partition("@") for v in table["image_name"])]
        table = table.assign(image_name=renamed)
    if job.inputs["micrographs"] is not None and "micrograph_name" in table:
        names = read_micrographs(job.inputs["micrographs"]).names()
        table = table.assign(micrograph_name=match_micrographs(table["micrograph_name"].tolist(), names))
    return ParticleSet(OpticsGroups(found.optics), table)


def _stack_place(name: str, file: Path) -> str:
    """A stack's path as seen from here; cryoSPARC's are relative to its project, which holds the job that holds the file."""
    for folder in (Path(), file.parent, *file.parent.parents[:2]):
        if (folder / name).is_file():
            return str(folder / name)
    return name


def import_map(job: Job) -> Items:
    """`reference.mrc` (turned to the other hand, on another grid) or `mask.mrc` (values from 0 to 1)."""
    import torch

    from verglas.io.mrc import read_map, write_map
    from verglas.volume.resample import flip_hand, rescale_map

    params, file = job.params, one_file(job.params.files)
    values, pixel_size = read_map(file, params.pixel_size or None)
    if params.kind == "mask" and (values.min() < -1e-3 or values.max() > 1 + 1e-3 or values.max() <= 0):
        raise InputError(file, f"has values from {values.min():g} to {values.max():g}", "A mask goes from 0 to 1: make one with MaskCreate")
    density = torch.from_numpy(values)
    if len(set(density.shape)) != 1:
        raise InputError(file, f"is a box of {' x '.join(map(str, density.shape[::-1]))}", "Maps must be cubes")
    with job.phase("compute"):
        if params.flip_hand:
            density = flip_hand(density)
        new_pixel = params.new_pixel_size or pixel_size
        box = params.new_box or _even(density.shape[-1] * pixel_size / new_pixel)
        density = rescale_map(density, pixel_size, new_pixel, box)
        if params.kind == "mask":
            density = density.clamp(0, 1)
    with job.phase("write"):
        write_map(job.out / f"{params.kind}.mrc", density.numpy(), new_pixel)
    job.say(f"{file}: {values.shape[-1]} px of {pixel_size:g} Å → {box} px of {new_pixel:g} Å")
    return Items("maps", total=1, done=1)


def _even(size: float) -> int:
    """The even number of pixels nearest to `size`; the pixel size is kept exactly and the box gives way."""
    return max(2, 2 * round(size / 2))


def import_gain(job: Job) -> Items:
    """`gain.mrc`: turned and flipped as asked, zero at defects, multiplying the frames."""
    import numpy as np

    from verglas.io.gain import read_gain
    from verglas.io.mrc import write_image
    from verglas.io.picture import read_plane

    params, file = job.params, one_file(job.params.files)
    try:
        shape = read_plane(file).shape
    except (ValueError, OSError, RuntimeError) as error:
        raise FileFormatError(file, f"cannot be read as a gain reference: {error}") from error
    turned = (int(shape[1]), int(shape[0])) if params.gain_rotation % 2 else (int(shape[0]), int(shape[1]))
    eer = file.suffix == ".gain"  # no other camera's gain has that name
    gain, defects = read_gain(file, turned, params.gain_rotation, params.gain_flip, eer=eer, reciprocal=params.gain_reciprocal)
    with job.phase("write"):
        write_image(job.out / "gain.mrc", gain, params.pixel_size or 1.0)
    job.say(f"{file}: {turned[1]} x {turned[0]} px, median {np.median(gain[~defects]):.4g}, {int(defects.sum())} defects")
    return Items("gain references", total=1, done=1)


def import_coordinates(job: Job) -> Items:
    """Coordinate files a micrograph, and the file that later jobs are given for them."""
    from verglas.io.atomic import write_text
    from verglas.io.coordinates import write_coordinates
    from verglas.io.names import output_names
    from verglas.particles import read_micrographs

    if job.inputs["micrographs"] is None:
        raise InputError("--micrographs", "not given", "Coordinates are imported for the micrographs of a STAR file")
    names = read_micrographs(job.inputs["micrographs"]).names()
    found, unknown = _coordinates_of(names, find_files(job.params.files))
    for path in unknown:
        job.warn(f"{path}: belongs to none of the {len(names)} micrographs and is left out")
    items, count = Items("micrographs", total=len(names)), 0
    for name, file in zip(names, output_names(names, job.out, SUFFIX)):
        if name not in found:
            items.skip(name, "no coordinates")
            continue
        try:
            table = found[name]()
        except FileFormatError as error:
            items.fail(name, str(error))
            continue
        count += len(table)
        write_coordinates(file, table.drop(columns=[column for column in ("micrograph_name",) if column in table]).reset_index(drop=True))
        items.done += 1
    if items.done:
        write_text(job.out / COORDINATES, f"{job.inputs['micrographs']}\n")
    job.say(f"{count} coordinates in {items.done} micrographs")
    return items


def _coordinates_of(names: list[str], files: list[Path]) -> tuple[dict[str, Callable[[], pd.DataFrame]], list[str]]:
    """A reader for each micrograph that has coordinates, and what belongs to none: files, or micrographs named in a file."""
    from verglas.io.coordinates import read_coordinates

    if len(files) == 1:
        table = read_coordinates(files[0])
        if "micrograph_name" in table:
            keys = [Path(str(name)).name for name in table["micrograph_name"]]
            of_key = {Path(name).name: name for name in names} | {Path(name).stem: name for name in names}
            owner = [of_key.get(key) or of_key.get(Path(key).stem) for key in keys]
            whole = table.assign(_owner=owner)  # type: ignore[arg-type]
            parts = {str(name): part.drop(columns="_owner") for name, part in whole.groupby("_owner")}
            strangers = list(dict.fromkeys(key for key, name in zip(keys, owner) if name is None))
            return {name: part.copy for name, part in parts.items()}, strangers
    found: dict[str, Callable[[], pd.DataFrame]] = {}
    unknown = []
    for file in files:
        owner_name = _owner(file, names)
        if owner_name is None or owner_name in found:
            unknown.append(str(file))
        else:
            found[owner_name] = lambda file=file: read_coordinates(file)  # type: ignore[misc]
    return found, unknown


def _owner(file: Path, names: list[str]) -> str | None:
    """The micrograph whose base name the file's name begins with; the longest such name, so that mic_1 does not take mic_10's."""
    fitting = [name for name in names if file.name.startswith(Path(name).stem)]
    longest = max((len(Path(name).stem) for name in fitting), default=0)
    best = [name for name in fitting if len(Path(name).stem) == longest]
    return best[0] if len(best) == 1 else None
