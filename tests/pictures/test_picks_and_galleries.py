"""Pictures show what they are given, where it is."""

import numpy as np
from PIL import Image

from verglas.pictures.galleries import save_classes, save_gallery
from verglas.pictures.picks import draw_picks, draw_scores


def read(path, mode="L"):
    with Image.open(path) as picture:
        return np.asarray(picture.convert(mode)).astype(int)


def coloured(path, channel):
    """Centre (x, y), as shares of the picture, of the pixels where one colour channel stands out, and their number."""
    pixels = read(path, "RGB")
    others = [pixels[..., c] for c in range(3) if c != channel]
    y, x = np.nonzero(pixels[..., channel] - np.maximum(*others) > 60)
    return x.mean() / pixels.shape[1], y.mean() / pixels.shape[0], len(x)


def test_circles_lie_on_the_picks(tmp_path):
    micrograph = np.random.default_rng(0).normal(size=(300, 400)).astype(np.float32)
    draw_picks(tmp_path / "upper.png", micrograph, 2.0, np.array([[100.0, 75.0]]), 80, title="one pick")
    draw_picks(tmp_path / "lower.png", micrograph, 2.0, np.array([[300.0, 225.0]]), 80, title="one pick")
    (left, top, _), (right, bottom, _) = coloured(tmp_path / "upper.png", 1), coloured(tmp_path / "lower.png", 1)
    assert abs(left - 0.25) < 0.02 and abs(right - 0.75) < 0.02
    assert 0.44 < bottom - top < 0.5 and top < 0.35  # half the height of the image, which leaves room for the title


def test_truth_has_another_colour_and_no_picks_are_no_error(tmp_path):
    micrograph = np.random.default_rng(0).normal(size=(200, 200)).astype(np.float32)
    draw_picks(tmp_path / "a.png", micrograph, 2.0, np.zeros((0, 2)), 80, truth=np.array([[150.0, 100.0]]))
    x, _, count = coloured(tmp_path / "a.png", 0)
    assert abs(x - 0.75) < 0.04 and count > 100
    draw_scores(tmp_path / "b.png", np.random.default_rng(1).normal(size=300), 1.5)
    draw_scores(tmp_path / "c.png", np.zeros(0), -np.inf)
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_galleries_show_every_tile_in_order(tmp_path):
    images = np.zeros((4, 20, 20))
    for number in range(4):
        images[number, : 4 * (number + 1)] = 1  # a bright share that tells the images apart
    save_gallery(tmp_path / "a.png", images, columns=4)
    picture = read(tmp_path / "a.png")
    body = picture[picture.shape[0] // 4 :]
    shares = [float((part[:, part.shape[1] // 2] > 200).mean()) for part in np.array_split(body, 4, axis=1)]
    assert shares == sorted(shares) and shares[3] > shares[0]
    save_classes(tmp_path / "b.png", images, np.array([0.1, 0.2, 0.3, 0.4]), np.array([20.0, 15.0, np.inf, 9.0]))
    picture = read(tmp_path / "b.png")
    top = picture[picture.shape[0] // 10 : picture.shape[0] // 2]
    first, second = (float((part[:, part.shape[1] // 2] > 200).mean()) for part in np.array_split(top, 3, axis=1)[:2])
    assert first > second  # the fullest class, with the largest bright share, comes first


def test_blank_images_and_too_many(tmp_path):
    images = np.random.default_rng(0).normal(size=(130, 8, 8))
    images[0], images[1] = 5.0, np.nan
    save_gallery(tmp_path / "a.png", images, [str(n) for n in range(130)], title="many")
    assert read(tmp_path / "a.png").shape[1] > 500
