import re
import subprocess

import pytest
import torch

from verglas.errors import InputError
from verglas.volume import symmetry as sy
from verglas.volume.rotations import axis_rotation, euler_to_matrix

GROUPS = {"C1": 1, "C2": 2, "C7": 7, "D2": 4, "D3": 6, "D7": 14, "T": 12, "O": 24, "I1": 60, "I2": 60, "I3": 60, "I4": 60}


def same_set(first, second):
    gap = (first[:, None] - second[None]).abs().amax(dim=(-2, -1))
    return len(first) == len(second) and max(gap.amin(dim=0).max(), gap.amin(dim=1).max()) < 2e-5


@pytest.mark.parametrize("group", GROUPS)
def test_operators_are_a_group_and_the_normaliser_keeps_it(group):
    operators = sy.symmetry_operators(group)
    assert len(operators) == GROUPS[group] and torch.equal(operators[0], torch.eye(3, dtype=torch.float64))
    products = (operators[:, None] @ operators[None]).flatten(0, 1)
    gap = (products[:, None] - operators[None]).abs().amax(dim=(-2, -1))
    assert gap.amin(dim=1).max() < 1e-9
    normaliser = sy.normaliser(group)
    assert (normaliser[:, None] - operators[None]).abs().amax(dim=(-2, -1)).amin(dim=0).max() < 1e-9
    for q in normaliser:
        assert same_set(q.T @ operators @ q, operators)


def test_sizes_of_normalisers():
    sizes = {"C1": 1, "C4": 8, "D2": 24, "D3": 12, "D5": 20, "T": 24, "O": 24, "I2": 60}
    assert {group: len(sy.normaliser(group)) for group in sizes} == sizes
    assert sy.has_free_axis("c3") and not sy.has_free_axis("D2")


@pytest.mark.relion
@pytest.mark.parametrize("group", [*GROUPS, "I"])
def test_operators_are_relions(group, tmp_path):
    command = ["relion_refine", "--print_symmetry_ops", "--sym", group, "--i", "a", "--o", "b"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in printed.splitlines() if re.fullmatch(r"[\s\d.e+-]+", line)]
    theirs = torch.tensor([[float(value) for value in row] for row in rows if len(row) == 3], dtype=torch.float64)
    assert same_set(theirs.reshape(-1, 3, 3), sy.symmetry_operators(group))


@pytest.mark.parametrize("typed, name", [("d2", "D2"), (" c04 ", "C4"), ("i", "I2"), ("o", "O")])
def test_names_are_read_kindly(typed, name):
    assert sy.group_name(typed) == name


@pytest.mark.parametrize(
    "wrong, said", [("D", "not a known"), ("C0", "not a known"), ("Q7", "not a known"), ("I5", "not a known"), ("", "not")]
)
def test_typos_name_what_is_known(wrong, said):
    with pytest.raises(InputError, match=said) as raised:
        sy.symmetry_operators(wrong)
    assert "I4" in str(raised.value) and repr(wrong) in str(raised.value)


@pytest.mark.parametrize("group", ["Ci", "Cs", "C3v", "D2h", "Td", "Th", "Oh", "Ih"])
def test_groups_with_mirrors_are_refused_by_name(group):
    with pytest.raises(InputError, match="chiral"):
        sy.symmetry_operators(group)


def blobs(points, size=40, width=2.0):
    """Sum of Gaussians at `points` [n, 3] (x, y, z from the centre, voxels)."""
    place = torch.arange(size, dtype=torch.float64) - size // 2
    z, y, x = torch.meshgrid(place, place, place, indexing="ij")
    total = torch.zeros(size, size, size, dtype=torch.float64)
    for point in points:
        total += torch.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2 + (z - point[2]) ** 2) / (2 * width**2))
    return total.float()


def asymmetric_points():
    return torch.tensor([[9.0, 3.0, 2.0], [2.0, 8.0, 5.0], [4.0, 5.0, 11.0]], dtype=torch.float64)


@pytest.mark.parametrize("size", [40, 41])
def test_turned_copy_is_f_of_the_turned_point(size):
    matrix = euler_to_matrix(torch.tensor([20.0, 65.0, 110.0], dtype=torch.float64))
    points = asymmetric_points()
    expected = blobs(points @ matrix, size)  # f(M r) has its blobs at M^T p
    assert (sy.turned_copy(blobs(points, size), matrix) - expected).abs().max() < 0.1  # 0.96 with the transpose
    quarter = axis_rotation(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), 90.0)
    assert (sy.turned_copy(blobs(points, size), quarter) - blobs(points @ quarter, size)).abs().max() < 1e-4


@pytest.mark.parametrize("group", ["C3", "D2", "T", "O", "I1", "I3"])
def test_symmetrised_map_has_every_copy_and_no_misfit(group):
    points = asymmetric_points()
    operators = sy.symmetry_operators(group)
    copies = torch.einsum("gij,nj->gni", operators, points).flatten(0, 1)
    expected = blobs(copies) / len(operators)
    symmetric = sy.symmetrise_map(blobs(points), group)
    assert (symmetric - expected).abs().max() < 0.06 * expected.max() + 0.05 / len(operators)
    assert sy.symmetry_misfit(expected, group) < 0.02
    assert sy.symmetry_misfit(blobs(points), group) > 0.5


@pytest.mark.parametrize("tilt, seen", [(0.0, False), (8.0, True)])
def test_map_off_its_axes_is_detected(tilt, seen):
    operators = sy.symmetry_operators("D2")
    copies = torch.einsum("gij,nj->gni", operators, asymmetric_points()).flatten(0, 1)
    off = axis_rotation(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), tilt)
    volume = blobs(copies @ off, 80, 2.5) + 0.05 * torch.randn(80, 80, 80, generator=torch.Generator().manual_seed(3))
    assert (sy.symmetry_misfit(volume, "D2") > 0.1) == seen
    assert sy.symmetry_misfit(volume, "C1") == 0.0
