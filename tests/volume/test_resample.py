"""Maps on other grids: CASES 18, rotations, shifts and hands."""

import subprocess
from pathlib import Path

import mrcfile
import pytest
import torch

from verglas.io.mrc import write_map
from verglas.volume.resample import flip_hand, rescale_map, rotate_map, shift_map
from verglas.volume.rotations import random_rotations
from volume.maps_for_tests import centre_of_mass, chain, gaussian

PLACE = (5.0, -7.0, 3.0)


def test_a_reference_taken_to_the_datas_grid_does_not_drift() -> None:
    """Case 18: 48 px of 1.249 Å into 68 px of exactly 0.885 Å, the result used as the next reference, three times."""
    reference, pixel_size = gaussian(48, 1.249, PLACE, 4.0), 1.249
    for _ in range(3):
        reference, pixel_size = rescale_map(reference, pixel_size, 0.885, 68), 0.885
        assert reference.shape == (68, 68, 68)
        assert torch.allclose(reference, gaussian(68, 0.885, PLACE, 4.0), atol=2e-4)
        assert (centre_of_mass(reference, 0.885) - torch.tensor(PLACE)).abs().max() < 0.01


def test_there_and_back_again_three_times() -> None:
    start = gaussian(48, 1.249, PLACE, 4.0)
    density = start
    for _ in range(3):
        density = rescale_map(rescale_map(density, 1.249, 0.885, 68), 0.885, 1.249, 48)
    assert (density - start).abs().max() < 1e-3
    assert (centre_of_mass(density, 1.249) - centre_of_mass(start, 1.249)).abs().max() < 0.01


def test_a_map_on_the_grid_already_is_left_alone() -> None:
    density = chain(32, 2.0)
    assert rescale_map(density, 2.0, 2.0, 32) is density


@pytest.mark.parametrize(("size", "box"), [(48, 32), (47, 32), (48, 33), (33, 47), (40, 64)])
def test_odd_and_even_boxes_keep_the_centre(size: int, box: int) -> None:
    span, sigma = 96.0, 8.0
    coarse, fine = span / size, 94.0 / box
    assert torch.allclose(
        rescale_map(gaussian(size, coarse, PLACE, sigma), coarse, fine, box), gaussian(box, fine, PLACE, sigma), atol=1e-3
    )


def test_a_larger_box_is_empty_beyond_the_old_one() -> None:
    larger = rescale_map(torch.ones(16, 16, 16), 2.0, 2.0, 32)
    assert torch.allclose(larger[8:24, 8:24, 8:24], torch.ones(16, 16, 16), atol=1e-5)
    assert larger[:7].abs().max() == 0 and larger[..., 25:].abs().max() == 0


def test_rotation_moves_density_as_the_matrix_moves_points() -> None:
    rotation = random_rotations(1, torch.Generator().manual_seed(3))[0]
    turned = rotate_map(gaussian(40, 2.0, (12.0, -6.0, 4.0), 5.0), rotation)
    expected = rotation @ torch.tensor([12.0, -6.0, 4.0], dtype=torch.float64)
    assert torch.allclose(turned, gaussian(40, 2.0, tuple(expected.tolist()), 5.0), atol=5e-3)


def test_shift_moves_by_fractions() -> None:
    moved = shift_map(gaussian(40, 1.0, (0.0, 0.0, 0.0), 3.0), torch.tensor([1.5, -2.25, 0.75]))
    assert torch.allclose(moved, gaussian(40, 1.0, (1.5, -2.25, 0.75), 3.0), atol=1e-4)


@pytest.mark.relion
def test_hand_is_flipped_as_relion_does(tmp_path: Path) -> None:
    density = chain(24, 3.0)
    write_map(tmp_path / "map.mrc", density.numpy(), 3.0)
    subprocess.run(
        ["relion_image_handler", "--i", "map.mrc", "--o", "flipped.mrc", "--invert_hand"], cwd=tmp_path, check=True, capture_output=True
    )
    assert torch.equal(flip_hand(density), torch.tensor(mrcfile.read(tmp_path / "flipped.mrc")))


@pytest.mark.parametrize("size", [24, 25])
def test_flipped_twice_is_unchanged(size: int) -> None:
    density = chain(size, 3.0)
    assert torch.equal(flip_hand(flip_hand(density)), density)
    assert torch.allclose(flip_hand(gaussian(size, 3.0, PLACE, 6.0)), gaussian(size, 3.0, (-5.0, -7.0, 3.0), 6.0), atol=1e-5)
