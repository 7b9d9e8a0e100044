import pytest
import torch

from verglas.volume import rotations as ro


def random(n, seed=0):
    return ro.random_rotations(n, torch.Generator().manual_seed(seed))


def test_relions_worked_example():
    matrix = ro.euler_to_matrix(torch.tensor([30.0, 50.0, 70.0], dtype=torch.float64))
    expected = torch.tensor(
        [[-0.27945, 0.92372, -0.26200], [-0.69411, -0.00581, 0.71985], [0.66341, 0.38302, 0.64279]], dtype=torch.float64
    )
    assert (matrix - expected).abs().max() < 1e-5
    point = matrix @ torch.tensor([24.0, 10.0, -16.0], dtype=torch.float64)
    assert torch.allclose(point[:2], torch.tensor([6.72, -28.23], dtype=torch.float64), atol=0.01)


def test_angles_come_back_from_any_rotation_and_from_the_poles():
    matrices = random(500).reshape(10, 50, 3, 3)
    angles = ro.matrix_to_euler(matrices)
    assert angles.shape == (10, 50, 3) and angles[..., 1].min() >= 0 and angles[..., 1].max() <= 180
    assert (ro.euler_to_matrix(angles) - matrices).abs().max() < 1e-12
    poles = torch.tensor([[25.0, 0.0, 40.0], [25.0, 180.0, 40.0], [-170.0, 0.0, -60.0], [0.0, 180.0, 0.0]], dtype=torch.float64)
    back = ro.matrix_to_euler(ro.euler_to_matrix(poles))
    assert torch.allclose(back[:, 0], torch.zeros(4, dtype=torch.float64)) and torch.allclose(back[:, 1], poles[:, 1])
    assert (ro.euler_to_matrix(back) - ro.euler_to_matrix(poles)).abs().max() < 1e-12


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-4)])
@pytest.mark.parametrize("angle", [0.001, 1.0, 90.0, 179.0, 180.0])
def test_distance_is_the_angle_turned_by(angle, dtype, tolerance):
    start = random(20).to(dtype)
    turned = start @ ro.axis_rotation(torch.randn(20, 3, dtype=dtype), angle)
    # near half a turn the chord hardly changes with the angle: the square root of the rounding error is what can be had
    allowed = tolerance if angle < 170 else tolerance**0.5 * 5
    assert (ro.rotation_distance(start, turned) - angle).abs().max() < allowed


def test_axis_rotation_about_z_is_psi_and_quaternions_agree_with_it():
    z = torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64)
    expected = ro.euler_to_matrix(torch.tensor([0.0, 0.0, 33.0], dtype=torch.float64))
    assert (ro.axis_rotation(z, 33.0) - expected).abs().max() < 1e-12
    axis = torch.nn.functional.normalize(torch.randn(30, 3, dtype=torch.float64), dim=-1)
    angle = torch.rand(30, dtype=torch.float64) * 179
    half = torch.deg2rad(angle / 2)[:, None]
    matrices = ro.quaternion_to_matrix(torch.cat([half.cos(), half.sin() * axis], dim=1))
    assert (matrices - ro.axis_rotation(axis, angle)).abs().max() < 1e-12
    assert (ro.geodesic(matrices) - axis * angle[:, None]).abs().max() < 1e-6


def test_random_rotations_are_uniform_and_repeatable():
    matrices = random(40000)
    assert torch.equal(matrices, random(40000)) and not torch.equal(matrices, random(40000, 1))
    assert (matrices @ matrices.mT - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-12
    assert (torch.det(matrices) - 1).abs().max() < 1e-12
    assert matrices.mean(dim=0).abs().max() < 0.02
    # the angle of a uniform rotation has density (1 - cos a) / pi: mean 126.5 degrees
    angle = ro.rotation_distance(matrices, torch.eye(3, dtype=torch.float64))
    assert abs(float(angle.mean()) - (90 + 360 / torch.pi**2)) < 0.7


def test_nearest_rotation_is_the_mean_and_never_a_mirror():
    centre = random(1)
    spread = centre @ ro.axis_rotation(torch.randn(2000, 3, dtype=torch.float64), torch.randn(2000, dtype=torch.float64) * 5)
    assert ro.rotation_distance(ro.nearest_rotation(spread.sum(dim=0)), centre[0]) < 0.6
    assert torch.det(ro.nearest_rotation(-random(5))).min() > 0.99
