"""Boxes, recentring and normalisation against their definitions; RELION's own images are compared in tests/jobs/test_extract.py."""

import numpy as np
import pytest
import torch

from verglas.micrograph.extraction import (
    beyond_edge,
    centre_inside,
    centre_pixels,
    cut_boxes,
    moved_to_point,
    particle_images,
    recentred,
)
from verglas.micrograph.normalisation import background_mask, normalise
from verglas.volume.rotations import euler_to_matrix


def test_box_puts_the_truncated_coordinate_on_its_centre():
    image = torch.arange(60 * 70.0).reshape(60, 70)
    boxes = cut_boxes(image, centre_pixels(np.array([[30.9, 20.2], [40.0, 33.999]])), 16)
    assert boxes[0, 8, 8] == image[20, 30] and boxes[1, 8, 8] == image[33, 40]
    assert torch.equal(boxes[0], image[12:28, 22:38])


def test_boxes_over_the_edge_repeat_the_nearest_pixel():
    image = torch.arange(20 * 24.0).reshape(20, 24)
    centres = np.array([[2, 10], [23, 19], [12, 10]])
    boxes = cut_boxes(image, centres, 8)
    assert torch.equal(boxes[0, :, 0], image[6:14, 0]) and torch.equal(boxes[0, :, 2], image[6:14, 0])
    assert boxes[1, 7, 7] == image[19, 23] and boxes[1, 4, 4] == image[19, 23]
    assert beyond_edge(centres, (20, 24), 8).tolist() == [2, 3, 0]
    assert centre_inside(np.array([[0, 0], [24, 3], [23, 19], [-1, 5]]), (20, 24)).tolist() == [True, False, True, False]


def test_recentring_loses_nothing():
    random = np.random.default_rng(1)
    coordinates, origins = random.uniform(50, 400, (500, 2)), random.normal(0, 9, (500, 2))
    new, rest = recentred(coordinates, origins, 1.3)
    assert np.array_equal(new, np.rint(new)) and np.abs(rest).max() <= 0.5 * 1.3 + 1e-9
    place_before = np.trunc(coordinates) - origins / 1.3
    assert np.trunc(new) - rest / 1.3 == pytest.approx(place_before, abs=1e-9)
    again, same = recentred(new, rest, 1.3)
    assert np.array_equal(again, new) and same == pytest.approx(rest, abs=1e-9)


def test_recentring_on_a_point_follows_its_projection():
    angles = np.array([[30.0, 50.0, 70.0], [0.0, 0.0, 0.0]])
    moved = moved_to_point(np.zeros((2, 2)), angles, (24.0, 10.0, -16.0))
    # RELION.md, 1: the point falls on (6.72, -28.23); the shift that centres it is the opposite
    assert -moved[0] == pytest.approx([6.72, -28.23], abs=0.01)
    assert -moved[1] == pytest.approx([24.0, 10.0])
    matrix = euler_to_matrix(torch.from_numpy(angles[:1]))[0].numpy()
    assert -moved[0] == pytest.approx((matrix @ [24.0, 10.0, -16.0])[:2])


def test_background_comes_out_with_mean_0_and_deviation_1():
    generator = torch.Generator().manual_seed(1)
    line = torch.arange(40.0)
    images = 5 * torch.randn(3, 40, 40, generator=generator) + 100 + 0.7 * line + 0.3 * line[:, None]
    outside = background_mask(40, 14.0)
    assert not outside[20, 34] and outside[20, 35]  # strictly beyond the radius
    result = normalise(images, 14.0)
    background = result.images[:, outside].double()
    assert result.sound.all()
    assert background.mean(1).abs().max() < 1e-6 and (background.std(1, correction=0) - 1).abs().max() < 1e-6
    y, x = torch.nonzero(outside, as_tuple=True)
    tilts = torch.stack([(background * (axis - 20)).mean(1) for axis in (x, y)])
    assert tilts.abs().max() < 1e-5
    level = normalise(images, 14.0, ramp=False).images[:, outside]
    assert level.mean(1).abs().max() < 1e-5
    assert (level * (x - 20)).mean(1).abs().min() > 1


def test_dust_is_replaced_and_only_dust():
    images = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(2))
    images[0, 2, 3], images[0, 5, 5] = 80.0, -60.0
    clean = normalise(images, 12.0, white_dust=6, black_dust=6).images
    assert clean.abs().max() < 6
    only_white = normalise(images, 12.0, white_dust=6).images
    assert only_white.max() < 6 and only_white.min() < -15


def test_blank_and_broken_images_are_told():
    images = torch.randn(4, 24, 24, generator=torch.Generator().manual_seed(3))
    images[1], images[2, 3, 3], images[3] = 7.0, float("nan"), images[3] * 1000
    result = normalise(images, 9.0)
    assert result.sound.tolist() == [True, False, False, True]
    assert torch.isfinite(result.images).all() and result.images[1].abs().max() == 0
    assert result.images[3].abs().max() < 6


def test_batches_do_not_depend_on_their_size_and_images_are_bright():
    image = torch.randn(300, 300, generator=torch.Generator().manual_seed(4))
    image[148:153, 118:123] -= 30
    centres = np.array([[120, 150], [60, 60], [250, 200]])
    together = torch.cat([b.images for b in particle_images(image, centres, 64, rescale=32, normalise_radius=12.0)])
    alone = torch.cat([b.images for c in centres for b in particle_images(image, c[None], 64, rescale=32, normalise_radius=12.0)])
    assert together.shape == (3, 32, 32) and torch.allclose(together, alone, atol=1e-5)
    assert together[0, 16, 16] > 10
