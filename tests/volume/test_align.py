"""One map laid onto another, against known rotation, shift and hand."""

import pytest
import torch

from verglas.volume.align import align_maps
from verglas.volume.resample import flip_hand, rotate_map, shift_map
from verglas.volume.rotations import random_rotations, rotation_distance
from verglas.volume.symmetry import normaliser, symmetrise_map
from volume.maps_for_tests import chain


@pytest.mark.parametrize(("mirrored", "noise"), [(False, 0.0), (True, 0.05), (False, 0.05)])
def test_rotation_shift_and_hand_are_found(mirrored: bool, noise: float) -> None:
    generator = torch.Generator().manual_seed(int(mirrored) + 5)
    density = chain(40, 2.5, seed=4)
    rotation = random_rotations(1, generator)[0]
    shift = 6 * torch.rand(3, generator=generator, dtype=torch.float64) - 3
    fixed = shift_map(rotate_map(flip_hand(density) if mirrored else density, rotation), shift)
    fixed = fixed + noise * torch.randn(fixed.shape, generator=generator)
    found = align_maps(density, fixed)
    assert found.mirrored == mirrored
    assert rotation_distance(found.rotation, rotation) < (1.0 if noise else 0.4)
    assert (found.shift - shift).abs().max() < (0.2 if noise else 0.1)
    laid = found.apply(density)
    assert torch.corrcoef(torch.stack([laid.flatten(), fixed.flatten()]))[0, 1] > (0.25 if noise else 0.97)


def test_search_over_the_normaliser_of_a_group() -> None:
    density = symmetrise_map(chain(36, 2.5, seed=2), "D2")
    turn = normaliser("D2")[7]
    found = align_maps(density, rotate_map(density, turn), rotations=normaliser("D2"), try_mirror=False)
    # any element of the group is as good
    misfit = min(float(rotation_distance(found.rotation, turn @ g)) for g in normaliser("D2") if _keeps(density, g))
    assert misfit < 0.5
    assert found.correlation > 0.98


def _keeps(density: torch.Tensor, rotation: torch.Tensor) -> bool:
    return bool((rotate_map(density, rotation) - density).abs().mean() < 0.1 * density.abs().mean())


def test_unlike_boxes_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot align"):
        align_maps(torch.zeros(16, 16, 16), torch.zeros(18, 18, 18))
