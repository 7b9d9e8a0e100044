"""One movie of a MotionCorr job: read, correct, write; or found finished from an earlier run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.errors import InputError, ItemError, VerglasError
from verglas.jobs.declaration import Job

if TYPE_CHECKING:
    import numpy as np
    import torch

    from verglas.io.movie import Movie
    from verglas.micrograph.motion_correction import CorrectedMovie, CorrectionSettings
    from verglas.particles import Micrographs

_PS_DOSE = 4.0  # e/Å^2 a power spectrum: the value that RELION's GUI suggests
_BYTES_A_VALUE = 14  # of a movie in work: counts, shrunken frames, transforms


@dataclass(frozen=True)
class Finished:
    """The row of a corrected movie; names relative to the working directory, motion in Å."""

    movie_name: str
    micrograph_name: str
    plain_name: str
    spectrum_name: str
    motion_file: str
    motion_total: float
    motion_early: float
    motion_late: float
    pixel_size: float
    short: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    """One movie and what is known of it before it is opened."""

    name: str
    micrograph: Path
    pixel_size: float
    voltage: float
    usual_frames: int

    def beside(self, suffix: str) -> Path:
        return self.micrograph.with_name(self.micrograph.stem + suffix)


def correct_all(job: Job, movies: Micrographs, device: torch.device) -> Iterator[tuple[int, Finished | Exception]]:
    """Index and result of every movie as they are done: its row, or why it could not be processed.

    As many movies at once as there are threads and memory, each on one thread; on a card two, so that one is read meanwhile.
    """
    import os
    from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

    import torch

    from verglas.compute.device import prepare_for_threads
    from verglas.compute.memory import batch_size

    prepare_for_threads(device)
    tasks = _tasks(job, movies)
    available = job.params.threads or len(os.sched_getaffinity(0))
    largest = max((_size(job, task.name) for task in tasks[:20]), default=1)
    workers = batch_size(largest * _BYTES_A_VALUE, device, at_most=min(available, len(tasks)) if device.type == "cpu" else 2)
    job.record["movies_at_once"] = workers
    torch.set_num_threads(max(1, available // workers))
    with ThreadPoolExecutor(workers) as pool:
        waiting = iter(enumerate(tasks))
        running: dict[Future[Finished], int] = {}
        try:
            while True:
                job.check_stop()
                while len(running) < workers and (following := next(waiting, None)) is not None:
                    running[pool.submit(_process, job, following[1], device)] = following[0]
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), _result(future)
        finally:
            for future in running:
                future.cancel()


def _result(future: Any) -> Finished | Exception:
    try:
        finished: Finished = future.result()
    except ItemError as error:
        return error
    except OSError as error:
        if error.errno is not None:
            raise  # a full disk or a folder that cannot be written is not the movie's fault
        return error
    return finished


def _tasks(job: Job, movies: Micrographs) -> list[_Task]:
    from statistics import mode

    from verglas.io.names import output_names

    names = movies.names()
    outputs = output_names(names, job.out, ".mrc")
    pixel, voltage = movies.optics_value("movie_pixel_size"), movies.optics_value("voltage")
    counts = [frames for frames in (_frames(job, name) for name in names) if frames]
    usual = mode(counts) if counts else 0
    return [_Task(name, out, float(p), float(v), usual) for name, out, p, v in zip(names, outputs, pixel, voltage)]


def open_named(job: Job, name: str) -> Movie:
    """The movie, with the job's EER settings. Raises ItemError for one that they, or we, can make nothing of."""
    from verglas.io.movie import open_movie

    try:
        return open_movie(name, job.params.eer_grouping, job.params.eer_upsampling, keep_rest=True)
    except InputError as error:
        raise ItemError(name, str(error)) from error


def _frames(job: Job, name: str) -> int:
    try:
        return open_named(job, name).frames
    except ItemError:
        return 0


def _size(job: Job, name: str) -> int:
    try:
        movie = open_named(job, name)
    except ItemError:
        return 1
    return movie.frames * movie.shape[0] * movie.shape[1]


