"""The kernels that sample and sum slices on a card against their twins in torch; they run under Triton's interpreter too."""

import math
from types import ModuleType

import pytest
import torch

from verglas.compute.kernels import on_card
from verglas.volume import slices
from verglas.volume.fixed_point import FixedPoint
from verglas.volume.rotations import euler_to_matrix, random_rotations
from verglas.volume.slices import FourierSums, Pixels, Projector, pixel_list
from volume import triton_for_tests
from volume.triton_for_tests import DEVICE

pytestmark = triton_for_tests.on_card
N, MAPS = 9, 3
SHAPES = pytest.mark.parametrize(
    ("box", "shell", "padding", "least", "dims"),
    [(16, 7, 2, 1, 3), (17, 8, 2, 0, 3), (25, 11, 1, 1, 3), (16, 7, 3, 0, 3), (24, 11, 2, 1, 2), (25, 12, 1, 0, 2)],
)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernels; `slices` itself is left with its plain code."""
    module = on_card("verglas.volume.slices_triton")
    assert module is not None, "Triton is not installed"
    monkeypatch.setattr(slices, "slice_kernels", lambda _: None)
    return module


def operands(box: int, shell: int, padding: int, least: int, dims: int) -> tuple[Projector, torch.Tensor, Pixels, torch.Tensor]:
    """Maps of noise, orientations (of which one puts points on grid points), pixels, and the map of each slice."""
    generator = torch.Generator().manual_seed(box)
    projector = Projector(torch.randn([MAPS, *[box] * dims], generator=generator).to(DEVICE), shell, padding)
    turns = torch.nn.functional.pad(360 * torch.rand(N, 1, generator=generator), (2, 0))
    matrices = (random_rotations(N, generator) if dims == 3 else euler_to_matrix(turns)).float()
    matrices[0] = torch.eye(3)
    which = torch.randint(0, MAPS, (N,), generator=generator)
    return projector, matrices.to(DEVICE), pixel_list(box, shell, min_shell=least, multiple=64, device=DEVICE), which.to(DEVICE)


def slice_values(pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
    """Numerators and weights of slices; those at fill are not 0."""
    generator, shape = torch.Generator().manual_seed(4), (N, len(pixels))
    values = torch.randn(shape, generator=generator, dtype=torch.complex64), torch.rand(shape, generator=generator)
    return values[0].to(DEVICE), values[1].to(DEVICE)


def sums_like(projector: Projector) -> FourierSums:
    return FourierSums(projector.box, projector.dims, projector.max_shell, projector.padding, maps=MAPS, device=DEVICE)


def spread(kernels: ModuleType, like: Projector, *of_slices: torch.Tensor | Pixels | None) -> FourierSums:
    """The sums that the kernel makes."""
    sums = sums_like(like)
    counted = FixedPoint(MAPS, math.prod(sums.shape), DEVICE)
    kernels.spread(counted, sums.shape, like.padding, *of_slices)
    sums.data.copy_(counted.floats())
    return sums


@SHAPES
@pytest.mark.parametrize("many", [False, True])
def test_slices_are_those_of_the_twin(kernels: ModuleType, many: bool, box: int, shell: int, padding: int, least: int, dims: int) -> None:
    projector, matrices, pixels, which = operands(box, shell, padding, least, dims)
    of_maps = which if many else None
    found = kernels.project(projector.table, projector.half_range, padding, matrices, pixels, of_maps)
    plain = projector.project(matrices, pixels, of_maps)
    assert (found - plain).abs().max() < 2e-5 * plain.abs().max()
    assert not found[:, pixels.count :].any()
    none = kernels.project(projector.table, projector.half_range, padding, matrices[:0], pixels, None)
    assert none.shape == (0, len(pixels))


@SHAPES
@pytest.mark.parametrize(("many", "weighted"), [(False, False), (False, True), (True, True)])
def test_sums_are_those_of_the_twin(
    kernels: ModuleType, many: bool, weighted: bool, box: int, shell: int, padding: int, least: int, dims: int
) -> None:
    projector, matrices, pixels, which = operands(box, shell, padding, least, dims)
    values, weights = slice_values(pixels)
    given = (matrices, pixels, values, weights if weighted else None, which if many else None)
    plain = sums_like(projector)
    plain.add(*given)  # type: ignore[arg-type]
    found = spread(kernels, projector, *given).data
    for lanes in (slice(2), slice(2, 3)):
        assert (found - plain.data)[..., lanes].abs().max() <= 1e-5 * plain.data[..., lanes].abs().max()
    assert found[..., 2].any() == weighted


@SHAPES
def test_sums_are_the_transpose_of_slices(kernels: ModuleType, box: int, shell: int, padding: int, least: int, dims: int) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩ over the maps, each with slices of its own."""
    generator = torch.Generator().manual_seed(3)
    _, matrices, pixels, which = operands(box, shell, padding, least, dims)
    volumes = torch.randn([MAPS, *[box] * dims], generator=generator).to(DEVICE)
    projector, (values, _) = Projector(volumes, shell, padding), slice_values(pixels)
    seen = kernels.project(projector.table, projector.half_range, padding, matrices, pixels, which)
    forward = (values.conj() * seen).real.double().sum()
    backward = (volumes * spread(kernels, projector, matrices, pixels, values, None, which).adjoint()).double().sum()
    assert abs(forward - backward) < 2e-6 * values.norm() * seen.norm()


@SHAPES
def test_a_table_in_halves_keeps_eleven_bits(kernels: ModuleType, box: int, shell: int, padding: int, least: int, dims: int) -> None:
    """Each map by a scale of its own; the origin, which a slice does not touch where maps are padded, is left out."""
    projector, *_ = operands(box, shell, padding, least, dims)
    projector.table[1] *= 1e6
    projector.table[2] *= 1e-6
    packed, scales = kernels.packed(projector)
    table = projector.table.clone()
    if padding > 1:
        table[(slice(None), *[projector.half_range] * (dims - 1), 0)] = 0
    table = table.flatten(1)
    halves = packed.view(torch.float16).float() * scales[:, None]
    largest = table.abs().amax(1, keepdim=True)
    assert ((halves - table).abs() <= 2.0**-11 * table.abs() + 1e-8 * largest).all()
    assert kernels.packed(projector)[0] is packed
