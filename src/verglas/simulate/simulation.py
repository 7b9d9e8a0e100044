"""Simulate a data set: movies with gain and MTF beside them, and the truth. A run that was cut short goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from verglas.errors import InputError
from verglas.io.atomic import write_json
from verglas.io.movie_writer import write_movie
from verglas.io.mrc import write_image, write_map
from verglas.io.star import write_star
from verglas.simulate.detector import EER_FRAMES, HOT_RATE, Detector, PoissonTable, draw_detector, electron_events, mtf
from verglas.simulate.movie import Instrument, mean_counts, render_movie
from verglas.simulate.potential import Projector, potential_map
from verglas.simulate.scene import EVENTS, Scene, draw_scene, random_stream
from verglas.simulate.settings import SimulationSettings
from verglas.simulate.snr import snr_per_component
from verglas.simulate.specimen import Specimen, specimen_from_file
from verglas.simulate.stand_in import stand_in
from verglas.simulate.truth import write_truth

STATE_TURN = 25.0  # degrees by which the chains of the second state are turned
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Simulation:
    """A finished simulation: its folder, the number of particles, and how many movies were made now and found finished."""

    out: Path
    particles: int
    made: int
    kept: int


def simulate(settings: SimulationSettings, out: Path, progress: Progress = lambda done, total: None, workers: int = 2) -> Simulation:
    """Make movies under `out`, with gain.mrc, mtf.star, simulation.json and truth/ beside them.

    Movies that are there already are kept, others are written whole or not at all; `progress(done, total)` is called after
    each. Raises InputError where `out` holds a simulation of other settings.
    """
    out = Path(out)
    _check_folder(out, settings)
    specimens = _specimens(settings)
    box = box_size(specimens[0], settings.pixel_size)
    scenes = [draw_scene(settings, index, specimens[0].diameter) for index in range(settings.movies)]
    maps = [potential_map(specimen, box, settings.pixel_size) for specimen in specimens]
    projectors = [Projector(volume) for volume in maps]
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([settings.seed])))
    detector = draw_detector(settings.shape, settings.gain_spread, settings.hot_pixels, settings.dead_pixels, random)
    _write_neighbours(out, settings, detector, maps)
    write_truth(out, settings, scenes, box)
    write_json(out / "simulation.json", _description(settings, specimens, scenes, detector, projectors[0]))
    instrument = Instrument(projectors, detector, PoissonTable(*_rates(settings, detector)))
    for left in (out / "movies").glob(".mic_*.tmp.*"):  # of a run that was killed
        left.unlink()
    todo = [scene for scene in scenes if not (out / settings.movie_name(scene.index)).exists()]
    _make_movies(settings, out, todo, instrument, progress, workers)
    return Simulation(out, sum(len(scene.particles) for scene in scenes), len(todo), len(scenes) - len(todo))


def box_size(specimen: Specimen, pixel_size: float) -> int:
    """Edge of the true map: 1.75 times the particle's diameter, a multiple of 8 px."""
    return 8 * math.ceil(1.75 * specimen.diameter / pixel_size / 8)


def turned_state(specimen: Specimen, degrees: float = STATE_TURN) -> Specimen:
    """The specimen with every chain turned about the line from the centre to its own; the symmetry stays."""
    from scipy.spatial.transform import Rotation

    position = specimen.position.copy()
    for name in dict.fromkeys(specimen.chain.tolist()):
        members = specimen.chain == name
        centre = position[members].mean(axis=0)
        axis = centre / max(float(np.linalg.norm(centre)), 1e-6)
        position[members] = Rotation.from_rotvec(np.radians(degrees) * axis).apply(position[members] - centre) + centre
    return replace(specimen, name=f"{specimen.name}, turned", position=position)


def _specimens(settings: SimulationSettings) -> list[Specimen]:
    first = stand_in() if settings.model is None else specimen_from_file(settings.model, settings.symmetry, settings.assembly)
    return [first, turned_state(first)] if settings.second_state else [first]


def _make_movies(
    settings: SimulationSettings, out: Path, todo: list[Scene], instrument: Instrument, progress: Progress, workers: int
) -> None:
    """Movies in parallel threads (torch and NumPy work outside the interpreter's lock), one core each."""
    done = settings.movies - len(todo)
    progress(done, settings.movies)
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1))
    try:
        torch.set_num_threads(1)
        futures = [pool.submit(_make_movie, settings, out, scene, instrument) for scene in todo]
        for future in as_completed(futures):
            future.result()
            done += 1
            progress(done, settings.movies)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _make_movie(settings: SimulationSettings, out: Path, scene: Scene, instrument: Instrument) -> None:
    with torch.inference_mode():
        frames = render_movie(settings, scene, instrument)
    if settings.movie_format == "eer":
        random = random_stream(settings, scene.index, EVENTS)
        frames = (part for frame in frames for part in electron_events(frame, random))  # type: ignore[assignment]
    write_movie(out / settings.movie_name(scene.index), frames, settings.pixel_size)


