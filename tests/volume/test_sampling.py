import math

import healpix
import numpy as np
import pytest
import torch

from verglas.volume import sampling as sa
from verglas.volume.rotations import euler_to_matrix, random_rotations, rotation_distance
from verglas.volume.symmetry import symmetry_operators

GROUPS = ["C1", "C3", "D2", "D7", "T", "O", "I2", "I4"]


@pytest.mark.parametrize("order", range(7))
def test_directions_are_healpix_in_nested_order(order):
    rot, tilt = sa.healpix_directions(order)
    theta, phi = healpix.pix2ang(2**order, np.arange(12 * 4**order), nest=True)
    assert np.abs(np.rad2deg(theta) - tilt.numpy()).max() < 1e-9
    assert np.abs((np.rad2deg(phi) - rot.numpy() + 180) % 360 - 180).max() < 1e-9
    assert torch.equal(sa.healpix_pixels(order, rot, tilt), torch.arange(12 * 4**order))


def test_any_direction_finds_its_pixel():
    generator = np.random.default_rng(4)
    theta, phi = np.arccos(generator.uniform(-1, 1, 20000)), generator.uniform(0, 2 * np.pi, 20000)
    ours = sa.healpix_pixels(5, torch.tensor(np.rad2deg(phi) - 360), torch.tensor(np.rad2deg(theta)))
    assert (ours.numpy() == healpix.ang2pix(32, theta, phi, nest=True)).all()


def poses_of(grid: sa.RotationGrid) -> torch.Tensor:
    """Rotation matrices of every pose of the grid [n, 3, 3]."""
    return euler_to_matrix(grid.angles_of(torch.arange(len(grid))))


def test_first_directions_that_relion_writes_for_order_5():
    rot, tilt = sa.healpix_directions(5, torch.arange(3))
    assert torch.allclose(rot, torch.tensor([45.0, 46.4063, 43.5938], dtype=torch.float64), atol=1e-4)
    assert torch.allclose(tilt, torch.tensor([88.8063, 87.6120, 87.6120], dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("group", GROUPS)
def test_grid_covers_one_unit_as_closely_as_all_rotations(group):
    grid = sa.rotation_grid(2, group)
    operators = symmetry_operators(group)
    assert len(grid) == len(grid.pixels) * 24 and grid.psi_step == 15.0
    everywhere = random_rotations(300, torch.Generator().manual_seed(5))
    copies = (everywhere[:, None] @ operators).flatten(0, 1)
    nearest = rotation_distance(copies[:, None], poses_of(grid)[None]).amin(dim=1).reshape(300, -1).amin(dim=1)
    assert nearest.max() < 15.0
    shares = sa.shares_in_unit(2, group)[grid.pixels]
    assert abs(float(shares.sum()) * len(operators) / 192 - 1) < 0.1


@pytest.mark.parametrize("group", GROUPS)
def test_grid_is_no_larger_than_a_unit_and_its_border(group):
    grid = sa.rotation_grid(4, group)
    operators = symmetry_operators(group)
    assert 1 <= len(grid.pixels) * len(operators) / (12 * 4**4) < 1 + 0.05 * len(operators) ** 0.5
    inner = sa.shares_in_unit(4, group)[grid.pixels] == 1
    poses = poses_of(grid)
    kept = sa.asymmetric_unit(poses, group)
    assert rotation_distance(kept, poses)[inner.repeat_interleave(grid.n_psi)].max() < 1e-5


@pytest.mark.parametrize("group", GROUPS)
def test_asymmetric_unit_is_the_same_for_all_copies(group):
    poses = random_rotations(200, torch.Generator().manual_seed(6))
    kept = sa.asymmetric_unit(poses, group)
    for operator in symmetry_operators(group):
        assert (sa.asymmetric_unit(poses @ operator, group) - kept).abs().max() < 1e-9
    assert rotation_distance(poses[:, None] @ symmetry_operators(group), kept[:, None]).amin(dim=1).max() < 1e-5


def test_order_of_poses_and_psi_step():
    grid = sa.rotation_grid(1, "C2", psi_step=50.0)
    angles = grid.angles_of(torch.arange(len(grid)))
    assert grid.n_psi == 7 and angles.shape == (len(grid), 3)
    pose = torch.tensor([0, 6, 7, len(grid) - 1])
    assert torch.equal(grid.angles_of(pose), angles[pose])
    assert torch.allclose(angles[6, :2], grid.directions[0]) and torch.allclose(angles[7, :2], grid.directions[1])


def test_children_are_the_finer_grid():
    coarse, fine = sa.rotation_grid(1, "C1"), sa.rotation_grid(2, "C1")
    for levels, grid in ((1, fine), (2, sa.rotation_grid(3, "C1"))):
        children = coarse.children(torch.arange(len(coarse)), levels)
        assert children.shape == (len(coarse), 8**levels, 3)
        key = (children.reshape(-1, 3) * 1e6).round().long()
        whole = (grid.angles_of(torch.arange(len(grid))) * 1e6).round().long()
        assert {tuple(row) for row in key.tolist()} == {tuple(row) for row in whole.tolist()}
    parents = poses_of(coarse)[:, None]
    assert rotation_distance(euler_to_matrix(coarse.children(torch.arange(len(coarse)))), parents).max() < 30


def test_children_of_a_unit_cover_a_unit():
    grid = sa.rotation_grid(1, "D3")
    children = euler_to_matrix(grid.children(torch.arange(len(grid)))).flatten(0, 1)
    poses = random_rotations(150, torch.Generator().manual_seed(7))
    copies = poses[:, None] @ symmetry_operators("D3")
    nearest = rotation_distance(copies[:, :, None], children).amin(dim=(1, 2))
    assert nearest.max() < 15.0


def test_perturbation_is_small_and_leaves_the_cover():
    generator = torch.Generator().manual_seed(8)
    turns = torch.stack([sa.random_perturbation(15.0, generator) for _ in range(200)])
    size = rotation_distance(turns, torch.eye(3, dtype=torch.float64))
    assert size.max() <= 7.5 and size.mean() > 4.5
    grid = sa.rotation_grid(2, "D2")
    poses = random_rotations(200, generator)
    copies = poses[:, None] @ symmetry_operators("D2")
    turned = turns[0] @ poses_of(grid)
    assert rotation_distance(copies[:, :, None], turned).amin(dim=(1, 2)).max() < 15.0


def test_grids_of_2d_searches():
    psi = sa.psi_grid(12.0)
    assert len(psi) == 30 and torch.allclose(psi.diff(), torch.tensor(12.0, dtype=torch.float64))
    fine = sa.psi_children(psi, 12.0)
    assert fine.shape == (30, 2) and torch.allclose(fine.flatten(), sa.psi_grid(6.0))
    shifts = sa.shift_grid(5, 2)
    assert len(shifts) == 21 and shifts[0].tolist() == [0, 0]
    assert shifts.norm(dim=1).max() <= 5 and len({tuple(s) for s in shifts.tolist()}) == 21
    assert sa.shift_grid(0, 1).tolist() == [[0, 0]] and len(sa.shift_grid(1.5, 0.5)) == 29
    children = sa.shift_children(shifts, 2.0)
    assert children.shape == (21, 4, 2) and torch.allclose(children.mean(dim=1), shifts)
    assert torch.allclose((children - shifts[:, None]).norm(dim=-1), torch.tensor(math.sqrt(0.5), dtype=torch.float64))
