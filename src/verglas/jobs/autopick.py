"""AutoPick: particles found by their shape: blobs, class averages, or projections of a map.

Every micrograph leaves all its peaks under `candidates/`; where noise ends and particles begin is decided once, from the peaks of all
micrographs together, and then the coordinate files are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.errors import InputError, ItemError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobParams, JobType, Metrics, NodeType, OutputSpec, param

if TYPE_CHECKING:
    from verglas.micrograph.pick_candidates import Candidates
    from verglas.micrograph.pick_prepare import Coarse
    from verglas.micrograph.pick_templates import TemplateBank
    from verglas.micrograph.pick_threshold import Cut
    from verglas.particles import Micrographs

COORDINATES, SUFFIX = "coords_suffix_autopick.star", "_autopick.star"
_SUMMARY, _DETAILS, _BLOB, _CANDIDATES = "summary.star", "autopick.json", "blob.mrcs", "candidates"
_BLOB_MICROGRAPHS = 24
_PICTURES = 3
_NOISE = ("verglasNoiseDeviation", "verglasNoiseMean")


class Params(JobParams):
    """Parameters of AutoPick. Without references blobs are picked, by diameters log_diam_min to log_diam_max."""

    log_diam_min: float = param(
        0.0, "Smallest diameter of a blob", label="Min. diameter for LoG filter (A)", flag="--LoG_diam_min", unit="Å", ge=0
    )
    log_diam_max: float = param(
        0.0, "Largest diameter of a blob", label="Max. diameter for LoG filter (A)", flag="--LoG_diam_max", unit="Å", ge=0
    )
    log_adjust_threshold: float = param(
        0.0,
        "Move the automatic threshold by this many deviations of the noise: fewer picks where positive",
        label="Adjust default threshold (stddev):",
        flag="--LoG_adjust_threshold",
    )
    log_refine: bool = param(True, "Pick blobs with their own mean radial profile, found by the Laplacian of Gaussian")
    particle_diameter: float = param(
        0.0, "Diameter of the circle that references are compared in", label="Mask diameter (A)", flag="--particle_diameter", unit="Å", ge=0
    )
    lowpass: float = param(20.0, "Resolution to look at", label="Lowpass filter references (A)", flag="--lowpass", unit="Å", gt=0)
    psi_sampling: float = param(
        5.0, "Step of the in-plane angle of references", label="In-plane angular sampling (deg)", flag="--ang", unit="°", gt=0, le=360
    )
    healpix_order: int = param(
        1, "Directions of a 3D reference: 0 is 60°, 1 is 30°, 2 is 15°", label="3D angular sampling:", flag="--healpix_order", ge=0, le=4
    )
    symmetry: str = param("C1", "Symmetry of a 3D reference", label="Symmetry:", flag="--sym")
    use_ctf: bool = param(
        True,
        "Multiply references by the micrograph's CTF, where it is known",
        label="Are References CTF corrected?",
        flag="--ctf",
    )
    invert: bool = param(
        True, "Particles are dark in the micrographs", label="References have inverted contrast?", flag="--invert"
    )
    threshold: float | None = param(
        None,
        "Lowest correlation (blobs without log_refine: deviations) of a pick; none: where the peaks of all micrographs part in two",
        label="Picking threshold:",
        flag="--threshold",
    )
    min_distance: float = param(
        0.0,
        "Least distance of two picks; 0: 0.7 of the particle's diameter, 0.8 of log_diam_min",
        label="Minimum inter-particle distance (A):",
        flag="--min_distance",
        unit="Å",
        ge=0,
    )
    max_stddev_noise: float = param(
        -1.0,
        "Largest deviation around a pick, over the micrograph's usual one; -1: no limit",
        label="Maximum stddev noise:",
        flag="--max_stddev_noise",
    )
    min_avg_noise: float = param(
        -999.0, "Least mean around a pick, in deviations of the micrograph", label="Minimum avg noise:", flag="--min_avg_noise"
    )
    background_limit: float = param(
        12.0, "Mean density, in deviations, beyond which a place is ice, carbon or a clump and not picked from; 0: pick anywhere", ge=0
    )
    skip_side: float = param(
        0.0,
        "Pixels to keep from the edge besides half a particle; negative: picks may be cut by the edge",
        flag="--skip_side",
        unit="px",
    )


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """The coordinates: one file a micrograph beside the one that names their micrographs."""
    return (OutputSpec("coordinates", NodeType.COORDINATES, COORDINATES), OutputSpec("summary", NodeType.LOGFILE, _SUMMARY))


def validate(job: Job) -> None:
    """Either references and their diameter, or the diameters of blobs; references must be readable."""
    params, inputs = job.params, job.inputs
    if inputs["references"] is not None and inputs["reference"] is not None:
        raise InputError("--reference", "a map and 2D references are given", "Give one of them")
    if inputs["references"] is None and inputs["reference"] is None:
        if params.log_diam_min <= 0 or params.log_diam_max < params.log_diam_min:
            found = f"from {params.log_diam_min:g} to {params.log_diam_max:g} Å"
            raise InputError("--log-diam-min", f"blobs {found}", "Give --log-diam-min and --log-diam-max, or references")
        return
    if params.particle_diameter <= 0:
        raise InputError("--particle-diameter", "not given", "References are compared in a circle of this diameter, in Å")
    if inputs["reference"] is not None:
        from verglas.volume.symmetry import group_name

        group_name(params.symmetry)


def run(job: Job) -> Items:
    """Find the peaks of every micrograph, then the threshold, then write the coordinates."""
    from verglas.compute.device import choose_device, describe_device, use_threads
    from verglas.io.names import output_names
    from verglas.particles import read_micrographs

    use_threads(job.params.threads)
    device = choose_device(job.params.device)
    job.record["device"] = describe_device(device)
    with job.phase("read"):
        micrographs = read_micrographs(job.inputs["micrographs"])
    names = micrographs.names()
    peaks = output_names(names, job.out / _CANDIDATES, ".star")
    items = Items("micrographs", total=len(names))
    job.record["references_see_ctf"] = job.params.use_ctf and job.inputs["references"] != job.inputs["reference"] and "defocus_u" in micrographs
    picker = _Picker(job, micrographs, device)
    with job.progress("micrographs", len(names)) as bar:
        for row, (name, file) in enumerate(zip(names, peaks)):
            job.check_stop()
            try:
                if _readable(file) is None:
                    _write_peaks(file, picker.peaks(row))
            except ItemError as error:
                items.fail(name, error.reason)
            bar.advance()
    found = {name: _readable(file) for name, file in zip(names, peaks) if file.exists()}
    items.done = len(found)
    if not found:
        return items
    picks = _write_picks(job, names, found, picker.spacing)
    empty = [name for name, count in picks.items() if count == 0]
    items.notes |= {"picks": sum(picks.values()), "micrographs_without_picks": empty}
    for name in empty:
        job.say(f"{name}: nothing picked")
    with job.phase("write"):
        _draw(job, picker, names, picks)
    return items


class _Picker:
    """How peaks are found with this job's parameters; the references are made when they are first needed."""

    def __init__(self, job: Job, micrographs: Micrographs, device: Any) -> None:
        from verglas.micrograph.pick_templates import work_pixel_size

        params = job.params
        self.job, self.params, self.micrographs, self.device = job, params, micrographs, device
        self.blobs = job.inputs["references"] is None and job.inputs["reference"] is None
        self.diameter = 0.5 * (params.log_diam_min + params.log_diam_max) if self.blobs else params.particle_diameter
        usual = 0.8 * params.log_diam_min if self.blobs else 0.7 * params.particle_diameter
        self.spacing = params.min_distance or usual
        self.pixel_sizes = micrographs.pixel_sizes
        self.work_pixel = work_pixel_size(params.lowpass, float(self.pixel_sizes.max()))
        self._bank: TemplateBank | None = None

    def image(self, row: int) -> Any:
        """The micrograph [y, x] as a tensor, dark particles."""
        import torch

        from verglas.io.picture import read_micrograph

        with self.job.phase("read"):
            image = torch.from_numpy(read_micrograph(self.micrographs.names()[row]))
        return image if self.params.invert else -image

    def coarse(self, row: int) -> Coarse:
        """The micrograph ready to pick from."""
        from verglas.micrograph.pick_background import without_background
        from verglas.micrograph.pick_prepare import prepare_micrograph

        image = self.image(row).to(self.device)
        with self.job.phase("compute"):
            coarse = prepare_micrograph(image, float(self.pixel_sizes[row]), self.work_pixel, self.micrographs.names()[row])
            return without_background(coarse, self.diameter, self.params.background_limit)

    def peaks(self, row: int) -> Candidates:
        """All peaks of a micrograph. Raises ItemError for one that cannot be used."""
        from verglas.micrograph.pick_blob import log_candidates
        from verglas.micrograph.pick_candidates import template_candidates

        bank, params = self.bank(), self.params
        coarse = self.coarse(row)
        margin = max(0.0, 0.5 * self.diameter + params.skip_side * float(self.pixel_sizes[row]))
        with self.job.phase("compute"):
            if bank is None:
                return log_candidates(coarse, params.log_diam_min, params.log_diam_max, self.spacing, margin)
            return template_candidates(coarse, bank, self.spacing, margin, self._ctf(row))

    def bank(self) -> TemplateBank | None:
        """The templates, or None where the Laplacian of Gaussian alone picks."""
        if self._bank is None and not (self.blobs and not self.params.log_refine):
            with self.job.phase("compute"):
                self._bank = self._blob() if self.blobs else self._references()
        return self._bank

    def _blob(self) -> TemplateBank:
        import torch

        from verglas.io.mrc import read_stack, write_stack
        from verglas.micrograph.pick_blob import blob_bank, blob_reference

        params, file = self.params, self.job.out / _BLOB
        if not file.exists():
            sample = list(_usable(self.coarse, _spread(len(self.micrographs), _BLOB_MICROGRAPHS)))
            reference = blob_reference(sample, params.log_diam_min, params.log_diam_max, self.spacing, params.lowpass)
            write_stack(file, reference.cpu().numpy()[None], self.work_pixel)
        reference = torch.from_numpy(read_stack(file)[0]).to(self.device)
        return blob_bank(reference, self.work_pixel, params.log_diam_min, params.log_diam_max, params.lowpass)

    def _references(self) -> TemplateBank:
        import torch

        from verglas.io.mrc import read_map, read_pixel_size, read_stack
        from verglas.micrograph.pick_templates import template_bank
        from verglas.volume.sampling import rotation_grid

        params, file = self.params, self.job.inputs["references"] or self.job.inputs["reference"]
        directions = None
        if self.job.inputs["reference"] is not None:
            values, pixel_size = read_map(file)
            directions = rotation_grid(params.healpix_order, params.symmetry).directions
        else:
            values, pixel_size = read_stack(file), read_pixel_size(file)
        return template_bank(
            torch.from_numpy(values).to(self.device),
            pixel_size,
            self.work_pixel,
            diameter=params.particle_diameter,
            low_pass=params.lowpass,
            psi_step=params.psi_sampling,
            directions=directions,
        )

    def _ctf(self, row: int) -> dict[str, float] | None:
        names = ("defocus_u", "defocus_v", "defocus_angle")
        if not self.params.use_ctf or self.blobs or any(name not in self.micrographs for name in names):
            return None
        micrograph = self.micrographs.subset([row])  # type: ignore[arg-type]
        values = {name: float(micrograph.column(name)[0]) for name in names}
        values["phase_shift"] = float(micrograph.column("phase_shift", 0.0)[0])
        optics = ("voltage", "spherical_aberration", "amplitude_contrast")
        return values | {name: float(micrograph.optics_value(name)[0]) for name in optics}


