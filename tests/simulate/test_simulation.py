"""Whole simulations: what is written, that the truth is true, that a run cut short goes on, and the contrast."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from pydantic import ValidationError

from verglas.errors import InputError
from verglas.io.gain import read_gain
from verglas.io.movie import open_movie
from verglas.io.mrc import read_map
from verglas.io.star import numbers, read_star
from verglas.optics.aberrations import aberration_phase
from verglas.optics.ctf import ctf
from verglas.optics.microscope import interaction_constant
from verglas.particles import ctf_parameters, read_micrographs, read_particles
from verglas.simulate.detector import mtf
from verglas.simulate.movie import Patches
from verglas.simulate.potential import Projector, potential_map
from verglas.simulate.scene import Scene, carbon_cover, draw_scene
from verglas.simulate.settings import TIERS, SimulationSettings
from verglas.simulate.simulation import box_size, simulate
from verglas.simulate.snr import snr_per_component
from verglas.simulate.stand_in import stand_in
from verglas.simulate.truth import write_truth
from verglas.volume.fourier import frequency_grid, radial_average, rfft_centred, shift_phases
from verglas.volume.rotations import euler_to_matrix

SMALL = SimulationSettings(
    movies=2,
    width=320,
    height=288,
    pixel_size=2.8,
    frames=4,
    particles_per_movie=12,
    dose_per_frame=4,
    hot_pixels=5,
    dead_pixels=5,
    carbon=0,
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated")
    seen: list[tuple[int, int]] = []
    made = simulate(SMALL, out, lambda done, total: seen.append((done, total)))
    assert (made.made, made.kept) == (2, 0) and seen == [(0, 2), (1, 2), (2, 2)]
    assert made.particles == len(read_particles(out / "truth/particles.star"))
    return out


def test_files(simulated: Path) -> None:
    movie = open_movie(simulated / "movies/mic_0001.tif")
    assert (movie.frames, movie.shape) == (4, (288, 320))
    with tifffile.TiffFile(movie.path) as tiff:
        assert {(page.compression, page.dtype) for page in tiff.pages} == {(tifffile.COMPRESSION.LZW, np.dtype(np.uint8))}
    counts = movie.read_all().astype(np.float64)
    gain, _ = read_gain(simulated / "gain.mrc", movie.shape)
    defects = json.loads((simulated / "simulation.json").read_text())["defects"]
    alive = np.ones(gain.size, bool)
    alive[defects["hot"] + defects["dead"]] = False
    corrected = (counts * gain).reshape(4, -1)[:, alive]
    # 4 e/Å² · 7.84 Å² · detection 0.8, less what ice crystals take away
    assert corrected.mean() == pytest.approx(25.1, rel=0.08)
    assert not counts.reshape(4, -1)[:, defects["dead"]].any()
    particles, micrographs = read_particles(simulated / "truth/particles.star"), read_micrographs(simulated / "truth/micrographs.star")
    assert micrographs.names() == ["movies/mic_0001.tif", "movies/mic_0002.tif"]
    assert set(particles.column("micrograph_name")) == set(micrographs.names())
    motion = read_star(simulated / "truth/motion/mic_0002.star")
    assert len(motion["global_shift"]) == 4 and len(motion["local_shift"]) == 4 * 25
    assert numbers(motion["global_shift"], "rlnMicrographShiftX", "motion")[0] == 0
    volume, pixel_size = read_map(simulated / "truth/map.mrc")
    assert pixel_size == 2.8 and volume.shape[0] == particles.optics.box_size


def test_particles_are_dark_and_lie_where_the_truth_says(simulated: Path) -> None:
    """Noise-free templates made by the documented convention, laid over the frames with the true shifts undone."""
    particles = read_particles(simulated / "truth/particles.star")
    truth, pixel_size = read_map(simulated / "truth/map.mrc")
    box = truth.shape[0]
    kx, ky = frequency_grid(box, pixel_size, 2)
    slices = Projector(torch.from_numpy(truth)).slices(euler_to_matrix(torch.from_numpy(particles.angles())))
    templates = slices * ctf(kx, ky, **ctf_parameters(particles))  # type: ignore[arg-type]
    peaks = torch.zeros(box, box)
    for name in sorted(set(particles.column("micrograph_name"))):
        rows = np.flatnonzero(particles.column("micrograph_name") == name)
        boxes = _aligned_boxes(simulated, name, box)
        for row, image in zip(rows, boxes):
            if image is not None:
                transform = rfft_centred(image - image.mean())
                match = torch.fft.irfft2(transform * templates[row].conj() / templates[row].abs().square().sum().sqrt(), s=(box, box))
                peaks += torch.fft.fftshift(match)
    lowest = np.unravel_index(int(peaks.argmin()), peaks.shape)
    assert np.hypot(lowest[0] - box // 2, lowest[1] - box // 2) <= 1
    away = peaks.clone()
    away[box // 2 - 12 : box // 2 + 13, box // 2 - 12 : box // 2 + 13] = 0
    assert -peaks.min() > 6 * away.std()


def _aligned_boxes(folder: Path, name: str, box: int) -> list[torch.Tensor | None]:
    """Sum of the frames of each particle's box, its own shifts undone and its coordinate moved to the centre; None near the edge."""
    movie = open_movie(folder / name)
    gain, _ = read_gain(folder / "gain.mrc", movie.shape)
    frames = movie.read_all() * gain
    frames[frames > frames.mean() + 8 * frames.std()] = frames.mean()
    frames[:, gain == 0] = frames.mean()
    tracks = read_star(folder / "truth/motion" / (Path(name).stem + ".star"))["particle_shift"]
    shift = np.stack([numbers(tracks, f"rlnMicrographShift{axis}", name) for axis in "XY"], axis=1).reshape(len(frames), -1, 2)
    place = np.stack([numbers(tracks, f"rlnCoordinate{axis}", name) for axis in "XY"], axis=1).reshape(len(frames), -1, 2)[0]
    grid = frequency_grid(box, 1.0, 2)
    boxes: list[torch.Tensor | None] = []
    for n, (x, y) in enumerate(place):
        left, top = int(x) - box // 2, int(y) - box // 2
        if left < 0 or top < 0 or left + box > movie.shape[1] or top + box > movie.shape[0]:
            boxes.append(None)
            continue
        cut = torch.from_numpy(frames[:, top : top + box, left : left + box]).float()
        undo = torch.from_numpy(shift[:, n] - [x - int(x), y - int(y)])
        boxes.append(torch.fft.fftshift(torch.fft.irfft2((rfft_centred(cut) * shift_phases(grid, undo)).sum(dim=0), s=(box, box))))
    return boxes


