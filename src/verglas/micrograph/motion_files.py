"""The STAR file of one movie's motion, as RELION 3.1 writes it."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

import numpy as np
import pandas as pd
import torch

from verglas.errors import FileFormatError
from verglas.io.star import numbers, read_star, write_star
from verglas.micrograph.motion import Motion
from verglas.micrograph.motion_model import LocalModel, no_local_motion

PathName = str | PathLike[str]


@dataclass(frozen=True)
class MovieFacts:
    """What a motion file says of its movie: names, Å, e/Å^2 a frame, kV, first frame (from 1)."""

    movie_name: str
    gain_name: str
    frames: int
    pixel_size: float
    binning: float
    dose_per_frame: float
    pre_exposure: float
    voltage: float
    first_frame: int = 1


def write_motion(path: PathName, motion: Motion, facts: MovieFacts, hot: np.ndarray) -> None:
    """Write tables general, global_shift, local_motion_model, hot_pixels and local_shift; `hot` [n, 2] holds (x, y), px.

    Shifts are in px of the movie and undo the motion. Without local motion there is no model, and the version of the model is 0.
    """
    height, width = motion.shape
    general: dict[str, object] = {
        "rlnImageSizeX": width,
        "rlnImageSizeY": height,
        "rlnImageSizeZ": facts.frames,
        "rlnMicrographMovieName": facts.movie_name,
        **({"rlnMicrographGainName": facts.gain_name} if facts.gain_name else {}),
        "rlnMicrographBinning": facts.binning,
        "rlnMicrographOriginalPixelSize": facts.pixel_size,
        "rlnMicrographDoseRate": facts.dose_per_frame,
        "rlnMicrographPreExposure": facts.pre_exposure,
        "rlnVoltage": facts.voltage,
        "rlnMicrographStartFrame": facts.first_frame,
        "rlnMotionModelVersion": int(bool(motion.model)),
    }
    tables: dict[str, object] = {"general": {label: str(value) for label, value in general.items()}}
    number = np.arange(len(motion.global_shifts)) + facts.first_frame
    tables["global_shift"] = _shift_table(number, motion.global_shifts.numpy())
    if motion.model:
        values = motion.model.coefficients.flatten().numpy()
        tables["local_motion_model"] = pd.DataFrame({"rlnMotionModelCoeffsIdx": np.arange(len(values)), "rlnMotionModelCoeff": values})
    if len(hot):
        tables["hot_pixels"] = pd.DataFrame({"rlnCoordinateX": hot[:, 0].astype(float), "rlnCoordinateY": hot[:, 1].astype(float)})
    if len(motion.patch_centres):
        parts = []
        for centre, shifts in zip(motion.patch_centres.numpy(), motion.patch_shifts.numpy()):
            part = _shift_table(number, shifts)
            part.insert(1, "rlnCoordinateX", float(centre[0]))
            part.insert(2, "rlnCoordinateY", float(centre[1]))
            parts.append(part)
        tables["local_shift"] = pd.concat(parts, ignore_index=True)
    write_star(path, tables)  # type: ignore[arg-type]


def read_motion(path: PathName) -> Motion:
    """The motion in a file of RELION's or of `write_motion`. Raises FileFormatError for what cannot be used."""
    blocks = read_star(path)
    general, overall = blocks.get("general"), blocks.get("global_shift")
    if not isinstance(general, dict) or not isinstance(overall, pd.DataFrame):
        raise FileFormatError(path, f"has tables {', '.join(blocks) or 'none'}, not general and global_shift", "Run MotionCorr again")
    shape = (int(float(general["rlnImageSizeY"])), int(float(general["rlnImageSizeX"])))
    shifts = _pairs(overall, "rlnMicrographShift", path)
    model = no_local_motion()
    if isinstance(table := blocks.get("local_motion_model"), pd.DataFrame):
        coefficients = numbers(table, "rlnMotionModelCoeff", path)
        if len(coefficients) != 36:
            raise FileFormatError(path, f"the local model has {len(coefficients)} coefficients, 36 were expected", "Run MotionCorr again")
        model = LocalModel(torch.tensor(coefficients).reshape(2, 18), freedom=(6.0, 6.0, 6.0))
    centres, local = torch.zeros(0, 2), torch.zeros(0, len(shifts), 2)
    if isinstance(table := blocks.get("local_shift"), pd.DataFrame) and len(table) % len(shifts) == 0:
        places = _pairs(table, "rlnCoordinate", path)
        order = np.lexsort((numbers(table, "rlnMicrographFrameNumber", path), places[:, 0], places[:, 1]))
        local = torch.from_numpy(_pairs(table, "rlnMicrographShift", path)[order]).reshape(-1, len(shifts), 2)
        centres = torch.from_numpy(places[order][:: len(shifts)])
    return Motion(shape, torch.tensor(shifts), model, centres, local)


def _shift_table(number: np.ndarray, shifts: np.ndarray) -> pd.DataFrame:
    columns = {"rlnMicrographFrameNumber": number, "rlnMicrographShiftX": shifts[:, 0], "rlnMicrographShiftY": shifts[:, 1]}
    return pd.DataFrame(columns)


def _pairs(table: pd.DataFrame, label: str, path: PathName) -> np.ndarray:
    return np.stack([numbers(table, label + axis, path) for axis in "XY"], axis=1)