def check_gain(job: Job, movies: Micrographs) -> None:
    """Raise InputError for a gain or a defect file that fits no movie that can be read; a few are tried."""
    problem: InputError | None = None
    for name in movies.names()[:10]:
        try:
            shape = open_named(job, name).shape
        except ItemError:
            continue
        try:
            gain_and_defects(job, shape, name)
        except InputError as error:
            problem = error
        else:
            return
    if problem is not None:
        raise problem


def gain_and_defects(job: Job, shape: tuple[int, int], name: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Gain [y, x] or None and known defects [y, x] or None for movies of `shape`."""
    from verglas.io.gain import read_gain

    gain = bad = None
    if job.inputs["gain"] is not None:
        params, eer = job.params, Path(name).suffix.lower() == ".eer"
        gain, bad = read_gain(job.inputs["gain"], shape, params.gain_rot, params.gain_flip, eer=eer, reciprocal=params.gain_reciprocal)
    if job.inputs["defects"] is not None:
        listed = _defect_file(Path(job.inputs["defects"]), shape)
        bad = listed if bad is None else bad | listed
    return gain, bad


def _defect_file(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Defects [y, x] from a map (not 0 is bad) or from lines `x y width height`, as MotionCor2 and RELION take them."""
    import numpy as np

    from verglas.io.picture import read_plane

    if path.suffix.lower() in (".mrc", ".tif", ".tiff"):
        found = read_plane(path) != 0
        if found.shape != shape:
            raise InputError(path, f"is {found.shape[1]} x {found.shape[0]} px, the movies are {shape[1]} x {shape[0]} px")
        return np.asarray(found)
    bad = np.zeros(shape, bool)
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 4 or not all(word.isdigit() for word in words):
            raise InputError(path, f"line {number} is {line.strip()!r}", "Each line holds x y width height in px")
        x, y, width, height = map(int, words)
        if x + width > shape[1] or y + height > shape[0]:
            raise InputError(path, f"line {number} reaches beyond the movies' {shape[1]} x {shape[0]} px", "Turn it as the movies are")
        bad[y : y + height, x : x + width] = True
    return bad


def _process(job: Job, task: _Task, device: torch.device) -> Finished:
    import torch

    from verglas.micrograph.motion_correction import correct_movie

    finished = _kept(job, task)
    if finished is not None:
        return finished
    movie = open_named(job, task.name)
    first, last = _range(job, movie.frames, task.name)
    settings = _settings(job, task, movie, first, last)
    try:
        gain, bad = gain_and_defects(job, movie.shape, task.name)
    except InputError as error:
        raise ItemError(task.name, f"the gain reference or defects do not fit: {error.problem}") from error
    counts = torch.empty(last - first + 1, *movie.shape, device=device)
    for index in range(len(counts)):
        counts[index] = torch.from_numpy(movie.read(first - 1 + index))
    known = [torch.from_numpy(array).to(device) if array is not None else None for array in (gain, bad)]
    corrected = correct_movie(counts, task.name, settings, *known)
    del counts
    return _write(job, task, movie, settings, corrected)


def _range(job: Job, frames: int, name: str) -> tuple[int, int]:
    first, last = job.params.first_frame_sum, job.params.last_frame_sum
    last = frames if last <= 0 else min(last, frames)
    if first > last:
        raise ItemError(name, f"has {frames} frames; the first to use is {first}")
    return first, last


def _settings(job: Job, task: _Task, movie: Movie, first: int, last: int) -> CorrectionSettings:
    from itertools import accumulate

    from verglas.micrograph.motion import MotionSettings
    from verglas.micrograph.motion_correction import CorrectionSettings

    params = job.params
    # an EER movie's dose is that of a full fraction; a shorter one has its own
    full = max(movie.internal_frames)
    doses = [params.dose_per_frame * count / full for count in movie.internal_frames]
    exposures = [params.pre_exposure + dose for dose in accumulate(doses)][first - 1 : last]
    group = params.grouping_for_ps if params.grouping_for_ps >= 0 else max(1, round(_PS_DOSE / params.dose_per_frame))
    return CorrectionSettings(
        pixel_size=task.pixel_size / (params.eer_upsampling if movie.kind == "eer" else 1),
        voltage=task.voltage,
        exposures=tuple(exposures),
        motion=MotionSettings(params.bfactor, (params.patch_x, params.patch_y), params.group_frames, params.max_iter),
        bin_factor=params.bin_factor,
        dose_weighting=params.dose_weighting,
        spectrum_group=group,
        spectrum_box=params.ps_size,
        find_hot=not params.skip_defect,
        seed=params.random_seed,
    )


def _write(job: Job, task: _Task, movie: Movie, settings: CorrectionSettings, corrected: CorrectedMovie) -> Finished:
    """The micrograph, what goes with it, and last the motion file: where that is, all is."""
    import torch

    from verglas.io.mrc import write_image
    from verglas.micrograph.motion_files import MovieFacts, write_motion

    params, sums = job.params, corrected.sums
    best = sums.weighted if sums.weighted is not None else sums.plain
    pixel = settings.pixel_size * movie.shape[1] / best.shape[1]
    kind = "float16" if params.float16 else "float32"
    write_image(task.micrograph, best.numpy(), pixel, kind)
    if params.save_noDW and params.dose_weighting:
        write_image(task.beside("_noDW.mrc"), sums.plain.numpy(), pixel, kind)
    if sums.spectrum is not None:
        half = torch.sqrt(sums.spectrum)
        full = torch.cat([half, torch.roll(half[:, 1:-1].flip(0, 1), 1, dims=0)], dim=1)
        write_image(task.beside("_PS.mrc"), torch.fft.fftshift(full).numpy(), settings.spectrum_pixel)
    facts = MovieFacts(
        task.name, str(job.inputs["gain"] or ""), movie.frames, settings.pixel_size, movie.shape[1] / best.shape[1],
        params.dose_per_frame, params.pre_exposure, task.voltage, params.first_frame_sum,
    )  # fmt: skip
    write_motion(task.beside(".star"), corrected.motion, facts, corrected.frames.hot.cpu().numpy())
    return _row(job, task, list(movie.notes) + corrected.motion.notes, movie.frames)


def _kept(job: Job, task: _Task) -> Finished | None:
    """The row of a movie that an earlier run finished; None where anything is missing or cannot be read whole."""
    from verglas.io.mrc import read_image
    from verglas.micrograph.motion_files import read_motion

    params = job.params
    wanted = [task.micrograph]
    wanted += [task.beside("_noDW.mrc")] if params.save_noDW and params.dose_weighting else []
    wanted += [task.beside("_PS.mrc")] if params.grouping_for_ps else []
    if not task.beside(".star").exists():
        return None
    try:
        read_motion(task.beside(".star"))
        for path in wanted:
            read_image(path)
        return _row(job, task, [], open_named(job, task.name).frames)
    except (VerglasError, OSError, KeyError, ValueError):
        return None


def _row(job: Job, task: _Task, notes: list[str], frames: int) -> Finished:
    """The row, from the files as they are on disk: a run that goes on gives what an undisturbed one gives."""
    from verglas.io.mrc import read_pixel_size
    from verglas.io.star import read_star
    from verglas.micrograph.motion import accumulated_motion
    from verglas.micrograph.motion_files import read_motion

    params = job.params
    size = float(str(read_star(task.beside(".star"))["general"]["rlnMicrographOriginalPixelSize"]))
    before = params.pre_exposure + (params.first_frame_sum - 1) * params.dose_per_frame
    shifts = read_motion(task.beside(".star")).global_shifts
    total, early, late = accumulated_motion(shifts, size, params.dose_per_frame, before, params.dose_motionstats_cutoff)
    short = 0 < frames < task.usual_frames
    if short:
        notes = [f"{frames} frames, the other movies have {task.usual_frames}: dose {frames * params.dose_per_frame:g} e⁻/Å²", *notes]
    return Finished(
        movie_name=task.name,
        micrograph_name=str(task.micrograph),
        plain_name=str(task.beside("_noDW.mrc")) if params.save_noDW and params.dose_weighting else "",
        spectrum_name=str(task.beside("_PS.mrc")) if params.grouping_for_ps else "",
        motion_file=str(task.beside(".star")),
        motion_total=total,
        motion_early=early,
        motion_late=late,
        pixel_size=read_pixel_size(task.micrograph),
        short=short,
        notes=notes,
    )
