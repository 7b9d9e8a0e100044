"""A pass over particles by compiled code against the same pass by its twins in torch."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import pytest
import torch

from refine.sets import particles, seen, two_states, without_poses
from verglas.compute import native
from verglas.refine import accumulate, comparison_native, expectation
from verglas.refine.assignments import Assignments, from_particles
from verglas.refine.expectation import expect
from verglas.refine.grids import GivenPoses, PlaneGrid, SpaceGrid, no_shift, shifts_within
from verglas.refine.maximisation import spectrum
from verglas.refine.model import Model, Sums
from verglas.refine.observations import Observations
from verglas.refine.search import Found, Search
from verglas.refine.start import starting_noise
from verglas.volume import slices
from verglas.volume.filters import lowpass
from verglas.volume.slices import pixel_list

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(native.native_library(comparison_native.SOURCE) is None, reason="no C++ compiler")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
on_all = pytest.mark.parametrize("device", DEVICES)
PIXEL = 6.0


def operands(search: Search, box: int, device: str, classes: int = 1) -> tuple[Observations, torch.Tensor, Assignments, Model, Search]:
    """What a pass over 24 particles takes."""
    images, table, truth = particles(24, box, PIXEL, 0.3) if classes == 1 else two_states(24, box, PIXEL, 0.3)
    view = seen(images, table, device)
    bare = table if search.given or search.local_sigma else without_poses(table)
    own = from_particles(bare, len(view.micrographs), device=device)
    line = torch.linspace(-1, 1, box)
    lopsided = 1 + 0.3 * line + 0.2 * line[:, None] + 0.1 * line[:, None, None]  # or a pose and its symmetric copies would draw
    maps = torch.stack([lowpass(each * lopsided, PIXEL, 20.0) for each in (truth if classes > 1 else truth[None])]).to(device)
    if isinstance(search.grid, PlaneGrid):
        maps = torch.stack([maps[0].sum(0), maps[1].sum(1)])
    tau2 = spectrum(maps)[:, : view.shells]
    share = torch.full((classes,), 1 / classes, dtype=torch.float64, device=device)
    rows = torch.arange(24, device=device)
    return view, rows, own, Model(maps, starting_noise(view, rows, own), tau2, 9 * torch.ones_like(tau2), share, 6.0), search


def both(
    search: Search, box: int, device: str, monkeypatch: pytest.MonkeyPatch, classes: int = 1, only: bool = False
) -> list[tuple[Sums, Found]]:
    """The pass compiled, and by the twins."""
    given = operands(search, box, device, classes)
    bound = given[1] % 3 - 1 if only else None
    with monkeypatch.context() as plain:
        plain.setattr(expectation, "fast_products", lambda _: nullcontext())  # what tf32 rounds is not what is compared here
        compiled = expect(*given, only_class=bound)
        plain.setattr(slices, "slice_kernels", lambda _: None)
        for module in (accumulate, expectation):
            plain.setattr(module, "comparison_kernels", lambda _: None)
        return [compiled, expect(*given, only_class=bound)]


def compare(found: list[tuple[Sums, Found]]) -> None:
    """Equal to what float32 (tf32) can tell: at the edge of the kept weight candidates may differ, and with them 1e-3 of the sums."""
    (sums, poses), (plain_sums, plain_poses) = found
    tolerance = 1e-2 if poses.classes.is_cuda else 3e-3  # slices in halves move a score, and so a weight, by some thousandths
    for mine, theirs in zip(sums.tensors(), plain_sums.tensors()):
        assert (mine - theirs).abs().max() < tolerance * theirs.abs().max()
    assert torch.equal(poses.classes, plain_poses.classes)
    for field in fields(Found):
        mine, theirs = (getattr(each, field.name).double() for each in (poses, plain_poses))
        edge = 1 if field.name == "significant" else 0  # a count: one more or less at the edge of the kept weight
        assert (mine - theirs).abs().max() <= edge + tolerance * theirs.abs().max().clamp(min=1), field.name


@on_all
@pytest.mark.parametrize(
    ("box", "group", "padding"), [(32, "D2", 2), (33, "C1", 1), (32, "C3", 2), (33, "D3", 1), (32, "T", 2), (32, "O", 2), (33, "I2", 1)]
)
def test_global_search(device: str, box: int, group: str, padding: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    coarse, fine = (pixel_list(box, shell, multiple=64, device=device) for shell in (6, 10))
    grid, shifts = SpaceGrid(1, group, generator), shifts_within(2.0, 2.0, generator, device)
    compare(both(Search(grid, shifts, coarse, fine, fine, symmetry=group, padding=padding), box, device, monkeypatch))


@on_all
def test_first_iteration_by_correlation(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, shifts = pixel_list(32, 8, multiple=64, device=device), shifts_within(2.0, 2.0, None, device)
    search = Search(SpaceGrid(1, "D2", None), shifts, pixels, pixels, pixels, symmetry="D2", correlation=True)
    compare(both(search, 32, device, monkeypatch))


@on_all
@pytest.mark.parametrize(("only", "group"), [(False, "D2"), (True, "D2"), (False, "D3"), (False, "O")])
def test_local_search_in_two_classes(device: str, only: bool, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fine, full = (pixel_list(32, shell, multiple=64, device=device) for shell in (12, 15))
    grid = SpaceGrid(3, group, torch.Generator().manual_seed(2))
    search = Search(grid, shifts_within(1.5, 1.0, None, device), fine, fine, full, symmetry=group, local_sigma=5.0)
    compare(both(search, 32, device, monkeypatch, classes=2, only=only))


@on_all
def test_averages_in_two_classes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    coarse, fine = (pixel_list(32, shell, multiple=64, device=device) for shell in (6, 11))
    search = Search(PlaneGrid(30.0, generator), shifts_within(2.0, 2.0, generator, device), coarse, fine, fine)
    compare(both(search, 32, device, monkeypatch, classes=2))


@on_all
@pytest.mark.parametrize("local_sigma", [None, 10.0])
def test_in_the_smallest_parts(device: str, local_sigma: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image, and the slices of one, at a time."""
    generator = torch.Generator().manual_seed(1)
    coarse, fine = (pixel_list(32, shell, multiple=64, device=device) for shell in (6, 10))
    grid, shifts = SpaceGrid(1, "D2", generator), shifts_within(2.0, 2.0, generator, device)
    given = operands(Search(grid, shifts, coarse, fine, fine, symmetry="D2", local_sigma=local_sigma), 32, device)
    whole = expect(*given)
    monkeypatch.setattr(expectation, "_CHUNK", {device: 1})
    monkeypatch.setattr(expectation, "_TABLE_SHARE", 0.0)
    compare([expect(*given), whole])
    monkeypatch.setattr(expectation, "comparison_kernels", lambda _: None)
    compare([expect(*given), whole])


