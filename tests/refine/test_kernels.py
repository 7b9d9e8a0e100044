"""The compiled code of a comparison, C++ and Triton, each against its definition in double precision.

Triton's kernels run on a card, or under its interpreter: see `volume.triton_for_tests`.
"""

from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from verglas.compute.kernels import on_card
from verglas.refine import comparison_native
from verglas.refine.groups import Groups, groups_of
from verglas.refine.observations import shift_factors
from verglas.refine.ragged import Lists, lists_of
from verglas.refine.score import reals
from verglas.volume import slices
from verglas.volume.rotations import euler_to_matrix, random_rotations
from verglas.volume.slices import Pixels, Projector, pixel_list
from volume import triton_for_tests

MARKS = {"C++": [pytest.mark.skipif(bool(comparison_native.why_not()), reason="no C++ compiler")], "Triton": triton_for_tests.on_card}
CODE = [pytest.param(name, marks=marks) for name, marks in MARKS.items()]
SCORES = [("C++", False), ("Triton", False), ("Triton", True)]  # Triton also scores slices of a table
IMAGES, POSES, SHIFTS, CLASSES = 6, 70, 19, 2  # an image has none of some; slices and shifts fill more than a block, and less
ROUNDED = {"C++": 1e-5, "Triton": 2e-3}  # of sampled slices: a card's are in halves
SHAPES = pytest.mark.parametrize(("box", "shell", "padding", "dims"), [(16, 7, 2, 3), (17, 6, 1, 3), (17, 8, 2, 2)])


class Case(NamedTuple):
    """What kernels compare: references, images, their CTFs, phase factors of shifts, poses with their classes and exact slices."""

    projector: Projector
    pixels: Pixels
    images: torch.Tensor
    ctf: torch.Tensor
    factors: torch.Tensor
    matrices: torch.Tensor
    classes: torch.Tensor
    slices: torch.Tensor


@pytest.fixture(params=CODE)
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which code is tested; what is expected is made by the plain one."""
    monkeypatch.setattr(slices, "slice_kernels", lambda _: None)
    return str(request.param)


def kernels_of(code: str) -> tuple[ModuleType, str]:
    """The module and the device of its operands."""
    if code == "C++":
        return comparison_native, "cpu"
    module = on_card("verglas.refine.comparison_triton")
    assert module is not None, "Triton is not installed"
    return module, triton_for_tests.DEVICE


def case(device: str, box: int, shell: int, padding: int, dims: int) -> Case:
    generator = torch.Generator().manual_seed(box)
    pixels = pixel_list(box, shell, multiple=64)
    maps = torch.randn(CLASSES, *[box] * dims, generator=generator)
    maps[1] *= 30  # a scale of its own
    projector = Projector(maps, shell, padding)
    turns = torch.nn.functional.pad(360 * torch.rand(POSES, 1, generator=generator), (2, 0))
    matrices = (random_rotations(POSES, generator) if dims == 3 else euler_to_matrix(turns)).float()
    classes = torch.randint(0, CLASSES, (POSES,), generator=generator)
    exact = projector.project(matrices, pixels, classes).to(torch.complex128)
    seen = len(pixels) + 64  # rows may be longer than what is compared
    images = box * torch.randn(IMAGES, seen, generator=generator, dtype=torch.complex64)
    ctf = torch.rand(IMAGES, seen, generator=generator)
    ctf[:, pixels.count :] = 0
    factors = shift_factors(pixels, 3 * torch.randn(SHIFTS, 2, generator=generator))
    projector.table = projector.table.to(device)
    there = pixel_list(box, shell, multiple=64, device=device)
    return Case(projector, there, *(values.to(device) for values in (images, ctf, factors, matrices, classes)), exact)


def own_lists(device: str) -> tuple[Lists, Lists]:
    """Poses and shifts of each image: of the first all, of the last none, of the others some."""
    generator = torch.Generator().manual_seed(7)
    found = []
    for values in (POSES, SHIFTS):
        chosen = torch.rand(IMAGES, values, generator=generator) < 0.3
        chosen[0], chosen[-1] = True, False
        found.append(Lists(*(each.to(device) for each in lists_of(*chosen.nonzero(as_tuple=True), IMAGES))))
    return found[0], found[1]


@SHAPES
@pytest.mark.parametrize("correlation", [False, True])
@pytest.mark.parametrize(("code", "listed"), [pytest.param(*each, marks=MARKS[each[0]]) for each in SCORES], indirect=["code"])
def test_scores_of_slices_and_shifts_of_an_images_own(
    code: str, listed: bool, correlation: bool, box: int, shell: int, padding: int, dims: int
) -> None:
    kernels, device = kernels_of(code)
    given = case(device, box, shell, padding, dims)
    poses, shifts = own_lists(device)
    which = torch.tensor([3, 0, 5, 1], device=device)
    operands = (given.pixels, given.images, given.ctf, given.factors, which, poses)
    if listed:
        table = reals(given.slices.to(torch.complex64)).contiguous().to(device)
        found = kernels.score_listed(table, *operands, shifts, correlation=correlation)
    else:
        found = kernels.score_own(given.projector, *operands, given.matrices, given.classes, shifts, correlation=correlation)
    k = len(given.pixels)
    expected = torch.full(found.shape, -torch.inf, dtype=torch.float64)
    for place, image in enumerate(which.tolist()):
        ctf, seen = given.ctf[image, :k].cpu().double(), given.images[image, :k].cpu().to(torch.complex128)
        own = [each.values[each.starts[image] :][: each.counts[image]].cpu() for each in (poses, shifts)]
        moved, model = ctf * seen * given.factors.cpu()[own[1]], given.slices[own[0]]
        cross, energy = (model @ moved.mH).real, (model.abs() * ctf).square().sum(1)[:, None]
        expected[place, : len(own[0]), : len(own[1])] = cross / energy.sqrt() if correlation else cross - 0.5 * energy
    there = expected.isfinite()
    assert torch.equal(found.cpu().isfinite(), there) and (found.cpu()[~there] == -torch.inf).all()
    # each class's slices are rounded by their own size
    size = expected[there].abs().max()
    assert (found.cpu() - expected)[there].abs().max() < (1e-5 if listed else ROUNDED[code]) * size


def weighted_groups(device: str) -> tuple[Groups, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weighted triples (image, pose, shift) of all images but the last, in groups, with the pose of each group; and the triples."""
    generator = torch.Generator().manual_seed(8)
    chosen = torch.rand(IMAGES, POSES, SHIFTS, generator=generator) < 0.02
    chosen[-1] = chosen[2] = False
    image, pose, shift = chosen.nonzero(as_tuple=True)
    weight = torch.rand(len(image), generator=generator)
    groups, row = groups_of(image, pose, shift, weight)
    return Groups(*(each.to(device) for each in groups)), row.to(device), image, pose, shift, weight


