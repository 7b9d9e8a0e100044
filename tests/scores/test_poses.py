import pytest
import torch

from verglas.errors import InputError
from verglas.scores.poses import pose_errors
from verglas.volume.rotations import axis_rotation, euler_to_matrix, matrix_to_euler, random_rotations, rotation_distance
from verglas.volume.symmetry import normaliser, symmetry_operators

GROUPS = ["C1", "C4", "D2", "D3", "T", "O", "I3"]
N = 300


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def jitter(n, sigma, seed=1):
    axis = torch.randn(n, 3, generator=generator(seed), dtype=torch.float64)
    angle = torch.randn(n, generator=generator(seed + 1), dtype=torch.float64) * sigma
    return axis_rotation(axis, angle), angle.abs()


def scrambled(group, sigma, common=None, mirror=False):
    """True poses, and found ones with a known error: other copies by the group, one common rotation, the mirror's poses."""
    true = random_rotations(N, generator())
    operators = symmetry_operators(group)
    choice = torch.randint(len(operators), (N,), generator=generator(3))
    wobble, angle = jitter(N, sigma)
    found = wobble @ true @ operators[choice]
    if mirror:
        found = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)) @ found
    if common is not None:
        found = found @ common
    return matrix_to_euler(found), matrix_to_euler(true), angle


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("group", GROUPS)
def test_known_errors_come_back_through_every_equivalent_setting(group, mirror):
    for element in normaliser(group)[:: max(1, len(normaliser(group)) // 4)]:
        found, true, angle = scrambled(group, 3.0, element.T, mirror)
        errors = pose_errors(found, true, group)
        assert errors.mirrored == mirror
        assert (errors.degrees - angle).abs().mean() < 0.3
        assert errors.common_degrees < 1.0
        if group != "C1":
            copies = element @ symmetry_operators(group)
            axis_only = (errors.operator[2, 2] - element[2, 2]).abs() < 1e-6
            assert rotation_distance(copies, errors.operator).min() < 1e-4 or (group == "C4" and axis_only)


@pytest.mark.parametrize("group", ["C1", "C4"])
def test_free_rotations_are_taken_off(group):
    axis = torch.tensor([0.0, 0.0, 1.0] if group == "C4" else [1.0, 2.0, -1.0], dtype=torch.float64)
    found, true, angle = scrambled(group, 2.0, axis_rotation(axis, 37.0))
    errors = pose_errors(found, true, group)
    assert (errors.degrees - angle).abs().mean() < 0.3 and errors.common_degrees < 0.5
    stiff = pose_errors(found, true, group, common_rotation=False)
    assert stiff.degrees.median() > 10


def test_wrong_poses_do_not_pull_the_common_rotation():
    common = axis_rotation(torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64), 80.0)
    found, true, angle = scrambled("C1", 1.0, common)
    found[: N // 2] = matrix_to_euler(random_rotations(N // 2, generator(9)))
    errors = pose_errors(found, true)
    assert rotation_distance(errors.common, common.T) < 0.5
    assert (errors.degrees[N // 2 :] - angle[N // 2 :]).abs().mean() < 0.3


def test_reference_off_its_axes_is_told_by_the_common_rotation():
    off = axis_rotation(torch.tensor([1.0, 1.0, 0.3], dtype=torch.float64), 7.9)
    found, true, angle = scrambled("D2", 1.0, off)
    errors = pose_errors(found, true, "D2")
    assert errors.common_degrees == pytest.approx(7.9, abs=0.3)
    assert (errors.degrees - angle).abs().mean() < 0.3
    assert pose_errors(found, true, "D2", common_rotation=False).degrees.median() == pytest.approx(7.9, abs=0.5)


def test_unrelated_poses_score_as_badly_as_chance():
    found, true = (matrix_to_euler(random_rotations(N, generator(seed))) for seed in (5, 6))
    assert pose_errors(found, true, "C1").summary()["pose_median"] > 60
    assert pose_errors(found, true, "D2").summary()["within_10_degrees"] < 0.1


def test_view_error_leaves_the_in_plane_angle_out():
    true = matrix_to_euler(random_rotations(N, generator()))
    found = true.clone()
    found[::2, 2] += 8
    found[1::2, 2] -= 8
    errors = pose_errors(found, true, "D2")
    assert errors.degrees.median() == pytest.approx(8, abs=0.5) and errors.view_degrees.median() < 1.2
    assert errors.summary()["pose_90"] == pytest.approx(8, abs=1.2)


@pytest.mark.parametrize("group, offset", [("C1", [5.0, -3.0, 2.0]), ("C4", [0.0, 0.0, 4.0]), ("D2", [0.0, 0.0, 0.0])])
@pytest.mark.parametrize("mirror", [False, True])
def test_shift_errors_after_the_maps_own_offset(group, offset, mirror):
    found, true, _ = scrambled(group, 0.5, mirror=mirror)
    moved = euler_to_matrix(found)[:, :2] @ torch.tensor(offset, dtype=torch.float64)
    true_origins = torch.randn(N, 2, generator=generator(11), dtype=torch.float64) * 4
    noise = torch.randn(N, 2, generator=generator(12), dtype=torch.float64) * 0.7
    errors = pose_errors(found, true, group, found_origins=true_origins + moved + noise, true_origins=true_origins)
    assert errors.shift is not None and errors.offset is not None
    assert (errors.offset - torch.tensor(offset, dtype=torch.float64)).abs().max() < 0.3
    assert (errors.shift - noise.norm(dim=1)).abs().max() < 0.4
    assert errors.summary()["shift_rms"] == pytest.approx(0.7 * 2**0.5, rel=0.1)


def test_offset_across_the_axis_of_a_group_is_an_error_of_the_shifts():
    found, true, _ = scrambled("C4", 0.0)
    moved = euler_to_matrix(found)[:, :2] @ torch.tensor([6.0, 0.0, 0.0], dtype=torch.float64)
    errors = pose_errors(found, true, "C4", found_origins=moved, true_origins=torch.zeros(N, 2))
    assert errors.shift is not None and errors.shift.median() > 3


def test_faults_are_named():
    angles = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"found angles have the shape \(3, 3\), expected \(4, 3\)"):
        pose_errors(angles[:3], angles)
    with pytest.raises(ValueError, match="true angles of row 2"):
        pose_errors(angles, angles.clone().index_fill_(0, torch.tensor([2]), float("nan")))
    with pytest.raises(ValueError, match="at least one particle"):
        pose_errors(angles[:0], angles[:0])
    with pytest.raises(InputError, match="known"):
        pose_errors(angles, angles, "D")