@on_all
def test_given_poses(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = from_particles(particles(24, 32, PIXEL, 0.3)[1], 1)
    pixels = pixel_list(32, 15, multiple=64, device=device)
    compare(both(Search(GivenPoses(own.matrices), no_shift(device), pixels, pixels, pixels, symmetry="D2"), 32, device, monkeypatch))


def in_one_thread(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def called(*arguments: Any, **named: Any) -> torch.Tensor:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*arguments, **named)
        finally:
            torch.set_num_threads(threads)

    return called


@pytest.mark.skipif(native.native_library(comparison_native.SOURCE) is None, reason="no C++ compiler")
def test_the_same_bits_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the transforms, which on some processors round by how many of them a thread has."""
    for name in ("rfft", "fft", "ifft", "irfft", "rfft2", "rfftn", "irfftn"):
        monkeypatch.setattr(torch.fft, name, in_one_thread(getattr(torch.fft, name)))
    pixels = pixel_list(32, 12, multiple=64)
    grid = SpaceGrid(3, "D2", torch.Generator().manual_seed(2))
    search = Search(grid, shifts_within(1.5, 1.0, None), pixels, pixels, pixels, symmetry="D2", local_sigma=5.0)
    threads, found = torch.get_num_threads(), []
    given = operands(search, 32, "cpu")
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(expect(*given))
    finally:
        torch.set_num_threads(threads)
    for sums, poses in found[1:]:
        assert torch.equal(sums.slices.data, found[0][0].slices.data)
        assert torch.equal(poses.log_likelihood, found[0][1].log_likelihood)
