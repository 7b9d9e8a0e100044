"""How AutoPick finds the peaks of one micrograph: with a blob's profile, with 2D references, or with projections of a map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from verglas.errors import ItemError
from verglas.jobs.declaration import Job

if TYPE_CHECKING:
    from verglas.micrograph.pick_candidates import Candidates
    from verglas.micrograph.pick_prepare import Coarse
    from verglas.micrograph.pick_templates import TemplateBank
    from verglas.particles import Micrographs

BLOB = "blob.mrcs"
BLOB_MICROGRAPHS = 24  # enough for a profile


class Picker:
    """How peaks are found with this job's parameters; the references are made when they are first needed."""

    def __init__(self, job: Job, micrographs: Micrographs, device: Any) -> None:
        from verglas.micrograph.pick_templates import work_pixel_size

        params = job.params
        self.job, self.params, self.micrographs, self.device = job, params, micrographs, device
        self.blobs = job.inputs["references"] is None and job.inputs["reference"] is None
        self.diameter = 0.5 * (params.log_diam_min + params.log_diam_max) if self.blobs else params.particle_diameter
        usual = 0.8 * params.log_diam_min if self.blobs else 0.5 * params.particle_diameter
        self.spacing = params.min_distance or usual
        self.pixel_sizes = micrographs.pixel_sizes
        self.work_pixel = work_pixel_size(params.lowpass, float(self.pixel_sizes.max()))
        known = all(name in micrographs for name in ("defocus_u", "defocus_v", "defocus_angle"))
        self.sees_ctf = params.use_ctf and known and not self.blobs
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

        params, file = self.params, self.job.out / BLOB
        if not file.exists():
            sample = list(_usable(self.coarse, _spread(len(self.micrographs), BLOB_MICROGRAPHS)))
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
        if not self.sees_ctf:
            return None
        names = ("defocus_u", "defocus_v", "defocus_angle")
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
