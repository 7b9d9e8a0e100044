"""Where the particles of a micrograph are to be cut: from a picker's coordinate files, or from aligned particles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.errors import FileFormatError, InputError, ItemError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from verglas.particles import Micrographs, ParticleSet
    from verglas.particles.tables import OpticsGroups

_PREFIX = "coords_suffix"
_OF_CTF = ("defocus_u", "defocus_v", "defocus_angle", "phase_shift", "ctf_figure_of_merit", "ctf_max_resolution")
_SAME_MICROSCOPE = ("movie_pixel_size", "voltage", "spherical_aberration", "amplitude_contrast")
_OF_IMAGES = ("norm_correction", "log_likelihood", "significant_samples", "max_probability", "group_number", "group_name")


@dataclass(frozen=True)
class Source:
    """Particles by micrograph: `rows(i)` gives the table of micrograph i, or None where there is no file for it.

    `optics` are the groups that the tables refer to. `rows` raises ItemError for a coordinate file that cannot be used.
    """

    optics: OpticsGroups
    rows: Callable[[int], pd.DataFrame | None]
    unused: int = 0  # particles of micrographs that are not in the list


def from_coordinates(micrographs: Micrographs, coordinates: Path) -> Source:
    """The picks beside `coords_suffix_NAME.star`, with the micrographs' CTF.

    That file names the micrographs' STAR file, so that picks are found where the picker put them, whatever the list is now.
    """
    names = micrographs.names()
    files = coordinate_files(names, coordinates)
    ctf = {name: micrographs.column(name) for name in _OF_CTF if name in micrographs}
    groups = micrographs.column("optics_group", 1)

    def rows(index: int) -> pd.DataFrame | None:
        from verglas.io.coordinates import read_coordinates
        from verglas.io.relion_names import PARTICLE_COLUMNS

        if not files[index].exists():
            return None
        try:
            table = read_coordinates(files[index])
        except FileFormatError as error:
            raise ItemError(names[index], f"its coordinates cannot be read: {error}") from error
        table = table[[name for name in table if name in PARTICLE_COLUMNS.values() and name not in ("image_name", "origin_x", "origin_y")]]
        values = {name: column[index] for name, column in ctf.items()}
        if ctf:
            values = {"phase_shift": 0.0} | values | {"ctf_bfactor": 0.0, "ctf_scale": 1.0}
        whole = {name: table[name].astype("int64") for name in ("class_number",) if name in table}
        return table.assign(micrograph_name=names[index], optics_group=groups[index], **values, **whole)

    return Source(micrographs.optics, rows)


def coordinate_files(names: list[str], coordinates: Path) -> list[Path]:
    """The coordinate file of each micrograph, there or not. Raises InputError for a file that is no `coords_suffix…`."""
    from verglas.io.names import output_name, output_names
    from verglas.particles import read_micrographs

    if not coordinates.name.startswith(_PREFIX):
        mend = f"Give the picker's {_PREFIX}_….star, or import coordinates first"
        raise InputError("--coordinates", f"{coordinates} is not named {_PREFIX}…", mend)
    suffix = coordinates.name[len(_PREFIX) :]
    picked_from = Path(coordinates.read_text(errors="replace").strip() or "-")
    known = {}
    if picked_from.is_file():
        picked = read_micrographs(picked_from).names()
        known = dict(zip(picked, output_names(picked, coordinates.parent, suffix)))
    return [known.get(name, output_name(name, coordinates.parent, suffix)) for name in names]


def from_particles(micrographs: Micrographs, particles: ParticleSet, params: Any) -> Source:
    """Aligned particles, cut again: at their old places, or recentred, with what their alignment left in the origins.

    Raises InputError where particles and micrographs disagree on the microscope, and where no particle's micrograph is listed.
    """
    import numpy as np

    names = micrographs.names()
    place = {name: index for index, name in enumerate(names)}
    of_particle = np.array([place.get(str(name), -1) for name in particles.column("micrograph_name")])
    if (of_particle < 0).all():
        example = particles.column("micrograph_name")[0] if len(particles) else "none"
        raise InputError("--particles", f"no particle lies in a listed micrograph (the first is of {example})", "Give their micrographs")
    _same_microscopes(micrographs, particles, of_particle)
    table = _recentred(particles, micrographs, of_particle, params).drop(columns=[n for n in _OF_IMAGES if n in particles.table])
    if params.ctf_of_micrographs:
        table = table.assign(**{n: micrographs.column(n)[np.maximum(of_particle, 0)] for n in _OF_CTF if n in micrographs})
    order = np.argsort(of_particle, kind="stable")
    first = np.searchsorted(of_particle[order], np.arange(len(names) + 1))
    optics = particles.optics
    if "micrograph_pixel_size" in micrographs.optics.table:
        optics = optics.with_columns(micrograph_pixel_size=_by_group(particles, micrographs.pixel_sizes, of_particle))

    def rows(index: int) -> pd.DataFrame | None:
        return table.iloc[order[first[index] : first[index + 1]]].reset_index(drop=True)

    return Source(optics, rows, int((of_particle < 0).sum()))


def _recentred(particles: ParticleSet, micrographs: Micrographs, of_particle: np.ndarray, params: Any) -> pd.DataFrame:
    import numpy as np

    from verglas.micrograph.extraction import moved_to_point, recentred

    places = np.stack([particles.column(f"coordinate_{axis}").astype(float) for axis in "xy"], axis=1)
    origins = particles.origins()
    if params.reset_offsets:
        origins = np.zeros_like(origins)
    elif params.recenter:
        point = (params.recenter_x, params.recenter_y, params.recenter_z)
        if any(point):
            scale = params.reference_pixel_size or particles.optics.pixel_size
            origins = moved_to_point(origins, particles.angles(), (point[0] * scale, point[1] * scale, point[2] * scale))
        places, origins = recentred(places, origins, micrographs.pixel_sizes[np.maximum(of_particle, 0)])
    columns = {"coordinate_x": places[:, 0], "coordinate_y": places[:, 1], "origin_x": origins[:, 0], "origin_y": origins[:, 1]}
    return particles.table.assign(**columns)


def _same_microscopes(micrographs: Micrographs, particles: ParticleSet, of_particle: np.ndarray) -> None:
    import numpy as np

    listed = np.flatnonzero(of_particle >= 0)
    for name in _SAME_MICROSCOPE:
        if name not in micrographs.optics.table or name not in particles.optics.table:
            continue
        of_mics, of_parts = micrographs.optics_value(name)[of_particle[listed]], particles.optics_value(name)[listed]
        differ = np.flatnonzero(np.abs(of_mics - of_parts) > 1e-3 * np.abs(of_mics).clip(1e-6))
        if len(differ):
            row = listed[differ[0]]
            where = micrographs.names()[of_particle[row]]
            found = f"{name} is {of_mics[differ[0]]:g} for {where} in the micrographs, {of_parts[differ[0]]:g} in the particles"
            raise InputError("--particles", f"{found} ({len(differ)} such particles)", "Give the micrographs that the particles come from")


def _by_group(particles: ParticleSet, pixel_sizes: np.ndarray, of_particle: np.ndarray) -> list[float]:
    """Pixel size of the micrographs of each optics group of the particles. Raises InputError where one group has several."""
    import numpy as np

    found = []
    for group in range(len(particles.optics)):
        rows = (particles.optics_index == group) & (of_particle >= 0)
        sizes = np.unique(pixel_sizes[of_particle[rows]]) if rows.any() else np.array([pixel_sizes[0]])
        if len(sizes) > 1:
            text = ", ".join(f"{size:g}" for size in sizes)
            raise InputError("--particles", f"optics group {group + 1} has micrographs of {text} Å a pixel", "Split the group")
        found.append(float(sizes[0]))
    return found
