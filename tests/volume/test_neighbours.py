import pytest
import torch

from verglas.volume.neighbours import local_neighbours
from verglas.volume.rotations import axis_rotation, euler_to_matrix, random_rotations, rotation_distance
from verglas.volume.sampling import random_perturbation, rotation_grid
from verglas.volume.symmetry import symmetry_operators


def poses(n, seed=0):
    return random_rotations(n, torch.Generator().manual_seed(seed))


def by_brute_force(grid, matrices, perturbation):
    """Distance of every pose of the grid to the nearest copy of each particle's pose [n, poses]."""
    copies = matrices[:, None] @ symmetry_operators(grid.group)
    turned = perturbation @ euler_to_matrix(grid.angles_of(torch.arange(len(grid))))
    return torch.stack([rotation_distance(copy[:, None], turned).amin(dim=0) for copy in copies])


@pytest.mark.parametrize("group", ["C1", "D2", "C7", "O", "I2"])
@pytest.mark.parametrize("turned", [False, True])
def test_near_poses_and_their_prior_agree_with_all_distances(group, turned):
    grid = rotation_grid(2, group, psi_step=10.0)
    perturbation = random_perturbation(15.0, torch.Generator().manual_seed(1)) if turned else torch.eye(3, dtype=torch.float64)
    matrices = torch.cat([poses(12), euler_to_matrix(torch.tensor([[0.0, 0.0, 20.0], [10.0, 180.0, 0.0]], dtype=torch.float64))])
    found = local_neighbours(grid, matrices, 20.0, 8.0, perturbation)
    distance = by_brute_force(grid, matrices, perturbation)
    reported = torch.zeros_like(distance, dtype=torch.bool)
    reported[found.particle, found.pose] = True
    assert int(reported.sum()) == len(found.pose)
    assert reported[distance <= 20.0 - 1e-6].all()
    assert distance[reported].max() <= 20.0 * 2**0.5 + 1e-6
    assert torch.equal(found.particle, found.particle.sort().values)
    # near the pose, direction and in-plane angle add up like perpendicular parts of the whole angle
    close = distance[found.particle, found.pose] < 10
    expected = -(distance[found.particle, found.pose][close] ** 2) / (2 * 8.0**2)
    assert (found.log_prior[close] - expected).abs().max() < 0.02


def test_something_is_found_however_small_the_cutoff():
    grid = rotation_grid(1, "D3")
    found = local_neighbours(grid, poses(50), 0.01)
    assert found.particle.tolist() == list(range(50))
    nearest = by_brute_force(grid, poses(50), torch.eye(3, dtype=torch.float64)).amin(dim=1)
    assert (by_brute_force(grid, poses(50), torch.eye(3, dtype=torch.float64))[found.particle, found.pose] - nearest).max() < 15


def test_copies_give_the_same_neighbours():
    grid, matrices = rotation_grid(2, "D2"), poses(20)
    first = local_neighbours(grid, matrices, 25.0)
    for operator in symmetry_operators("D2")[1:]:
        other = local_neighbours(grid, matrices @ operator, 25.0)
        pairs = [set(zip(f.particle.tolist(), f.pose.tolist())) for f in (first, other)]
        assert len(pairs[0] ^ pairs[1]) <= 2  # rounding may decide about a pose just at the cutoff
    for z in (0.001, 0.0):
        tilted = axis_rotation(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), z)
        assert len(local_neighbours(grid, tilted[None], 25.0).pose) > 10