def _check_folder(out: Path, settings: SimulationSettings) -> None:
    description = out / "simulation.json"
    if not description.exists():
        if (out / "movies").exists() and any((out / "movies").iterdir()):
            raise InputError(out, "holds movies but no simulation.json", "Give a new or empty folder")
        return
    found = json.loads(description.read_text()).get("settings")
    wanted = json.loads(settings.model_dump_json())
    if found != wanted:
        differ = sorted(name for name in wanted if not isinstance(found, dict) or found.get(name) != wanted[name])
        raise InputError(out, f"holds a simulation with another {', '.join(differ)}", "Give a new folder, or the same settings to go on")


def _write_neighbours(out: Path, settings: SimulationSettings, detector: Detector, maps: list[torch.Tensor]) -> None:
    """gain.mrc, mtf.star and the true maps; MRC files that are there are kept, since their headers hold the time of writing.

    With EER movies the gain divides, as RELION takes it.
    """
    if not (out / "gain.mrc").exists():
        inverse = np.divide(1, detector.gain, out=np.zeros_like(detector.gain), where=detector.gain > 0)
        write_image(out / "gain.mrc", inverse if settings.movie_format == "eer" else detector.gain, settings.pixel_size)
    frequency = np.arange(0, 0.5001, 0.01)
    values = mtf(torch.from_numpy(frequency), settings.mtf_nyquist).numpy()
    write_star(out / "mtf.star", {"": pd.DataFrame({"rlnResolutionInversePixel": frequency, "rlnMtfValue": values})})
    for state, volume in enumerate(maps, start=1):
        path = out / "truth" / ("map.mrc" if state == 1 else f"map_class{state:03d}.mrc")
        if not path.exists():
            write_map(path, volume.numpy(), settings.pixel_size)


def _rates(settings: SimulationSettings, detector: Detector) -> tuple[float, float]:
    """Range of expected counts: what a crystal on carbon and a strong fringe leave, over the extremes of the gain."""
    gain = detector.gain[detector.gain > 0]
    return 0.3 * mean_counts(settings) / float(gain.max()), 1.5 * mean_counts(settings) / float(gain.min())


def _description(
    settings: SimulationSettings, specimens: list[Specimen], scenes: list[Scene], detector: Detector, projector: Projector
) -> dict[str, object]:
    """What simulation.json holds: settings, what a recipe needs, the specimen, the contrast, facts of each movie."""
    return {
        "settings": json.loads(settings.model_dump_json()),
        "recipe": {
            "movies": f"movies/*.{settings.movie_format}",
            "gain": "gain.mrc",
            "mtf": "mtf.star",
            "pixel_size": settings.pixel_size,
            "voltage": settings.voltage,
            "spherical_aberration": settings.spherical_aberration,
            "amplitude_contrast": settings.amplitude_contrast,
            "dose_per_frame": settings.dose_per_frame,
            "frames": settings.frames,
            "eer_grouping": EER_FRAMES if settings.movie_format == "eer" else None,
            "symmetry": specimens[0].symmetry,
            "diameter": round(specimens[0].diameter, 1),
        },
        "specimen": [{"name": each.name, "mass_kda": round(each.mass_kda, 1), "atoms": len(each.position)} for each in specimens],
        "contrast": snr_per_component(settings, projector),
        "counts_per_pixel_and_frame": round(mean_counts(settings), 3),
        "defects": {"hot": detector.hot.tolist(), "dead": detector.dead.tolist(), "hot_rate": HOT_RATE},
        "particles": sum(len(scene.particles) for scene in scenes),
        "micrographs": [_facts(settings, scene) for scene in scenes],
    }


def _facts(settings: SimulationSettings, scene: Scene) -> dict[str, object]:
    corners = np.array([[0, 0], [settings.width, 0], [0, settings.height], [settings.width, settings.height]], np.float64)
    local = np.linalg.norm(scene.motion.local(*corners.T)[-1], axis=1).max()
    return {
        "movie": settings.movie_name(scene.index),
        "particles": len(scene.particles),
        "defocus": round(scene.defocus, 1),
        "astigmatism": round(scene.astigmatism, 1),
        "drift": round(float(np.linalg.norm(scene.motion.drift[-1])), 2),
        "largest_local_motion": round(float(local), 2),
        "crystals": len(scene.crystals),
        "clumped": len(scene.clumped),
        "carbon": scene.carbon is not None,
    }
