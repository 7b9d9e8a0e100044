"""What only programs that draw read of an iteration: the angular distribution."""

from pathlib import Path

import numpy as np
import pytest
import torch

from refine.sets import DIAMETER, particles, seen
from verglas.particles import read_particles
from verglas.refine.assignments import from_particles
from verglas.refine.classify import classify
from verglas.refine.output import Output
from verglas.refine.settings import Settings
from verglas.refine.start import first_state
from verglas.volume.sampling import healpix_directions, healpix_pixels, view_directions

COUNT, BOX, PIXEL, ORDER = 300, 16, 12.0, 3


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An iteration of three classes, the particles of which keep their poses; most look from the north, and none is in the third class."""
    folder = tmp_path_factory.mktemp("written")
    images, table, truth = particles(COUNT, BOX, PIXEL, 0.3)
    tilt = np.where(np.arange(COUNT) < 200, np.arange(COUNT) % 40, table.column("tilt"))
    table = table.with_columns(tilt=tilt)
    view = seen(images, table)
    settings = Settings(dims=3, mask_diameter=DIAMETER, classes=3, iterations=1, ini_high=40.0, align=False)
    own = from_particles(table, len(view.micrographs))
    state = next(classify(view, first_state(view, own, truth.expand(3, -1, -1, -1), settings), settings))
    state.assignments.classes[:] = torch.arange(COUNT) % 2
    Output(folder, table, np.arange(COUNT), view, settings).write_iteration(state)
    return folder


def cylinders(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Colours [n, 3] and numbers [n, 7] of the cylinders: start, end, radius."""
    words = [line.split() for line in path.read_text().splitlines() if line]
    assert [line[0] for line in words] == [".color", ".cylinder"] * (len(words) // 2)
    colours, numbers = (np.array([line[1:] for line in words[first::2]], dtype=float) for first in (0, 1))
    assert colours.shape[1:] == (3,) and numbers.shape[1:] == (7,)
    return colours, numbers


@pytest.mark.parametrize("number", [1, 2])
def test_a_cylinder_stands_on_each_pixel_from_which_particles_look(number: int, written: Path) -> None:
    """In Å about the middle of the map, along the view; longer and redder with the particles of the class that look from there."""
    colours, numbers = cylinders(written / f"run_it001_class{number:03d}_angdist.bild")
    table = read_particles(written / "run_it001_data.star")
    angles = torch.as_tensor(table.angles()[table.column("class_number") == number])
    pixels, counts = np.unique(healpix_pixels(ORDER, angles[:, 0], angles[:, 1]), return_counts=True)
    assert len(numbers) == len(pixels) < len(angles) and counts.max() > 2
    start, end = (numbers[:, place : place + 3] - BOX * PIXEL / 2 for place in (0, 3))
    rim, length = np.linalg.norm(start, axis=1), np.linalg.norm(end - start, axis=1)
    views = view_directions(*healpix_directions(ORDER, torch.as_tensor(pixels))).numpy()
    np.testing.assert_allclose(start / rim[:, None], views, atol=1e-3)
    np.testing.assert_allclose(end / np.linalg.norm(end, axis=1)[:, None], views, atol=1e-3)
    np.testing.assert_allclose(rim, rim[0], atol=2e-3)
    assert rim[0] > DIAMETER / 2 and (length > 0).all() and (numbers[:, 6] > 0).all() and (numbers[:, 6] < rim / 10).all()
    np.testing.assert_allclose(length / length.max(), counts / counts.max(), atol=2e-3)
    assert (colours >= 0).all() and (colours <= 1).all()
    np.testing.assert_allclose(colours, np.stack([counts, 0 * counts, counts.max() - counts], axis=1) / counts.max(), atol=1e-3)


def test_a_class_without_particles_has_no_cylinder(written: Path) -> None:
    assert (written / "run_it001_class003_angdist.bild").read_text().split() == []
