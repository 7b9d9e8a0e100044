"""Sums in whole numbers: any order gives the same bits, and they are right to what float32 (float64) can tell."""

import math

import pytest
import torch

from verglas.volume.fixed_point import FixedPoint, exact_sums, most_added
from verglas.volume.rotations import random_rotations
from verglas.volume.slices import FourierSums, pixel_list


def add(sums: FixedPoint, values: torch.Tensor) -> None:
    """Add `values` float64 [1, 1, 3] to all voxels, as if they were the most that is ever added."""
    first, second = sums.make_room((float(values[..., :2].abs().max()), float(values[..., 2].abs())))
    sums.counts += (values * torch.tensor([first, first, second], dtype=torch.float64)).round().long()


def test_sums_are_right_while_the_steps_grow() -> None:
    """From numbers of 1e-3 to numbers of 1e20: far more than what the first steps have room for."""
    generator, total = torch.Generator().manual_seed(1), torch.zeros(1, 1, 3, dtype=torch.float64)
    sums = FixedPoint(2, 5, "cpu")
    for size in torch.logspace(-3, 20, 200, dtype=torch.float64):
        values = size * torch.tensor([1.0, 1.0, 1e-6]) * torch.randn(1, 1, 3, generator=generator, dtype=torch.float64)
        add(sums, values)
        total += values
        assert sums.counts.abs().max() < 1 << 62
        assert sums.floats().shape == (2, 5, 3)
        for kind in (slice(2), slice(2, 3)):
            assert (sums.floats() - total)[..., kind].abs().max() <= 1e-6 * total[..., kind].abs().max()


def test_small_numbers_beside_large_ones_keep_their_bits() -> None:
    sums = FixedPoint(1, 2, "cpu")
    first, second = sums.make_room((1.0, 0.0))
    sums.counts[0, 0, 0] = round(first * 0.7)
    sums.counts[0, 1, 0] = round(first * 0.7e-7)
    assert sums.floats()[0, :, 0].tolist() == pytest.approx([0.7, 0.7e-7], rel=1e-6)
    assert second == 1.0 and not sums.floats()[..., 2].any()


def test_as_much_as_one_likes_fits() -> None:
    """Equal additions without end: what the counts hold stays under 62 bits, and no bit is lost that float32 would have kept."""
    sums, times = FixedPoint(1, 1, "cpu"), 1 << 14
    for _ in range(times):
        add(sums, torch.tensor([[[1.0, -1.0, 0.3]]], dtype=torch.float64))
    assert sums.counts.abs().max() < 1 << 62
    assert sums.floats().flatten().tolist() == pytest.approx([times, -times, 0.3 * times], rel=1e-6)


@pytest.mark.parametrize("jump", [1e30, 1e60])
def test_a_leap_leaves_only_what_is_large(jump: float) -> None:
    sums = FixedPoint(1, 1, "cpu")
    for size in (1.0, jump):
        add(sums, torch.full((1, 1, 3), size, dtype=torch.float64))
    found = sums.floats().flatten().double()
    assert bool((found / jump - 1 < 1e-6).all()) if jump < 1e38 else bool(found.isinf().all())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    values = torch.ones(2, 3, dtype=torch.complex64)
    values[1, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        FixedPoint(1, 1, "cpu").make_room(most_added(values, None))


def test_nothing_gains_more_than_is_said() -> None:
    """Slices through the same plane, every pixel at its largest: what any voxel gets stays within the bound."""
    for padding, matrices in ((1, torch.eye(3).expand(9, 3, 3)), (1, random_rotations(1).float().expand(9, 3, 3)), (2, torch.eye(3)[None])):
        pixels = pixel_list(16, 7, min_shell=0)
        numerators, weights = torch.full((len(matrices), len(pixels)), 3 + 4j), torch.full((len(matrices), len(pixels)), 2.0)
        sums = FourierSums(16, 3, 7, padding)
        sums.add(matrices, pixels, numerators, weights)
        of_numerators, of_weights = most_added(numerators, weights)
        assert of_numerators == 8 * 5 * len(matrices) and of_weights == 8 * 2 * len(matrices)
        assert sums.data[..., :2].abs().max() <= of_numerators and sums.data[..., 2].max() <= of_weights
    assert most_added(numerators[:0], weights[:0]) == (0.0, 0.0)
    assert most_added(numerators, None)[1] == 0.0


def test_sums_by_index_are_exact_in_any_order() -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(3, 5000, generator=generator, dtype=torch.float64)
    values *= torch.exp(4 * torch.randn(3, 5000, generator=generator, dtype=torch.float64))
    values[2] *= 1e-200
    place, order = torch.randint(0, 7, (5000,), generator=generator), torch.randperm(5000, generator=generator)
    found = exact_sums(place, values, 9)
    assert torch.equal(found, exact_sums(place[order], values[:, order], 9))
    for row, of_row in zip(values, found):
        assert of_row.tolist() == pytest.approx([math.fsum(row[place == number].tolist()) for number in range(9)], rel=1e-14)


def test_sums_by_index_of_nothing_and_of_no_numbers() -> None:
    place = torch.tensor([0, 1, 1])
    assert exact_sums(place[:0], torch.zeros(4, 0, dtype=torch.float64), 2).tolist() == 4 * [[0.0, 0.0]]
    assert exact_sums(place, torch.zeros(3, dtype=torch.float64), 2).tolist() == [0.0, 0.0]
    rows = torch.tensor([[1.0, 2.0, math.nan], [1.0, 2.0, 3.0], [math.inf, 0.0, 0.0]], dtype=torch.float64)
    found = exact_sums(place, rows, 2)
    assert found[1].tolist() == [1.0, 5.0] and bool(found[0].isnan().all() and found[2].isnan().all())