def _spread(total: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 to total − 1, evenly spread."""
    count = min(total, most)
    return [i * total // count for i in range(count)]


def _usable(make: Callable[[int], Coarse], rows: list[int]) -> Iterator[Coarse]:
    """The micrographs of these rows that can be read."""
    for row in rows:
        try:
            yield make(row)
        except ItemError:
            continue


def _write_peaks(file: Path, found: Candidates) -> None:
    import pandas as pd

    from verglas.io.coordinates import write_coordinates

    x, y = found.xy.T
    columns = {"coordinate_x": x, "coordinate_y": y, "pick_score": found.score, "class_number": found.class_number, "psi": found.psi}
    write_coordinates(file, pd.DataFrame(columns | dict(zip(_NOISE, (found.noise_deviation, found.noise_mean)))))


def _readable(file: Path) -> Any:
    """The peaks of a finished micrograph, None where the file is missing or damaged."""
    from verglas.errors import FileFormatError
    from verglas.io.coordinates import read_coordinates

    try:
        table = read_coordinates(file) if file.exists() else None
        return table if table is None else table.astype({"class_number": "int64"})
    except (FileFormatError, KeyError):
        return None


def _write_picks(job: Job, names: list[str], found: dict[str, Any], spacing: float) -> dict[str, int]:
    """Coordinate files, summary and details; returns the number of picks of each micrograph."""
    import numpy as np
    import pandas as pd

    from verglas.io.atomic import write_json, write_text
    from verglas.io.coordinates import write_coordinates
    from verglas.io.names import output_names
    from verglas.io.star import write_star
    from verglas.micrograph.pick_threshold import find_cut
    from verglas.pictures.picks import draw_scores

    params = job.params
    found = {name: table[_quiet(table, params)] for name, table in found.items()}
    scores = np.concatenate([table["pick_score"].to_numpy(np.float64) for table in found.values()])
    cut = find_cut(scores)
    threshold = _threshold(params, cut)
    counts, means = {}, []
    for name, file in zip(names, output_names(names, job.out, SUFFIX)):
        if name in found:
            picked = found[name][found[name]["pick_score"] > threshold].drop(columns=list(_NOISE)).reset_index(drop=True)
            counts[name] = len(picked)
            means.append(picked["pick_score"].mean() if len(picked) else 0.0)
            if not _same(_readable(file), picked):
                write_coordinates(file, picked)
    table = {"rlnMicrographName": list(counts), "rlnGroupNrParticles": list(counts.values()), "rlnAutopickFigureOfMerit": means}
    write_star(job.out / _SUMMARY, {"": pd.DataFrame(table)})
    details = {"threshold": threshold, "automatic": params.threshold is None, "separation": cut.separation, "peaks": len(scores)}
    write_json(job.out / _DETAILS, details | {"spacing": spacing, "micrographs": str(job.inputs["micrographs"])})
    draw_scores(job.out / "picture_scores.png", scores, threshold)
    write_text(job.out / COORDINATES, f"{job.inputs['micrographs']}\n")
    job.say(f"threshold {threshold:.4g}: {sum(counts.values())} picks of {len(scores)} peaks in {len(counts)} micrographs")
    if params.threshold is None and cut.separation < 2:
        apart = f"Ashman's D {cut.separation:.1f}"
        job.warn(f"peaks of noise and of particles hardly part ({apart}); look at the pictures, or give --threshold")
    return counts


def _same(old: Any, new: Any) -> bool:
    """Whether a coordinate file holds these picks already: then it keeps its time."""
    return old is not None and old.shape == new.shape and bool((old.to_numpy(float) == new.to_numpy(float)).all())


def _quiet(table: Any, params: Params) -> Any:
    """Mask of the peaks whose surroundings pass max_stddev_noise and min_avg_noise."""
    deviation, mean = (table[label].astype(float) for label in _NOISE)
    quiet = mean >= params.min_avg_noise
    return quiet & (deviation <= params.max_stddev_noise) if params.max_stddev_noise > 0 else quiet


def _threshold(params: Params, cut: Cut) -> float:
    if params.threshold is not None:
        return float(params.threshold)
    return cut.threshold + params.log_adjust_threshold * cut.noise[1]


def _draw(job: Job, picker: _Picker, names: list[str], picks: dict[str, int]) -> None:
    """A few micrographs with their picks: the fullest, a middling one, the emptiest."""
    import numpy as np

    from verglas.io.coordinates import read_coordinates
    from verglas.io.names import output_names
    from verglas.pictures.picks import draw_picks

    files = dict(zip(names, output_names(names, job.out, SUFFIX)))
    order = sorted(picks, key=lambda name: -picks[name])
    chosen = [order[i] for i in sorted({round(share * (len(order) - 1)) for share in np.linspace(0, 1, _PICTURES)})]
    for number, name in enumerate(chosen, start=1):
        row = names.index(name)
        xy = read_coordinates(files[name])[["coordinate_x", "coordinate_y"]].to_numpy(float)
        title = f"{name}: {len(xy)} picks"
        pixel_size = float(picker.pixel_sizes[row])
        draw_picks(job.out / f"picture_picks_{number}.png", picker.image(row).numpy(), pixel_size, xy, picker.diameter, title=title)


def measure(out: Path, params: Params) -> Metrics:
    """Counts and mean score from the summary; the threshold and how well it parts; the share of the area that the picks cover."""
    import json

    import numpy as np

    from verglas.io.star import list_table, numbers, read_star

    table = list_table(read_star(out / _SUMMARY), "", out / _SUMMARY)
    counts = numbers(table, "rlnGroupNrParticles", out / _SUMMARY)
    details = json.loads((out / _DETAILS).read_text())
    found: Metrics = {
        "picks": int(counts.sum()),
        "micrographs": len(counts),
        "micrographs_without_picks": int((counts == 0).sum()),
        "picks_per_micrograph": float(np.median(counts)) if len(counts) else 0.0,
        "share_with_picks": float((counts > 0).mean()) if len(counts) else 0.0,
        "threshold": details["threshold"],
    }
    if details["automatic"]:
        found["separation"] = details["separation"]
    return found


def checks(params: Params) -> tuple[Check, ...]:
    """Something was picked, on most micrographs."""
    return (
        Check("picks", 1, None, "nothing picked ends every later job (CASES.md, 16)"),
        Check("share_with_picks", 0.5, 1, "when most micrographs are empty, diameter, contrast or threshold are wrong"),
    )


def clean(out: Path) -> Iterator[Path]:
    """All peaks, once the coordinates are written."""
    return (out / _CANDIDATES).rglob("*.star")


JOB = JobType(
    name="AutoPick",
    relion_number=4,
    summary="Find particles in micrographs: blobs, 2D references, or projections of a map",
    examples="""
    verglas job AutoPick --micrographs CtfFind/job003/micrographs_ctf.star --log-diam-min 90 --log-diam-max 120
    verglas job AutoPick --micrographs CtfFind/job003/micrographs_ctf.star \\
        --references Select/job009/class_averages.mrcs --particle-diameter 130
    verglas job AutoPick --micrographs CtfFind/job003/micrographs_ctf.star --reference Import/job010/reference.mrc \\
        --symmetry D2 --healpix-order 1 --particle-diameter 130
    """,
    params=Params,
    inputs=(
        InputSpec("micrographs", NodeType.MICROGRAPHS, "Micrographs to pick from", flag="--i"),
        InputSpec("references", NodeType.REFERENCES_2D, "Stack of 2D references, bright (class averages)", required=False, flag="--ref"),
        InputSpec("reference", NodeType.MAP, "A map, projected for references", required=False, flag="--ref"),
    ),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    clean=clean,
    describe=lambda metrics: f"{metrics['picks']} picks, {metrics['picks_per_micrograph']:g} a micrograph",
)
