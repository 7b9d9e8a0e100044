"""CtfFind: defocus, astigmatism and phase shift of each micrograph, and how far the rings are seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.errors import InputError, ItemError, VerglasError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobParams, JobType, Metrics, NodeType, OutputSpec, param

if TYPE_CHECKING:
    import torch

    from verglas.micrograph.ctf_estimation import CtfFit, CtfSearch, Microscope
    from verglas.micrograph.ctf_resolution import CtfProfile
    from verglas.particles import Micrographs

_MICROGRAPHS = "micrographs_ctf.star"
_SHOWN = 12


class Params(JobParams):
    """Parameters of CtfFind; voltage, Cs and amplitude contrast are the optics table's."""

    use_given_ps: bool = param(
        True, "Use the power spectra of MotionCorr where there are any: dose weights dim the rings",
        label="Use power spectra from MotionCorr job?",
        flag="--use_given_ps",
    )  # fmt: skip
    use_noDW: bool = param(
        False, "Use the micrographs without dose weights", label="Use micrograph without dose-weighting?", flag="--use_noDW"
    )
    box: int = param(512, "Size of the spectrum", label="FFT box size (pix):", flag="--Box", unit="px", ge=128)
    resmin: float = param(30.0, "Lowest resolution of the fit", label="Minimum resolution (A):", flag="--ResMin", unit="Å", gt=0)
    resmax: float = param(5.0, "Highest resolution of the fit", label="Maximum resolution (A):", flag="--ResMax", unit="Å", gt=0)
    dfmin: float = param(5000.0, "Least defocus", label="Minimum defocus value (A):", flag="--dFMin", unit="Å", gt=0)
    dfmax: float = param(50000.0, "Greatest defocus", label="Maximum defocus value (A):", flag="--dFMax", unit="Å", gt=0)
    dfstep: float = param(100.0, "Step of the first search", label="Defocus step size (A):", flag="--FStep", unit="Å", gt=0)
    dast: float = param(
        0.0, "Astigmatism to expect; more is pulled back. 0: any", label="Amount of astigmatism (A):", flag="--dAst", unit="Å", ge=0
    )
    do_phaseshift: bool = param(False, "Search the phase shift of a phase plate", label="Estimate phase shifts?", flag="--do_phaseshift")
    phase_min: float = param(0.0, "Least phase shift", label="Phase shift (deg) - Min:", flag="--phase_min", unit="°")
    phase_max: float = param(180.0, "Greatest phase shift", label="Phase shift (deg) - Max:", flag="--phase_max", unit="°")
    phase_step: float = param(10.0, "Step of the phase shift", label="Phase shift (deg) - Step:", flag="--phase_step", unit="°", gt=0)


@dataclass(frozen=True)
class _Task:
    """One micrograph: where its spectrum comes from and where its files go."""

    name: str
    image: str
    spectrum: str | None
    pixel_size: float
    microscope: Microscope
    picture: Path

    def beside(self, suffix: str) -> Path:
        return self.picture.with_name(self.picture.stem + suffix)


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """The micrographs with their CTF."""
    return (OutputSpec("micrographs", NodeType.MICROGRAPHS, _MICROGRAPHS),)


def validate(job: Job) -> None:
    """Ranges that make sense, and a complete optics table."""
    from verglas.particles import read_micrographs

    if job.params.box % 2:
        raise InputError("--box", f"{job.params.box} px", "Give an even number")
    if job.params.do_phaseshift and job.params.phase_min >= job.params.phase_max:
        raise InputError(
            "--phase-min, --phase-max", f"{job.params.phase_min:g} and {job.params.phase_max:g}°", "The first must be the smaller"
        )
    _search(job.params)
    micrographs = read_micrographs(job.inputs["micrographs"])
    if micrographs.kind != "micrographs":
        raise InputError(job.inputs["micrographs"], "lists movies, not micrographs", "Run MotionCorr first")
    for column in ("voltage", "spherical_aberration", "amplitude_contrast"):
        micrographs.optics.value(column)
    _tasks(job, micrographs)


def _search(params: Params) -> CtfSearch:
    import numpy as np

    from verglas.micrograph.ctf_estimation import CtfSearch

    phases = tuple(np.arange(params.phase_min, params.phase_max + params.phase_step / 2, params.phase_step).tolist())
    return CtfSearch(
        params.resmin, params.resmax, params.dfmin, params.dfmax, params.dfstep, params.dast / 2, phases if params.do_phaseshift else (0.0,)
    )


def _tasks(job: Job, micrographs: Micrographs) -> list[_Task]:
    from verglas.io.names import output_names
    from verglas.micrograph.ctf_estimation import Microscope

    names = micrographs.names()
    images = names
    if job.params.use_noDW:
        if "micrograph_name_no_dose_weighting" not in micrographs:
            raise InputError("--use-noDW", "the micrographs have no sums without dose weights", "Run MotionCorr with --save-noDW")
        images = [str(name) for name in micrographs.column("micrograph_name_no_dose_weighting")]
    spectra: list[str | None] = [None] * len(names)
    if job.params.use_given_ps and not job.params.use_noDW and "power_spectrum" in micrographs:
        spectra = [str(name) for name in micrographs.column("power_spectrum")]
    optics = zip(*(micrographs.optics_value(name) for name in ("voltage", "spherical_aberration", "amplitude_contrast")))
    microscopes = [Microscope(*(float(value) for value in values)) for values in optics]
    pictures = output_names(names, job.out, ".ctf")
    pixels = [float(value) for value in micrographs.pixel_sizes]
    return [_Task(*values) for values in zip(names, images, spectra, pixels, microscopes, pictures)]


