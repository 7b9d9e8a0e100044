"""A map against the true one."""

import pytest
import torch

from verglas.scores.maps import map_fsc_to_truth
from verglas.volume.filters import lowpass
from verglas.volume.resample import flip_hand, rotate_map, shift_map
from verglas.volume.rotations import random_rotations
from volume.maps_for_tests import chain


@pytest.mark.parametrize("mirrored", [False, True])
def test_resolution_and_hand_of_a_turned_map_are_found(mirrored: bool) -> None:
    """A map cut at 10 Å, turned, moved and mirrored, is right to 10 Å and no further."""
    truth, pixel_size, size = chain(40, 2.5, seed=9), 2.5, 40
    rotation = random_rotations(1, torch.Generator().manual_seed(11))[0]
    turned = shift_map(rotate_map(flip_hand(truth) if mirrored else truth, rotation), torch.tensor([1.2, -0.4, 2.0]))
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    score = map_fsc_to_truth(lowpass(turned, pixel_size, 10.0) + 1e-3 * noise, truth, pixel_size, radius=36.0)
    assert score.mirrored == mirrored
    assert abs(score.shell - size * pixel_size / 10) <= 1
    assert score.resolution == pytest.approx(size * pixel_size / score.shell)
    assert score.fsc[1:8].min() > 0.97
