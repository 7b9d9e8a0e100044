"""Pictures: what they show is where it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from verglas.pictures.curves import draw_fsc, draw_guinier
from verglas.pictures.maps import draw_maps_in_a_row, draw_slices, draw_surface, shaded_surface, surface_level


def _ball(size: int, radius: float, centre: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    z, y, x = np.indices((size,) * 3) - size // 2
    distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    return (1 / (1 + np.exp(distance - radius))).astype(np.float32)


def test_a_ball_is_a_disc_lit_from_the_upper_left() -> None:
    picture = shaded_surface(_ball(48, 14.0), 0.5, pixels=120)
    cover = picture[..., 3]
    rows, columns = np.nonzero(cover > 0.5)
    assert rows.mean() == pytest.approx(59.5, abs=1.5) and columns.mean() == pytest.approx(59.5, abs=1.5)
    assert (np.ptp(rows) + 1) == pytest.approx(np.ptp(columns) + 1, abs=2)
    assert cover.sum() == pytest.approx(np.pi / 4 * (np.ptp(rows) + 1) ** 2, rel=0.04)
    light = picture[..., :3].mean(axis=2)
    assert light[80, 40] > light[40, 80] + 0.1  # row 0 is the bottom


def test_the_nearer_ball_hides_the_farther() -> None:
    """Seen from +z, the ball at larger z is in front and lighter."""
    near, far = shaded_surface(_ball(48, 8, (-10, 0, 10)) + _ball(48, 8, (10, 0, -10)), 0.5, turn=(0, 0), pixels=96)[48, [24, 71], :3]
    assert near.mean() > far.mean()


@pytest.mark.parametrize("turn", [(0.0, 0.0), (28.0, 34.0), (90.0, 0.0)])
def test_the_hand_is_right(turn: tuple[float, float]) -> None:
    """Balls on x, y and z (nearest in front): seen from outside, x, y, z run counterclockwise, whatever the turn of the whole."""
    from verglas.pictures.maps import _turn

    places = np.eye(3) * 14
    view = places @ _turn(*turn).numpy()  # the map's points in viewing coordinates
    assert np.linalg.det(view) > 0
    for place, seen in zip(places, view, strict=True):
        cover = shaded_surface(_ball(48, 5, tuple(place)), 0.5, turn, pixels=96)[..., 3]
        rows, columns = np.nonzero(cover > 0.5)
        for found, expected in ((columns.mean() - 47.5, seen[0]), (rows.mean() - 47.5, seen[1])):
            assert found * expected > 0 if abs(expected) > 2 else abs(found) < 3


def test_a_level_that_nothing_reaches_gives_an_empty_picture() -> None:
    assert shaded_surface(_ball(24, 6), 5.0, pixels=40)[..., 3].max() == 0


def test_level_by_share_of_the_voxels() -> None:
    ball = _ball(40, 10.0)
    assert ((ball >= surface_level(ball, 0.1)).sum()) == pytest.approx(0.1 * np.pi / 6 * 40**3, rel=0.02)
    assert 0.2 < surface_level(ball) < 0.8


def test_files_are_pictures(tmp_path: Path) -> None:
    ball = _ball(24, 6)
    draw_surface(tmp_path / "surface.png", ball)
    draw_slices(tmp_path / "slices.png", ball, 2.0, ball, "a ball")
    draw_maps_in_a_row(tmp_path / "row.png", [ball, np.zeros_like(ball)], ["one", "none"])
    draw_fsc(tmp_path / "fsc.png", {"corrected": np.linspace(1, 0, 13)}, 24, 2.0, 8.0)
    draw_guinier(tmp_path / "guinier.png", np.linspace(0, 0.06, 13), {"mean map": np.linspace(0, -2, 13)}, (-30.0, 0.1, 10.0, 5.0))
    for path in tmp_path.glob("*.png"):
        assert np.asarray(Image.open(path).convert("L")).std() > 5


def test_no_surface_is_missed_where_nothing_was_thought_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Following only rays that may meet the level shows what following all of them shows."""
    from scipy.ndimage import gaussian_filter

    from verglas.pictures import maps

    field = gaussian_filter(np.random.default_rng(0).standard_normal((30, 30, 30)), 2.0).astype(np.float32)
    for level in (float(np.quantile(field, 0.97)), -0.01):  # of scattered specks; below the 0 that lies outside
        seen = shaded_surface(field, level, pixels=80)
        with monkeypatch.context() as patch:
            patch.setattr(maps._View, "blocks_near", lambda view, _, strip: torch.ones(len(view.along), len(strip), 20, dtype=torch.bool))
            np.testing.assert_array_equal(seen, shaded_surface(field, level, pixels=80))


def test_a_surface_is_the_same_however_many_threads_look_at_it() -> None:
    ball, before = _ball(40, 12.0, (3, -2, 5)), torch.get_num_threads()
    try:
        seen = []
        for threads in (1, 3, 7):  # strips of all rows; three, and seven, that are not of the same height
            torch.set_num_threads(threads)
            seen.append(shaded_surface(ball, 0.5, pixels=80))
    finally:
        torch.set_num_threads(before)
    assert seen[0][..., 3].mean() > 0.1
    for other in seen[1:]:
        np.testing.assert_allclose(other, seen[0], atol=1e-5)


def test_a_large_map_is_drawn_from_fewer_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    ball = _ball(150, 40.0)
    whole = shaded_surface(ball, 0.5, pixels=60)
    monkeypatch.setattr("verglas.pictures.maps._FINEST", 100)
    assert np.abs(shaded_surface(ball, 0.5, pixels=60) - whole)[..., 3].mean() < 0.02