def run(job: Job) -> Items:
    """Micrograph by micrograph, several at once; what is finished already is kept; one table in the end."""
    from verglas.compute.device import choose_device, describe_device, use_threads
    from verglas.particles import read_micrographs

    device = choose_device(job.params.device)
    job.record["device"] = describe_device(device)
    threads = use_threads(job.params.threads)
    with job.phase("read"):
        micrographs = read_micrographs(job.inputs["micrographs"])
        tasks = _tasks(job, micrographs)
    items = Items("micrographs", total=len(tasks))
    done: list[int] = []
    with job.phase("compute"), job.progress("micrographs", len(tasks)) as bar:
        for index, reason in _fit_all(job, tasks, device, threads):
            if reason:
                items.fail(tasks[index].name, reason)
            else:
                done.append(index)
                items.done += 1
            bar.advance()
    if not done:
        first = items.problems[0]
        raise InputError(job.inputs["micrographs"], f"no CTF of {len(tasks)} micrographs could be fitted", f"{first.item}: {first.reason}")
    with job.phase("write"):
        _write_table(job, micrographs, [tasks[index] for index in sorted(done)], sorted(done))
        _draw(job, [tasks[index] for index in sorted(done)])
    return items


def _fit_all(job: Job, tasks: list[_Task], device: torch.device, threads: int) -> Iterator[tuple[int, str]]:
    """Index of each micrograph, in order, and why it could not be fitted, or nothing."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from verglas.compute.device import prepare_for_threads

    prepare_for_threads(device)
    workers = max(1, min(threads, len(tasks), 16))
    torch.set_num_threads(max(1, threads // workers))

    def one(task: _Task) -> str:
        try:
            _fit(job, task, device)
        except ItemError as error:
            return error.reason
        return ""

    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(tasks), 4 * workers):
            job.check_stop()
            part = tasks[start : start + 4 * workers]
            for offset, reason in enumerate(pool.map(one, part)):
                yield start + offset, reason


def _fit(job: Job, task: _Task, device: torch.device) -> None:
    from verglas.io.mrc import read_image, write_image
    from verglas.micrograph.ctf_estimation import estimate_ctf, with_range
    from verglas.micrograph.ctf_files import read_ctf_fit, rings_beside_model, write_ctf_fit
    from verglas.micrograph.ctf_resolution import ctf_profile
    from verglas.pictures.ctf import centre_part, save_rings

    try:
        read_ctf_fit(task.beside("_ctf.star"))
        read_image(task.picture)
        return
    except (VerglasError, OSError, KeyError, ValueError):
        pass  # not finished, or cut short
    spectrum, pixel_size = _spectrum(job, task, device)
    search = with_range(_search(job.params), pixel_size)
    try:
        fit = estimate_ctf(spectrum, pixel_size, task.microscope, search)
    except ItemError as error:
        raise ItemError(task.name, f"{error.item} {error.reason}") from error
    profile = ctf_profile(spectrum, pixel_size, fit, task.microscope, search)
    rings = rings_beside_model(spectrum.cpu(), pixel_size, fit, task.microscope, search.lowest, search.highest)
    write_image(task.picture, rings, pixel_size)
    save_rings(task.beside("_ctf.png"), centre_part(rings, _shown_share(pixel_size, search.highest)))
    write_ctf_fit(task.beside("_ctf.star"), fit, profile)


def _spectrum(job: Job, task: _Task, device: torch.device) -> tuple[torch.Tensor, float]:
    """Power spectrum [box, box//2+1] in FFT order, and its pixel size in Å."""
    import torch

    from verglas.io.mrc import read_image, read_pixel_size
    from verglas.io.picture import read_micrograph
    from verglas.micrograph.ctf_estimation import target_pixel
    from verglas.micrograph.power_spectrum import power_spectrum

    if task.spectrum is not None:
        try:
            amplitude = torch.from_numpy(read_image(task.spectrum))
            size = read_pixel_size(task.spectrum)
        except (VerglasError, OSError) as error:
            raise ItemError(task.name, f"its power spectrum cannot be read: {error}") from error
        return torch.fft.ifftshift(amplitude)[:, : amplitude.shape[1] // 2 + 1].square().to(device), size
    image = read_micrograph(task.image)
    if not image.max() > image.min():
        raise ItemError(task.name, "is constant: it holds no image")
    if min(image.shape) < 128:
        raise ItemError(task.name, f"is only {image.shape[1]} x {image.shape[0]} px")
    pixel = target_pixel(task.pixel_size, job.params.resmax)
    return power_spectrum(torch.from_numpy(image).to(device), job.params.box, pixel / task.pixel_size), pixel


def _shown_share(pixel_size: float, highest: float) -> float:
    """Share of the spectrum's width that pictures show: a little more than was fitted."""
    return 1.15 * 2 * pixel_size / highest


def _results(tasks: list[_Task]) -> list[tuple[CtfFit, CtfProfile]]:
    from verglas.micrograph.ctf_files import read_ctf_fit

    return [read_ctf_fit(task.beside("_ctf.star")) for task in tasks]


def _write_table(job: Job, micrographs: Micrographs, tasks: list[_Task], rows: list[int]) -> None:
    import numpy as np

    from verglas.particles import write_micrographs

    results = _results(tasks)
    columns: dict[str, Any] = {"ctf_image": [f"{task.picture}:mrc" for task in tasks]}
    for name in ("defocus_u", "defocus_v", "astigmatism", "defocus_angle"):
        columns[name] = [getattr(fit, name) for fit, _ in results]
    if job.params.do_phaseshift:
        columns["phase_shift"] = [fit.phase_shift for fit, _ in results]
    columns["ctf_figure_of_merit"] = [fit.score for fit, _ in results]
    columns["ctf_max_resolution"] = [profile.resolution for _, profile in results]
    write_micrographs(job.out / _MICROGRAPHS, micrographs.subset(np.array(rows)).with_columns(**columns))


def _draw(job: Job, tasks: list[_Task]) -> None:
    import numpy as np

    from verglas.io.mrc import read_image, read_pixel_size
    from verglas.pictures.ctf import centre_part, draw_ctf_fits, draw_ctf_summary

    results = _results(tasks)
    fits, profiles = [fit for fit, _ in results], [profile for _, profile in results]
    draw_ctf_fits(
        job.out / "picture_ctf.png",
        [Path(task.name).stem for task in tasks[:_SHOWN]],
        [centre_part(read_image(task.picture), _shown_share(read_pixel_size(task.picture), job.params.resmax)) for task in tasks[:_SHOWN]],
        [np.stack([p.frequency, p.observed, p.model, p.correlation]) for p in profiles[:_SHOWN]],
        [
            f"{fit.defocus_u / 1e4:.3f} / {fit.defocus_v / 1e4:.3f} µm, {fit.defocus_angle:.0f}°, to {profile.resolution:.1f} Å"
            for fit, profile in results[:_SHOWN]
        ],
    )
    draw_ctf_summary(
        job.out / "picture_ctf_all.png",
        np.array([(fit.defocus_u + fit.defocus_v) / 2 for fit in fits]),
        np.array([fit.astigmatism for fit in fits]),
        np.array([profile.resolution for profile in profiles]),
    )


def measure(out: Path, params: Params) -> Metrics:
    """Defocus, astigmatism, fit resolution and figure of merit of the table that was left."""
    import numpy as np

    from verglas.particles import read_micrographs

    table = read_micrographs(out / _MICROGRAPHS)
    mean = (table.column("defocus_u") + table.column("defocus_v")) / 2
    at_limit = (mean < params.dfmin + params.dfstep) | (mean > params.dfmax - params.dfstep)
    resolution = table.column("ctf_max_resolution")
    return {
        "micrographs": len(table),
        "items_out": len(table),
        "defocus_median": float(np.median(mean)),
        "defocus_min": float(mean.min()),
        "defocus_max": float(mean.max()),
        "astigmatism_median": float(np.median(table.column("astigmatism"))),
        "resolution_median": float(np.median(resolution)),
        "figure_of_merit_median": float(np.median(table.column("ctf_figure_of_merit"))),
        "figure_of_merit_min": float(table.column("ctf_figure_of_merit").min()),
        "at_limit_share": float(at_limit.mean()),
    }


def checks(params: Params) -> tuple[Check, ...]:
    """Rings that are seen, in the range that was searched."""
    return (
        Check("micrographs", 1, None, "something must come out"),
        Check(
            "resolution_median",
            None,
            15.0,
            "rings not seen to 15 Å fix no defocus; good ones reach 3 to 6 Å (Rohou & Grigorieff 2015)",
        ),
        Check("figure_of_merit_median", 0.04, 1.0, "noise alone fits with up to 0.035 (tests/micrograph/test_ctf_estimation.py)"),
        Check("astigmatism_median", 0, 5000, "an aligned microscope has some hundred Å"),
        Check("at_limit_share", 0, 0.5, "a fit at the end of the range of defocus means a wrong range"),
    )


JOB = JobType(
    name="CtfFind",
    relion_number=2,
    summary="Find defocus, astigmatism and phase shift of micrographs",
    examples="""
    verglas job CtfFind --micrographs MotionCorr/job002/corrected_micrographs.star
    verglas job CtfFind --micrographs Import/job001/micrographs.star --resmax 4 --dfmin 5000 --dfmax 40000
    """,
    params=Params,
    inputs=(InputSpec("micrographs", NodeType.MICROGRAPHS, "STAR file of the micrographs", flag="--i"),),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    describe=lambda metrics: f"defocus {metrics['defocus_median']:.0f} Å, rings to {metrics['resolution_median']:.1f} Å (medians)",
)
