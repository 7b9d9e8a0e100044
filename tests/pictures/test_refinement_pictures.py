"""Pictures of a refinement are written, and show what they are given."""

from pathlib import Path

import numpy as np
from PIL import Image

from verglas.pictures.refinement import draw_directions, draw_progress


def test_progress_shows_each_kind_of_run(tmp_path: Path) -> None:
    rows = [{"iteration": i, "resolution": 40 / i, "compared_to": 20 / i, "max_probability": i / 5} for i in (1, 2, 3)]
    draw_progress(tmp_path / "refine.png", rows)
    draw_progress(tmp_path / "classify.png", [row | {"class_change": 0.5} for row in rows])
    one, two = (np.asarray(Image.open(tmp_path / name).convert("L")) for name in ("refine.png", "classify.png"))
    assert one.shape == two.shape and (one != two).any() and one.std() > 5


def test_directions_are_where_the_particles_look(tmp_path: Path) -> None:
    """All particles look from the north: the bright cells are in the upper half of the map."""
    tilt = np.degrees(np.arccos(np.random.default_rng(1).uniform(0.8, 1, 500)))
    draw_directions(tmp_path / "d.png", np.linspace(-180, 179, 500), tilt)
    picture = np.asarray(Image.open(tmp_path / "d.png").convert("RGB")).astype(float)
    left = picture[:, : int(0.8 * picture.shape[1])]  # without the colour bar
    yellow = (left[..., 0] > 150) & (left[..., 2] < 120)
    assert yellow.any() and np.nonzero(yellow)[0].mean() < 0.4 * len(left)
