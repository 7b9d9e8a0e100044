"""Symmetry axes of maps that lie anyhow."""

import pytest
import torch

from verglas.volume.axes import find_axes
from verglas.volume.resample import rotate_map, shift_map
from verglas.volume.rotations import random_rotations
from verglas.volume.symmetry import symmetrise_map, symmetry_misfit
from volume.maps_for_tests import chain


@pytest.mark.parametrize("group", ["C2", "C3", "D2", "T", "O", "I1"])
def test_axes_and_centre_are_found(group: str) -> None:
    generator = torch.Generator().manual_seed(len(group))
    one = shift_map(chain(28, 3.2, seed=1, atoms=300, radius=20.0), torch.tensor([3.0, 4.0, 2.5]))
    symmetric = symmetrise_map(one, group)
    lying = shift_map(rotate_map(symmetric, random_rotations(1, generator)[0]), torch.tensor([1.5, -1.0, 0.7]))
    lying = lying + 0.1 * lying.std() * torch.randn(lying.shape, generator=generator)
    assert symmetry_misfit(lying, group) > 0.4
    found = find_axes(lying, group, radius=13.0, max_shell=11)
    assert symmetry_misfit(found.apply(lying), group) < 0.06
    assert found.correlation > 0.9


def test_a_map_without_the_symmetry_scores_low() -> None:
    density = chain(32, 2.5, seed=6)
    assert find_axes(density, "D2", radius=14.0, max_shell=10).correlation < 0.7


def test_c1_has_no_axes() -> None:
    with pytest.raises(ValueError, match="no axes"):
        find_axes(chain(16, 4.0), "C1", radius=6.0, max_shell=4)
