"""Many maps in one projector and one set of sums are what each is alone, whatever code serves: C++, Triton, or torch."""

import pytest
import torch

from verglas.compute import native
from verglas.refine.maximisation import class_maps, joined_low, noise_free_power, shell_weights
from verglas.volume import padded, slices, slices_native
from verglas.volume.reconstruct import add_symmetric, reconstruct, symmetrise, weight_of_shells
from verglas.volume.rotations import euler_to_matrix, random_rotations
from verglas.volume.slices import FourierSums, Pixels, Projector, pixel_list

CODE = [
    pytest.param(("cpu", "torch"), id="torch"),
    pytest.param(
        ("cpu", "compiled"),
        marks=pytest.mark.skipif(native.native_library(slices_native.SOURCE) is None, reason="no C++ compiler"),
        id="cpp",
    ),
    pytest.param(("cuda", "compiled"), marks=pytest.mark.gpu, id="triton"),
    pytest.param(("cuda", "torch"), marks=pytest.mark.gpu, id="torch on a card"),
]
MAPS, SLICES, SHELL = 4, 60, 8  # of the maps one gets no slice


@pytest.fixture(params=CODE)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    where, code = request.param
    if code == "torch":
        monkeypatch.setattr(slices, "slice_kernels", lambda _: None)
    return str(where)


@pytest.fixture(params=[2, 3])
def operands(request: pytest.FixtureRequest, device: str) -> tuple[torch.Tensor, torch.Tensor, Pixels, torch.Tensor]:
    """Maps, orientations, pixels, and the map of each slice, in no order."""
    dims, generator = request.param, torch.Generator().manual_seed(2)
    angles = 360 * torch.rand(SLICES, generator=generator)
    flat = euler_to_matrix(torch.stack([0 * angles, 0 * angles, angles], dim=1))
    matrices = random_rotations(SLICES, generator) if dims == 3 else flat
    volumes = torch.randn(MAPS, *[20] * dims, generator=generator)
    which = torch.randint(0, MAPS - 1, (SLICES,), generator=generator)
    return volumes.to(device), matrices.float().to(device), pixel_list(20, SHELL, multiple=64, device=device), which.to(device)


def sums_of(volumes: torch.Tensor, pixels: Pixels, *of_slices: torch.Tensor | None) -> FourierSums:
    sums = FourierSums(20, volumes.dim() - 1, SHELL, maps=len(volumes), device=volumes.device)
    add_symmetric(sums, "D2", of_slices[0], pixels, *of_slices[1:])  # type: ignore[arg-type]
    return sums


def values_of(matrices: torch.Tensor, pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
    """Numerators and weights of slices."""
    generator, shape = torch.Generator().manual_seed(3), (SLICES, len(pixels))
    values = torch.randn(*shape, generator=generator, dtype=torch.complex64), torch.rand(*shape, generator=generator)
    return values[0].to(matrices.device), values[1].to(matrices.device)


def close(found: torch.Tensor, alone: torch.Tensor) -> bool:
    tolerance = 2e-5 if found.is_cuda else 2e-6  # a card adds in any order, and little weight makes much of that
    return bool((found - alone).abs().max() <= tolerance * alone.abs().max())


def test_slices_of_many_maps(operands: tuple[torch.Tensor, torch.Tensor, Pixels, torch.Tensor]) -> None:
    volumes, matrices, pixels, which = operands
    found = Projector(volumes, SHELL).project(matrices, pixels, which)
    for number in range(MAPS):
        own, alone = which == number, Projector(volumes[number][None], SHELL)
        assert close(found[own], alone.project(matrices[own], pixels)) if own.any() else number == MAPS - 1
    assert torch.equal(Projector(volumes, SHELL).project(matrices, pixels), Projector(volumes, SHELL).project(matrices, pixels, 0 * which))


def test_sums_and_what_is_made_of_them(operands: tuple[torch.Tensor, torch.Tensor, Pixels, torch.Tensor]) -> None:
    volumes, matrices, pixels, which = operands
    numerators, weights = values_of(matrices, pixels)
    tau2 = torch.rand(MAPS, SHELL + 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).to(volumes.device)
    sums = sums_of(volumes, pixels, matrices, numerators, weights, which)
    adjoint = sums.adjoint()
    symmetrise(sums, "D2")
    maps, filtered, weight = reconstruct(sums), reconstruct(sums, tau2), shell_weights(sums, SHELL + 3)
    power, classes = noise_free_power(sums, weight), class_maps(sums, tau2, weight, 2.0)
    for number in range(MAPS):
        own = which == number
        alone = sums_of(volumes[:1], pixels, matrices[own], numerators[own], weights[own])
        assert close(adjoint[number], alone.adjoint()[0])
        symmetrise(alone, "D2")
        assert close(sums.data[number], alone.data[0]) and close(weight[number], shell_weights(alone, SHELL + 3)[0])
        assert close(maps[number], reconstruct(alone)[0]) and close(filtered[number], reconstruct(alone, tau2[number])[0])
        assert close(power[number], noise_free_power(alone, weight[number][None])[0])
        for found, expected in zip(classes, class_maps(alone, tau2[number][None], weight[number][None], 2.0)):
            assert close(found[number], expected[0])
    assert not maps[-1].any() and maps[0].any()


def test_halves_are_joined_at_low_resolution_alone(operands: tuple[torch.Tensor, torch.Tensor, Pixels, torch.Tensor]) -> None:
    volumes, matrices, pixels, which = operands
    values = values_of(matrices, pixels)
    halves = [
        sums_of(volumes, pixels, matrices[rows], *(each[rows] for each in (*values, which))) for rows in (slice(0, 30), slice(30, 60))
    ]
    before = [half.data.clone() for half in halves]
    joined_low(halves[0], halves[1], 3)
    low = (halves[0].shells() <= 3).flatten()
    for half, own in zip(halves, before):
        assert torch.equal(half.data[:, low], ((before[0] + before[1]) / 2)[:, low])
        assert torch.equal(half.data[:, ~low], own[:, ~low])


def test_little_memory_changes_nothing(
    operands: tuple[torch.Tensor, torch.Tensor, Pixels, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole maps or a few rows at a time: the same sums, symmetry, weights and maps."""
    volumes, matrices, pixels, which = operands
    values, found = values_of(matrices, pixels), []
    for at_once in (1 << 30, 3000):
        for name in padded.AT_ONCE:
            monkeypatch.setitem(padded.AT_ONCE, name, at_once)
        sums = sums_of(volumes, pixels, matrices, *values, which)
        adjoint = sums.adjoint()
        symmetrise(sums, "O")
        found.append((Projector(volumes, SHELL).table, adjoint, sums.data, weight_of_shells(sums), reconstruct(sums)))
    assert all(close(few, many) for few, many in zip(*found))