def test_a_finished_run_is_kept_and_a_missing_movie_made_again(simulated: Path) -> None:
    first, second = simulated / "movies/mic_0001.tif", simulated / "movies/mic_0002.tif"
    before, times = second.read_bytes(), first.stat().st_mtime_ns
    truth, gain = (simulated / "truth/particles.star").read_bytes(), (simulated / "gain.mrc").read_bytes()
    second.unlink()
    again = simulate(SMALL, simulated, workers=1)
    assert (again.made, again.kept) == (1, 1)
    assert second.read_bytes() == before and first.stat().st_mtime_ns == times
    assert (simulated / "truth/particles.star").read_bytes() == truth
    assert (simulated / "gain.mrc").read_bytes() == gain


def test_other_settings_are_refused(simulated: Path) -> None:
    with pytest.raises(InputError, match="another defocus_max, seed"):
        simulate(SMALL.model_copy(update={"seed": 2, "defocus_max": 23000.0}), simulated)
    with pytest.raises(ValidationError, match="stand-in is D2"):
        SimulationSettings(symmetry="C4")


def test_killed_and_started_again(simulated: Path, tmp_path: Path) -> None:
    """kill -9 after the first movie: the same command goes on and ends with the same bytes; no half-written movie is left."""
    code = (
        "import sys; from pathlib import Path; from verglas.simulate.settings import SimulationSettings;"
        "from verglas.simulate.simulation import simulate;"
        "simulate(SimulationSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]), workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, SMALL.model_dump_json(), str(tmp_path)])
    started = time.monotonic()
    while not list(tmp_path.glob("movies/mic_*.tif")) and process.poll() is None and time.monotonic() - started < 60:
        time.sleep(0.005)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (tmp_path / "movies/.mic_0002.0badc0de.tmp.tif").write_bytes(b"half a movie")
    simulate(SMALL, tmp_path)
    assert sorted(path.name for path in (tmp_path / "movies").iterdir()) == ["mic_0001.tif", "mic_0002.tif"]
    for name in ("movies/mic_0001.tif", "movies/mic_0002.tif", "truth/particles.star", "simulation.json"):
        assert (tmp_path / name).read_bytes() == (simulated / name).read_bytes(), name


@pytest.mark.parametrize("movie_format", ["mrc", "eer"])
def test_other_formats_hold_the_same_counts(simulated: Path, tmp_path: Path, movie_format: str) -> None:
    simulate(SMALL.model_copy(update={"movies": 1, "movie_format": movie_format}), tmp_path)
    tiff = open_movie(simulated / "movies/mic_0001.tif").read_all()
    grouping = json.loads((tmp_path / "simulation.json").read_text())["recipe"]["eer_grouping"]
    other = open_movie(tmp_path / f"movies/mic_0001.{movie_format}", eer_grouping=grouping).read_all()
    gain = read_gain(tmp_path / "gain.mrc", tiff.shape[1:], eer=movie_format == "eer")[0]
    assert gain == pytest.approx(read_gain(simulated / "gain.mrc", tiff.shape[1:])[0])
    limit = 32 if movie_format == "eer" else 255
    assert np.array_equal(np.minimum(tiff, limit), other)


def test_options_change_what_they_say() -> None:
    diameter = 115.0
    scene = draw_scene(
        SMALL.model_copy(
            update={"preferred_orientation": 20.0, "second_state": 0.5, "particles_per_movie": 60, "width": 2000, "height": 2000}
        ),
        0,
        diameter,
    )
    matrices = euler_to_matrix(torch.from_numpy(scene.particles.angles))
    assert matrices[:, 2].mean(dim=0).norm() > 0.9
    uniform = draw_scene(SMALL.model_copy(update={"particles_per_movie": 60, "width": 2000, "height": 2000}), 0, diameter)
    assert euler_to_matrix(torch.from_numpy(uniform.particles.angles))[:, 2].mean(dim=0).norm() < 0.4
    assert 0.25 < (scene.particles.state == 2).mean() < 0.75 and (uniform.particles.state == 1).all()
    apart = np.linalg.norm(uniform.particles.xy[:, None] - uniform.particles.xy[None], axis=2) + np.eye(len(uniform.particles)) * 1e9
    assert apart.min() * SMALL.pixel_size >= 150


def test_the_truth_tells_what_the_lens_did(tmp_path: Path) -> None:
    """Defocus in the ice, astigmatism, beam tilt of each group, trefoil and fourth order: by the written truth as in the images."""
    lens = {"trefoil": 0.7, "fourth_order": 0.4, "beam_tilt_x": 0.6, "beam_tilt_y": -0.2, "astigmatism": 900.0, "optics_groups": 2}
    settings = SMALL.model_copy(update={**lens, "stage_tilt": 30.0})
    projector = Projector(torch.randn(48, 48, 48, generator=torch.Generator().manual_seed(0)))
    scenes = [draw_scene(settings, index, 115.0) for index in range(2)]
    write_truth(tmp_path, settings, scenes, 48)
    truth = read_particles(tmp_path / "truth/particles.star")
    assert set(truth.column("optics_group")) == {1, 2}
    defocus = truth.column("defocus_u")[: len(scenes[0].particles)]
    assert np.ptp(defocus) > 100
    for scene in scenes:
        rows = truth.subset(truth.column("optics_group") == scene.optics_group)
        patches = Patches(settings, scene, scene.particles, [projector])
        kx, ky = frequency_grid(patches.size, settings.pixel_size, 2)
        group = rows.optics.table[rows.optics.table["optics_group"] == scene.optics_group].iloc[0]
        even, odd = (torch.tensor(json.loads(str(group[f"{parity}_zernike"]))) for parity in ("even", "odd"))
        tilt = torch.tensor([group["beam_tilt_x"], group["beam_tilt_y"]]).float()
        told = ctf(kx, ky, **ctf_parameters(rows), even_zernike=even.expand(len(rows), -1))  # type: ignore[arg-type]
        told = told * aberration_phase(kx, ky, voltage=200.0, spherical_aberration=2.7, beam_tilt=tilt, odd_zernike=odd)
        told = told * -2 * interaction_constant(200.0) * mtf(torch.hypot(kx, ky) * settings.pixel_size, settings.mtf_nyquist)
        done = patches._transfer(scene, torch.hypot(kx, ky))
        assert (done - told).abs().max() < 0.01 * told.abs().max()


def test_what_lies_beside_the_particles(tmp_path: Path) -> None:
    """Carbon and crystals stop electrons, clumps are told, and no particle lies on any of them."""
    crowd = {"movies": 1, "width": 700, "height": 600, "particles_per_movie": 20, "carbon": 1.0, "contaminated": 1.0, "aggregated": 1.0}
    settings = SMALL.model_copy(update=crowd)
    scene = draw_scene(settings, 0, 115.0)
    assert scene.carbon is not None and len(scene.crystals) and len(scene.clumped) >= 4
    y, x = np.mgrid[:600, :700]
    carbon = carbon_cover(x, y, scene.carbon)
    crystal = np.zeros(carbon.shape)
    for cx, cy, radius in scene.crystals:
        crystal = np.maximum(crystal, np.hypot(x - cx, y - cy) < 0.6 * radius)
    column, row = scene.particles.xy.T.astype(int)
    assert len(column) > 5 and not carbon[row, column].round(1).any() and not crystal[row, column].any()
    simulate(settings, tmp_path)
    image = open_movie(tmp_path / "movies/mic_0001.tif").read_all().sum(axis=0) * read_gain(tmp_path / "gain.mrc", (600, 700))[0]
    image[image > 3 * np.median(image)] = np.median(image)
    wide = np.zeros(carbon.shape, bool)
    for cx, cy, radius in scene.crystals:
        wide |= np.hypot(x - cx, y - cy) < 1.3 * radius
    ice = image[(carbon < 0.01) & ~wide]
    assert image[(carbon > 0.99) & ~wide].mean() / ice.mean() == pytest.approx(0.88, abs=0.03)
    assert image[(carbon < 0.01) & (crystal > 0)].mean() / ice.mean() == pytest.approx(0.80, abs=0.03)
    kinds = read_star(tmp_path / "truth/contamination.star")[""]["verglasKind"].value_counts()
    assert dict(kinds) == {"clump": len(scene.clumped), "crystal": len(scene.crystals), "hole_in_carbon": 1}


def test_dose_takes_the_fine_detail_first() -> None:
    scene = draw_scene(SMALL, 0, 115.0)
    projector = Projector(torch.randn(48, 48, 48, generator=torch.Generator().manual_seed(0)))
    first, last = (_power_of_frame(SMALL, scene, projector, frame) for frame in (0, 3))
    assert 0.8 < last[:4].sum() / first[:4].sum() < 1 and last[-8:].sum() / first[-8:].sum() < 0.5
    spared = SMALL.model_copy(update={"damage": False})
    first, last = (_power_of_frame(spared, scene, projector, frame) for frame in (0, 3))
    assert last.sum() / first.sum() == pytest.approx(1, rel=0.05)


def _power_of_frame(settings: SimulationSettings, scene: Scene, projector: Projector, frame: int) -> torch.Tensor:
    """Power of the particles' part of a frame by shells of the field, [shells]."""
    field = torch.zeros(512, 512)
    Patches(settings, scene, scene.particles, [projector]).add(field, frame)
    return radial_average(torch.fft.rfft2(field).abs().square(), 512)


def test_truth_does_not_depend_on_order_or_number_of_movies() -> None:
    many, few = SMALL.model_copy(update={"movies": 9}), SMALL
    assert np.array_equal(draw_scene(many, 1, 115.0).particles.xy, draw_scene(few, 1, 115.0).particles.xy)
    assert not np.array_equal(draw_scene(few, 0, 115.0).particles.angles, draw_scene(few, 1, 115.0).particles.angles)


def test_contrast_of_the_default_is_that_of_real_data() -> None:
    """SNR a Fourier component: 0.10 to 0.20 at 20 Å, 0.02 to 0.06 at 9 to 10 Å, from the physics alone."""
    settings, protein = TIERS["tiny"], stand_in()
    box = box_size(protein, settings.pixel_size)
    contrast = snr_per_component(settings, Projector(potential_map(protein, box, settings.pixel_size)))
    snr = dict(zip(contrast["resolution"], contrast["snr"]))
    assert 0.10 <= snr[20.0] <= 0.20
    assert 0.02 <= snr[9.0] < snr[10.0] <= 0.06
    assert settings.total_dose == 40


@pytest.mark.relion
def test_relion_reads_the_truth(simulated: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.star"
    source = simulated / "truth/particles.star"
    subprocess.run(["relion_star_handler", "--i", source, "--o", copy], check=True, capture_output=True, cwd=tmp_path)
    ours, theirs = read_particles(source), read_particles(copy)
    assert len(ours) == len(theirs)
    for column in ("coordinate_x", "defocus_u", "rot", "tilt", "psi"):
        assert theirs.column(column).astype(float).sum() == pytest.approx(ours.column(column).sum(), rel=1e-5, abs=1e-3)
