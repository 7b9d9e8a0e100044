"""cryoSPARC's `.cs` particle files: structured arrays, turned into Verglas's columns.

Conventions, as the converters of the field have them (pyem, cryodrgn agree):
- `pose` is a rotation vector (radians); its rotation matrix is the *transpose* of RELION's A, so A = exp(−[pose]×). In 2D the
  single angle is psi.
- `shift` is in pixels of `alignments…/psize_A` (not of `blob/psize_A`) and has RELION's sign: the shift that centres the particle.
- `location/center_*_frac` are fractions of the micrograph's shape (ny, nx), counted in the direction of its rows as stored.
  Micrographs that RELION read from TIFF are mirrored in y against cryoSPARC's: then turn y.
- Image indices count from 0; `blob/sign` −1 says that particles are dark.
"""

import gzip
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from verglas.errors import FileFormatError

PathName = str | os.PathLike[str]

_UNCONVERTED = {
    "ctf/tilt_A": "beam tilt",
    "ctf/trefoil_A": "trefoil",
    "ctf/tetra_A": "tetrafoil",
    "ctf/anisomag": "anisotropic magnification",
}


@dataclass(frozen=True)
class CryosparcParticles:
    """Particles and optics groups (Verglas's column names), and notes on what a user should know of the conversion."""

    particles: pd.DataFrame
    optics: pd.DataFrame
    notes: tuple[str, ...]


def read_cs(
    path: PathName,
    passthrough: Sequence[PathName] = (),
    flip_y: bool = False,
    box_size: int | None = None,
    pixel_size: float | None = None,
) -> CryosparcParticles:
    """Particles of a `.cs` file (or `.cs.gz`), with the fields of `passthrough` files joined by `uid`.

    flip_y: count y of the coordinates from the other end; box_size (px), pixel_size (Å): used where the file has none.
    Raises FileFormatError for a file that is no such array, for particles without an image, and for a missing field, named with
    the option that replaces it.
    """
    table = _load(path)
    for other in passthrough:
        table |= {name: values for name, values in _joined(table, _load(other), path, other).items() if name not in table}
    notes: list[str] = []
    particles = _images(table, path, notes) | _locations(table, flip_y, notes) | _ctf(table, notes) | _alignment(table, path, notes)
    optics, group = _optics(table, path, box_size, pixel_size)
    return CryosparcParticles(pd.DataFrame(particles).assign(optics_group=group), optics, tuple(notes))


