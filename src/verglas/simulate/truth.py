"""The truth beside the movies, in RELION's STAR tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from verglas.io.star import write_star
from verglas.particles.files import write_micrographs, write_particles
from verglas.particles.tables import Micrographs, OpticsGroups, ParticleSet
from verglas.simulate.movie import beam_tilt_of, odd_zernike_of
from verglas.simulate.scene import Bodies, Scene
from verglas.simulate.settings import SimulationSettings

PATCHES = 5  # grid of places an axis at which the local motion is written


def write_truth(out: Path, settings: SimulationSettings, scenes: list[Scene], box: int) -> None:
    """Particles, clumped particles and contamination, micrographs and their motion, under `out`/truth."""
    optics = optics_groups(settings)
    particle_optics = optics.with_columns(pixel_size=settings.pixel_size, box_size=box, dimensionality=2)
    write_particles(out / "truth/particles.star", ParticleSet(particle_optics, _rows(settings, scenes, "particles")))
    write_micrographs(out / "truth/micrographs.star", Micrographs(optics, micrographs_table(settings, scenes)))
    write_star(out / "truth/contamination.star", {"": _contamination(settings, scenes)})
    for scene in scenes:
        write_star(out / f"truth/motion/mic_{scene.index + 1:04d}.star", motion_tables(settings, scene))


def optics_groups(settings: SimulationSettings) -> OpticsGroups:
    """The optics table of the movies, beam tilt and trefoil included where there are any."""
    rows = []
    for number in range(1, settings.optics_groups + 1):
        row: dict[str, object] = {
            "name": f"opticsGroup{number}",
            "optics_group": number,
            "movie_pixel_size": settings.pixel_size,
            "voltage": settings.voltage,
            "spherical_aberration": settings.spherical_aberration,
            "amplitude_contrast": settings.amplitude_contrast,
        }
        tilt, odd = beam_tilt_of(settings, number), odd_zernike_of(settings)
        if tilt.any():
            row |= {"beam_tilt_x": float(tilt[0]), "beam_tilt_y": float(tilt[1])}
        if odd is not None:
            row["odd_zernike"] = "[" + ",".join(f"{value:g}" for value in odd.tolist()) + "]"
        if settings.fourth_order:
            row["even_zernike"] = "[" + ",".join(f"{value:g}" for value in [0] * 8 + [settings.fourth_order * 81]) + "]"
        rows.append(row)
    return OpticsGroups(pd.DataFrame(rows))


def micrographs_table(settings: SimulationSettings, scenes: list[Scene]) -> pd.DataFrame:
    """One row a movie: name, optics group, defocus in the middle of the field, length of its motion (Å)."""
    rows = []
    for scene in scenes:
        steps = np.linalg.norm(np.diff(scene.motion.drift, axis=0), axis=1)
        rows.append(
            {
                "movie_name": settings.movie_name(scene.index),
                "optics_group": scene.optics_group,
                "defocus_u": scene.defocus + scene.astigmatism / 2,
                "defocus_v": scene.defocus - scene.astigmatism / 2,
                "defocus_angle": scene.astigmatism_angle,
                "astigmatism": scene.astigmatism,
                "motion_total": float(steps.sum()),
            }
        )
    return pd.DataFrame(rows)


def motion_tables(settings: SimulationSettings, scene: Scene) -> dict[str, pd.DataFrame | dict[str, object]]:
    """RELION's tables of one movie's motion (shifts that undo it, px, frame 1 = 0), and `particle_shift`: the same for each particle."""
    height, width = settings.shape
    general: dict[str, object] = {
        "rlnImageSizeX": width,
        "rlnImageSizeY": height,
        "rlnImageSizeZ": settings.frames,
        "rlnMicrographMovieName": settings.movie_name(scene.index),
        "rlnMicrographBinning": 1.0,
        "rlnMicrographOriginalPixelSize": settings.pixel_size,
        "rlnMicrographDoseRate": settings.dose_per_frame,
        "rlnMicrographPreExposure": 0.0,
        "rlnVoltage": settings.voltage,
        "rlnMicrographStartFrame": 1,
        "rlnMotionModelVersion": 0,
    }
    step = (np.arange(PATCHES) + 0.5) / PATCHES
    x, y = (grid.ravel() for grid in np.meshgrid(step * width, step * height))
    particles = scene.particles
    drift = -scene.motion.drift / settings.pixel_size
    own = scene.motion.total(*particles.xy.T) + particles.paths
    return {
        "general": general,
        "global_shift": pd.DataFrame(
            {
                "rlnMicrographFrameNumber": np.arange(1, settings.frames + 1),
                "rlnMicrographShiftX": drift[:, 0],
                "rlnMicrographShiftY": drift[:, 1],
            }
        ),
        "local_shift": _tracks(x, y, -scene.motion.local(x, y) / settings.pixel_size),
        "particle_shift": _tracks(particles.xy[:, 0], particles.xy[:, 1], -own / settings.pixel_size),
    }


def _tracks(x: np.ndarray, y: np.ndarray, shifts: np.ndarray) -> pd.DataFrame:
    """Rows of all frames for all places, frame by frame; shifts [frames, n, 2]."""
    frames, n = shifts.shape[:2]
    return pd.DataFrame(
        {
            "rlnMicrographFrameNumber": np.repeat(np.arange(1, frames + 1), n),
            "rlnCoordinateX": np.tile(x, frames),
            "rlnCoordinateY": np.tile(y, frames),
            "rlnMicrographShiftX": shifts[..., 0].ravel(),
            "rlnMicrographShiftY": shifts[..., 1].ravel(),
        }
    )


def _rows(settings: SimulationSettings, scenes: list[Scene], which: str) -> pd.DataFrame:
    tables = []
    for scene in scenes:
        bodies: Bodies = getattr(scene, which)
        defocus = scene.defocus_of(bodies, settings.shape)
        tables.append(
            pd.DataFrame(
                {
                    "micrograph_name": settings.movie_name(scene.index),
                    "coordinate_x": bodies.xy[:, 0],
                    "coordinate_y": bodies.xy[:, 1],
                    "optics_group": scene.optics_group,
                    "defocus_u": defocus + scene.astigmatism / 2,
                    "defocus_v": defocus - scene.astigmatism / 2,
                    "defocus_angle": scene.astigmatism_angle,
                    "ctf_bfactor": settings.envelope_bfactor,
                    "rot": bodies.angles[:, 0],
                    "tilt": bodies.angles[:, 1],
                    "psi": bodies.angles[:, 2],
                    "origin_x": 0.0,
                    "origin_y": 0.0,
                    "class_number": bodies.state.astype(np.int64),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _contamination(settings: SimulationSettings, scenes: list[Scene]) -> pd.DataFrame:
    """What is no good particle: members of clumps, and ice crystals; centre and radius in px, kind as text."""
    rows = []
    for scene in scenes:
        name = settings.movie_name(scene.index)
        rows += [(name, x, y, 0.0, "clump") for x, y in scene.clumped.xy]
        rows += [(name, x, y, radius, "crystal") for x, y, radius in scene.crystals]
        if scene.carbon is not None:
            rows.append((name, *scene.carbon, "hole_in_carbon"))
    columns = ["rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "verglasRadius", "verglasKind"]
    return pd.DataFrame(rows, columns=columns).astype({"rlnCoordinateX": float, "rlnCoordinateY": float, "verglasRadius": float})