@SHAPES
def test_sums_into_and_over_slices(code: str, box: int, shell: int, padding: int, dims: int) -> None:
    """Both against plain loops over the weighted triples; and one is the other's transpose: Σ Re conj(N) P = Σ Re conj(X C S) P w."""
    kernels, device = kernels_of(code)
    given = case(device, box, shell, padding, dims)
    groups, row, image, pose, shift, weight = weighted_groups(device)
    images, ctf, k = given.images[:, : len(given.pixels)].contiguous(), given.ctf[:, : len(given.pixels)].contiguous(), len(given.pixels)
    rows, place = torch.unique(row, return_inverse=True)
    order = torch.argsort(place, stable=True)
    starts = torch.nn.functional.pad(torch.cumsum(torch.bincount(place, minlength=len(rows)), 0), (1, 0))
    numerators, weights = (each.cpu() for each in kernels.sum_into_slices(images, ctf, given.factors, groups, order, starts))
    seen = (images, ctf, given.factors, groups, given.matrices[row], given.classes[row])
    cross, energy = (each.cpu() for each in kernels.sum_over_slices(given.projector, given.pixels, *seen))

    transfer, model = ctf.cpu().double(), given.slices[pose]
    moved = (images.cpu() * ctf.cpu()).to(torch.complex128)[image] * given.factors.cpu()[shift] * weight[:, None]
    into = torch.searchsorted(rows.cpu(), pose)
    expected_numerators = torch.zeros(len(rows), k, dtype=torch.complex128).index_add_(0, into, moved)
    expected_weights = torch.zeros(len(rows), k).double().index_add_(0, into, weight[:, None] * transfer[image].square())
    expected_cross, expected_energy = torch.zeros(2, IMAGES, k).double()
    expected_cross.index_add_(0, image, (moved.conj() * model).real)
    expected_energy.index_add_(0, image, weight[:, None] * model.abs().square() * transfer[image].square())
    for found, expected, tolerance in (
        (numerators, expected_numerators, 1e-5),
        (weights, expected_weights, 1e-5),
        (cross, expected_cross, ROUNDED[code]),
        (energy, expected_energy, ROUNDED[code]),
    ):
        assert (found - expected).abs().max() < tolerance * expected.abs().max()
    for each in (cross, energy):
        assert not each[[2, IMAGES - 1]].any()
    # the transpose, summed over all pixels, to what the slices' rounding allows
    forward = (numerators.to(torch.complex128).conj() * given.slices[rows.cpu()]).real.sum()
    assert abs(forward - cross.double().sum()) < ROUNDED[code] * expected_cross.norm()