def match_micrographs(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The known micrograph path for each of cryoSPARC's names: same base name, with or without a numeric prefix (`0012_`).

    Extensions are not compared. Raises FileFormatError for names that match none, or more than one.
    """
    places: dict[str, set[str]] = {}
    for path in known:
        for key in _keys(path):
            places.setdefault(key, set()).add(path)
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        hits = next((places[key] for key in _keys(name) if key in places), set())
        if len(hits) != 1:
            what = "matches none" if not hits else f"matches {len(hits)}"
            raise FileFormatError(name, f"{what} of the {len(known)} micrographs", "Give the micrographs that the particles came from")
        found[name] = next(iter(hits))
    return [found[name] for name in names]


def rotation_vectors_to_angles(pose: np.ndarray) -> np.ndarray:
    """RELION's rot, tilt, psi in degrees, float64 [n, 3], of cryoSPARC's rotation vectors [n, 3] (radians)."""
    vector = np.asarray(pose, np.float64)
    angle = np.linalg.norm(vector, axis=1)
    axis = vector / np.where(angle > 0, angle, 1)[:, None]
    cross = np.zeros((len(vector), 3, 3))
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        cross[:, j, k], cross[:, k, j] = axis[:, i], -axis[:, i]  # of −axis: A is the transpose
    sine, cosine = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    a = np.eye(3) + sine * cross + (1 - cosine) * cross @ cross
    tilt = np.arccos(np.clip(a[:, 2, 2], -1, 1))
    upright = np.hypot(a[:, 0, 2], a[:, 1, 2]) < 1e-7  # tilt 0 or 180: only psi ∓ rot is known, rot is set to 0
    rot = np.where(upright, 0, np.arctan2(a[:, 2, 1], a[:, 2, 0]))
    psi = np.where(upright, np.arctan2(a[:, 0, 1], a[:, 1, 1]), np.arctan2(a[:, 1, 2], -a[:, 0, 2]))
    return np.rad2deg(np.stack([rot, tilt, psi], axis=1))


def _load(path: PathName) -> dict[str, np.ndarray]:
    """Fields of a `.cs` file by name."""
    try:
        with gzip.open(path) if str(path).endswith(".gz") else Path(path).open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise FileFormatError(path, "the file does not exist") from error
        raise FileFormatError(path, f"is not a cryoSPARC file: {error}") from error
    if array.dtype.names is None or array.ndim != 1:
        raise FileFormatError(path, f"is not a cryoSPARC file: an array of shape {array.shape} without named fields")
    if not len(array):
        raise FileFormatError(path, "holds no rows")
    return {name: array[name] for name in array.dtype.names}


def _joined(table: dict[str, np.ndarray], other: dict[str, np.ndarray], path: PathName, other_path: PathName) -> dict[str, np.ndarray]:
    """Fields of `other` in the row order of `table`, matched by uid."""
    uid, other_uid = _need(table, "uid", path, ""), _need(other, "uid", other_path, "")
    order = np.argsort(other_uid, kind="stable")
    place = np.minimum(np.searchsorted(other_uid[order], uid), len(order) - 1)
    rows = order[place]
    missing = int((other_uid[rows] != uid).sum())
    if missing:
        raise FileFormatError(
            other_path, f"lacks {missing} of the {len(uid)} particles of {path}", "Is it the passthrough file of that job?"
        )
    return {name: values[rows] for name, values in other.items()}


def _need(table: dict[str, np.ndarray], field: str, path: PathName, mend: str) -> np.ndarray:
    if field not in table:
        raise FileFormatError(path, f"has no field {field}", mend)
    return table[field]


def _text(values: np.ndarray) -> list[str]:
    return [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value) for value in values.tolist()]


def _images(table: dict[str, np.ndarray], path: PathName, notes: list[str]) -> dict[str, object]:
    if "blob/path" not in table and "location/center_x_frac" not in table:
        raise FileFormatError(path, "has neither blob/path nor location/center_x_frac", "Give the particles file and its passthrough file")
    if "blob/path" not in table:
        return {}
    stacks = [name.removeprefix(">") for name in _text(table["blob/path"])]
    if any(name.endswith(".mrc") for name in set(stacks)):
        notes.append("the stacks are named .mrc; RELION reads them only by names that end in .mrcs: link them for use there")
    index = _need(table, "blob/idx", path, "").astype(np.int64) + 1
    if (table.get("blob/sign", np.ones(1)) < 0).any():
        notes.append("blob/sign is −1: particles are dark in these stacks; invert the contrast before classifying")
    return {"image_name": [f"{number:06d}@{stack}" for number, stack in zip(index.tolist(), stacks, strict=True)]}


def _locations(table: dict[str, np.ndarray], flip_y: bool, notes: list[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    if "location/micrograph_path" in table:
        found["micrograph_name"] = [name.removeprefix(">") for name in _text(table["location/micrograph_path"])]
    if "location/center_x_frac" in table and "location/micrograph_shape" in table:
        ny, nx = table["location/micrograph_shape"].astype(np.float64).T
        y = table["location/center_y_frac"].astype(np.float64)
        found["coordinate_x"] = table["location/center_x_frac"].astype(np.float64) * nx
        found["coordinate_y"] = (1 - y if flip_y else y) * ny
        notes.append(f"y of the coordinates is counted {'from the last row (turned)' if flip_y else 'from the first row, as stored'}")
    return found


def _ctf(table: dict[str, np.ndarray], notes: list[str]) -> dict[str, object]:
    plain = {"df1_A": "defocus_u", "df2_A": "defocus_v", "scale": "ctf_scale", "bfactor": "ctf_bfactor"}
    angles = {"df_angle_rad": "defocus_angle", "phase_shift_rad": "phase_shift"}
    found: dict[str, object] = {column: table[f"ctf/{f}"].astype(np.float64) for f, column in plain.items() if f"ctf/{f}" in table}
    found |= {column: np.rad2deg(table[f"ctf/{f}"].astype(np.float64)) for f, column in angles.items() if f"ctf/{f}" in table}
    for field, what in _UNCONVERTED.items():
        neutral = (1, 0, 0, 1) if field == "ctf/anisomag" and field in table and table[field].any() else 0
        if field in table and not np.allclose(table[field], neutral):
            notes.append(f"{what} ({field}) is not taken over; refine it anew")
    return found


def _alignment(table: dict[str, np.ndarray], path: PathName, notes: list[str]) -> dict[str, object]:
    prefix = next((name for name in ("alignments3D", "alignments2D") if f"{name}/pose" in table), None)
    if prefix is None:
        return {}
    pose = table[f"{prefix}/pose"].astype(np.float64)
    found: dict[str, object] = {}
    if pose.ndim == 2:
        found |= zip(("rot", "tilt", "psi"), rotation_vectors_to_angles(pose).T, strict=True)
    else:
        found["psi"] = np.rad2deg(pose)
    if f"{prefix}/shift" in table:
        scale = _need(table, f"{prefix}/psize_A", path, f"Shifts cannot be turned into Å without {prefix}/psize_A").astype(np.float64)
        shift = table[f"{prefix}/shift"].astype(np.float64) * scale[:, None]
        found["origin_x"], found["origin_y"] = shift.T
    if f"{prefix}/class" in table:
        found["class_number"] = table[f"{prefix}/class"].astype(np.int64) + 1
    split = table.get(f"{prefix}/split")
    if split is not None and len(np.unique(split)) == 2:
        found["half"] = (split != split.min()).astype(np.int64) + 1
    elif split is not None:
        notes.append(f"{prefix}/split holds {len(np.unique(split))} value(s): half sets are not taken over")
    return found


def _optics(
    table: dict[str, np.ndarray], path: PathName, box_size: int | None, pixel_size: float | None
) -> tuple[pd.DataFrame, np.ndarray]:
    """Optics groups, one for each distinct set of values, and the group number of each row."""
    n = len(next(iter(table.values())))
    columns: dict[str, np.ndarray] = {}
    if "ctf/exp_group_id" in table:
        columns["exposure_group"] = table["ctf/exp_group_id"].astype(np.int64)
    for column, field in (("voltage", "accel_kv"), ("spherical_aberration", "cs_mm"), ("amplitude_contrast", "amp_contrast")):
        if f"ctf/{field}" in table:
            columns[column] = table[f"ctf/{field}"].astype(np.float64).round(6)
    if "location/micrograph_psize_A" in table:
        columns["micrograph_pixel_size"] = table["location/micrograph_psize_A"].astype(np.float64).round(6)
    if "blob/path" in table:
        sizes = (
            np.full(n, box_size)
            if box_size
            else _need(table, "blob/shape", path, "Give the box size (box_size), in Import by --new-box")[:, 0]
        )
        pixels = (
            np.full(n, pixel_size)
            if pixel_size
            else _need(table, "blob/psize_A", path, "Give the pixel size (pixel_size), in Import by --pixel-size")
        )
        columns["pixel_size"] = pixels.astype(np.float64).round(6)
        columns["box_size"] = sizes.astype(np.int64)
    if not columns:
        return pd.DataFrame({"name": ["opticsGroup1"], "optics_group": [1]}), np.ones(n, np.int64)
    rows = pd.DataFrame(columns)
    group = rows.groupby(list(columns), sort=True).ngroup().to_numpy() + 1
    first = [int(np.flatnonzero(group == number)[0]) for number in range(1, group.max() + 1)]
    optics = rows.iloc[first].drop(columns="exposure_group", errors="ignore").reset_index(drop=True)
    number = np.arange(1, len(optics) + 1)
    optics.insert(0, "optics_group", number)
    optics.insert(0, "name", [f"opticsGroup{n}" for n in number])
    return optics.assign(dimensionality=2), group


def _keys(path: str) -> list[str]:
    """Names under which a micrograph may be known: its stem, and that without a numeric prefix."""
    stem = Path(path).stem
    return list(dict.fromkeys([stem, re.sub(r"^\d+_(?=.)", "", stem)]))
