"""Reading ahead changes nothing but the time: order, errors, an early end, the same results."""

import threading
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from refine.sets import DIAMETER, particles, unknown
from verglas.io.mrc import write_stack
from verglas.particles import ArrayImages, ParticleSet, StackImages
from verglas.refine.expectation import Found, expect
from verglas.refine.grids import SpaceGrid, shifts_within
from verglas.refine.model import Model
from verglas.refine.observations import Observations
from verglas.refine.reading import ahead
from verglas.refine.search import Search
from verglas.refine.start import starting_noise
from verglas.volume.filters import lowpass
from verglas.volume.slices import pixel_list

BOX, PIXEL = 32, 6.0


def test_items_come_in_order_and_one_is_read_meanwhile() -> None:
    begun: list[int] = []

    def read(item: int) -> int:
        begun.append(item)
        return 10 * item

    got = []
    for value in ahead(read, range(5)):
        deadline = time.monotonic() + 5.0
        while len(begun) < min(len(got) + 2, 5) and time.monotonic() < deadline:
            time.sleep(0.001)
        got.append(value)
        assert len(begun) == min(len(got) + 1, 5)  # the next one, and no more
    assert got == [0, 10, 20, 30, 40] == [10 * item for item in begun]
    assert list(ahead(read, [])) == []


def test_an_error_is_raised_where_its_item_is_due() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise OSError("the disk is gone")
        return item

    got = []
    with pytest.raises(OSError, match="the disk is gone"):
        for value in ahead(read, range(5)):
            got.append(value)
    assert got == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reading ahead")]


def test_a_caller_that_leaves_ends_the_thread() -> None:
    begun: list[int] = []
    coming = ahead(lambda item: begun.append(item), range(1000), count=3)
    next(coming)
    coming.close()
    assert len(begun) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reading ahead")]


def test_as_many_threads_read_as_items_are_read_ahead() -> None:
    together = threading.Barrier(3, timeout=10.0)  # nobody passes before three have come

    def read(item: int) -> int:
        together.wait()
        return item

    assert list(ahead(read, range(6), count=3)) == [0, 1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[ParticleSet, torch.Tensor]:
    """60 particles in stacks of 25, and the true map."""
    images, table, truth = particles(60, BOX, PIXEL, 0.3)
    folder, names = tmp_path_factory.mktemp("stacks"), []
    for number, part in enumerate(images.split(25)):
        write_stack(folder / f"{number}.mrcs", part.numpy(), PIXEL)
        names += [f"{k + 1}@{folder}/{number}.mrcs" for k in range(len(part))]
    return table.with_columns(image_name=names), truth


def test_the_results_are_those_of_reading_in_turn(on_disk: tuple[ParticleSet, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verglas.refine.expectation._images_at_once", lambda *_: 7)
    table, truth = on_disk
    own, generator = unknown(table), torch.Generator().manual_seed(1)
    grid, shifts, pixels = SpaceGrid(1, "D2", generator), shifts_within(3.0, 1.5, generator), pixel_list(BOX, 9, multiple=64)
    search = Search(grid, shifts, pixels, pixels, pixels, symmetry="D2")
    results = []
    for read_ahead in (True, False):
        seen = Observations(table, StackImages(table), mask_diameter=DIAMETER, read_ahead=read_ahead)
        noise = starting_noise(seen, torch.arange(60), own)
        spectra = torch.ones(1, seen.shells, dtype=torch.float64)
        model = Model(lowpass(truth, PIXEL, 20.0)[None], noise, spectra, spectra, torch.ones(1, dtype=torch.float64), 10.0)
        results.append(expect(seen, torch.arange(1, 60, 2), own, model, search))
    (sums, found), (sums_in_turn, found_in_turn) = results
    assert all(torch.equal(one, other) for one, other in zip(sums.tensors(), sums_in_turn.tensors()))
    assert all(torch.equal(getattr(found, field.name), getattr(found_in_turn, field.name)) for field in fields(Found))


def test_a_stack_that_goes_away_ends_the_pass(on_disk: tuple[ParticleSet, torch.Tensor], tmp_path: Path) -> None:
    table, _ = on_disk
    source = StackImages(table)
    seen = Observations(table, source, mask_diameter=DIAMETER)
    source._stacks[2] = tmp_path / "gone.mrcs"
    got = []
    with pytest.raises(FileNotFoundError, match="gone"):
        for rows, images in seen.reading_ahead(torch.arange(60).split(20)):
            got.append((rows.tolist(), images))
    assert [rows for rows, _ in got] == [list(range(20)), list(range(20, 40))]
    assert np.array_equal(got[1][1].numpy(), StackImages(table).read(np.arange(20, 40)).numpy())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_busy_card_gets_each_part_whole(dtype: torch.dtype) -> None:
    """Copies run on a stream of their own: none may be read before it is there, or overwritten while it is still needed."""
    images = torch.randn(640, 64, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    table = particles(60, BOX, PIXEL, 0.3)[1].subset(np.arange(640) % 60)
    seen = Observations(table, ArrayImages(images, PIXEL), mask_diameter=DIAMETER, device="cuda")
    square, sums = torch.randn(2048, 2048, device="cuda"), []
    for _, read in seen.reading_ahead(torch.arange(640, device="cuda").split(64)):
        for _ in range(20):
            square @ square
        assert read.is_cuda and read.dtype == dtype
        sums.append(read.double().sum((1, 2)))
    assert torch.allclose(torch.cat(sums).cpu(), images.double().sum((1, 2)), atol=1e-9)
