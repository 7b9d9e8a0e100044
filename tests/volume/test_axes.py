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


@pytest.mark.parametrize("group", ["D3", "I2", "I3", "I4"])
def test_the_axes_are_those_of_the_setting(group: str) -> None:
    """The settings of one group differ by a turn alone: the map comes to lie in its own, and in no other."""
    generator = torch.Generator().manual_seed(2)
    one = shift_map(chain(20, 4.5, seed=1, atoms=100, radius=11.0), torch.tensor([3.3, 4.4, 2.8]))
    lying = shift_map(rotate_map(symmetrise_map(one, group), random_rotations(1, generator)[0]), torch.tensor([1.1, -0.7, 0.5]))
    lying = lying + 0.1 * lying.std() * torch.randn(lying.shape, generator=generator)
    assert symmetry_misfit(lying, group) > 0.8
    found = find_axes(lying, group, radius=9.3, max_shell=8, coarse_shell=4)
    standing = found.apply(lying)
    assert symmetry_misfit(standing, group) < 0.1 and found.correlation > 0.9
    assert all(symmetry_misfit(standing, other) > 0.3 for other in ("I1", "I2", "I3", "I4") if other != group)


def test_a_map_without_the_symmetry_scores_low() -> None:
    density = chain(32, 2.5, seed=6)
    assert find_axes(density, "D2", radius=14.0, max_shell=10).correlation < 0.7


def test_c1_has_no_axes() -> None:
    with pytest.raises(ValueError, match="no axes"):
        find_axes(chain(16, 4.0), "C1", radius=6.0, max_shell=4)
