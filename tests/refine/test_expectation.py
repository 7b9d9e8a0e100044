"""One pass over particles: its sums against a plain evaluation image by image, its poses against the truth."""

import numpy as np
import pytest
import torch

from refine.sets import errors, particles, seen, unknown
from verglas.refine.accuracy import expected_errors
from verglas.refine.assignments import from_particles
from verglas.refine.expectation import expect
from verglas.refine.grids import GivenPoses, PlaneGrid, SpaceGrid, no_shift, shifts_within
from verglas.refine.maximisation import first_noise, new_noise, new_scale, spectrum
from verglas.refine.model import Model
from verglas.refine.observations import Observations, shift_factors
from verglas.refine.score import DenseSlices
from verglas.refine.search import Search
from verglas.refine.start import starting_noise
from verglas.volume.filters import lowpass
from verglas.volume.reconstruct import reconstruct, symmetrise
from verglas.volume.slices import FourierSums, Projector, pixel_list

BOX, PIXEL = 32, 6.0


def model_of(reference: torch.Tensor, view: Observations, own) -> Model:  # type: ignore[no-untyped-def]
    noise = starting_noise(view, torch.arange(len(view)), own)
    tau2 = spectrum(reference[None])[:, : view.shells]
    return Model(reference[None], noise, tau2, 9 * torch.ones_like(tau2), torch.ones(1, dtype=torch.float64), 6.0)


def test_sums_equal_a_plain_evaluation() -> None:
    """Every pose and shift of a small 2D search, evaluated image by image in double precision."""
    images, table, truth = particles(6, BOX, PIXEL, 0.5)
    view, own = seen(images, table), unknown(table)
    reference = lowpass(truth.sum(0), PIXEL, 25.0, dims=2)
    model = model_of(reference, view, own)
    model.sigma2 *= 30  # so that no pose can be told apart, and all of them count
    pixels = pixel_list(BOX, 8, multiple=64)
    grid, shifts = PlaneGrid(30.0, None), shifts_within(2.0, 2.0, None)
    search = Search(grid, shifts, pixels, pixels, pixels, fraction=1 - 1e-7, at_most=100_000)
    sums, found = expect(view, torch.arange(6), own, model, search)

    poses = grid.children(torch.arange(len(grid))).flatten(0, 1)
    slices = Projector(reference[None], 8).project(poses, pixels).to(torch.complex128)
    batch = view.batch(torch.arange(6), own, model.sigma2, pixels)
    factors = shift_factors(pixels, shifts.fine).to(torch.complex128)
    plain = FourierSums(BOX, 2, 8, dtype=torch.float64)
    residual = torch.zeros(view.shells, dtype=torch.float64)
    prior = -(shifts.fine * PIXEL).double().square().sum(1) / (2 * model.offset_sigma**2)
    for i in range(6):
        ctf, masked = batch.ctf[i].double(), batch.masked[i].to(torch.complex128) * factors
        difference = (masked[:, None] - ctf * slices).abs().square()
        score = prior[:, None] - 0.5 * difference.sum(-1)
        weight = torch.softmax(score.flatten(), 0).view_as(score)
        assert abs(float(found.max_probability[i] - weight.max())) < 1e-3
        moved = batch.unmasked[i].to(torch.complex128) * factors
        numerator = torch.einsum("tr,tk->rk", weight.to(torch.complex128), moved * ctf)
        plain.add(poses, pixels, numerator, weight.sum(0)[:, None] * ctf.square())
        inside = torch.einsum("tr,trk->k", weight, difference)
        residual += view.shell_sum(inside, pixels) * model.sigma2[0]
        residual[9:] += batch.power[i, 9:]
    assert (sums.slices.numerators() - plain.numerators()).abs().max() < 2e-3 * plain.numerators().abs().max()
    assert (sums.slices.weights() - plain.weights()).abs().max() < 2e-3 * plain.weights().abs().max()
    assert torch.allclose(sums.residual[0][1:], residual[1:], rtol=2e-3)


def test_true_poses_give_the_noise_back() -> None:
    """With the true reference and poses the noise is that of the simulation, seen through the mask: its share of the box."""
    images, table, truth = particles(150, BOX, PIXEL, 0.2)
    view = seen(images, table)
    own = from_particles(table, len(view.micrographs))
    model = model_of(truth, view, own)
    pixels = pixel_list(BOX, 15, multiple=64)
    search = Search(GivenPoses(own.matrices), no_shift(), pixels, pixels, pixels, symmetry="D2")
    sums, _ = expect(view, torch.arange(150), own, model, search)
    expected = 0.5 * BOX**2 * float(view.mask.square().mean())
    assert (new_noise(sums, view, model.sigma2)[0, 3:] / expected - 1).abs().max() < 0.12
    assert (new_scale(sums, own.scale) - 1).abs().max() < 0.15


def test_noise_at_the_start_is_that_of_each_group() -> None:
    """Also where the groups take turns, so that every so-manyth particle is of one of them, and where one has few particles."""
    images, table, _ = particles(40, BOX, PIXEL, 0.02, groups=2)
    for second in (range(1, 40, 2), (7, 11), (39,)):
        group = np.ones(40, np.int64)
        group[list(second)] = 2
        louder = images * torch.from_numpy(1 + 2.0 * (group == 2))[:, None, None].float()
        own = table.with_columns(optics_group=group)
        view = seen(louder, own)
        for most in (20, 1000):
            noise = starting_noise(view, torch.arange(40), unknown(own), most)
            ratio = noise[1, 4:].mean() / noise[0, 4:].mean()
            assert 5.0 < ratio < 16.0, (second, most, ratio)


def test_global_search_finds_the_poses() -> None:
    images, table, truth = particles(60, BOX, PIXEL, 0.3)
    view, own = seen(images, table), unknown(table)
    model = model_of(lowpass(truth, PIXEL, 20.0), view, own)
    generator = torch.Generator().manual_seed(1)
    coarse, fine = pixel_list(BOX, 9, multiple=64), pixel_list(BOX, 12, multiple=64)
    grid, shifts = SpaceGrid(2, "D2", generator), shifts_within(3.0, 1.5, generator)
    for half_precision in (False, True):
        search = Search(grid, shifts, coarse, fine, fine, symmetry="D2", half_precision=half_precision)
        sums, found = expect(view, torch.arange(60), own, model, search)
        own.matrices, own.origins = found.matrices, found.origins
        score = errors(own, table, "D2").summary()
        assert score["pose_median"] < 7.0 and score["within_10_degrees"] > 0.8 and not score["mirrored"]
        assert score["shift_median"] < 3.0
    near = Search(SpaceGrid(3, "D2", generator), shifts, fine, fine, fine, symmetry="D2", local_sigma=7.5)
    _, found = expect(view, torch.arange(60), own, model, near)
    own.matrices, own.origins = found.matrices, found.origins
    assert errors(own, table, "D2").summary()["pose_median"] < 0.8 * score["pose_median"]
    symmetrise(sums.slices, "D2")
    [volume] = reconstruct(sums.slices)
    assert torch.corrcoef(torch.stack([lowpass(x, PIXEL, 30.0).flatten() for x in (volume, truth)]))[0, 1] > 0.9


def test_expected_errors_foretell_the_real_ones() -> None:
    """RELION's estimate is at 99 %: between the median error and a few times it, and it shrinks with stronger signal."""
    estimates = []
    for snr in (0.1, 0.4):
        images, table, truth = particles(80, BOX, PIXEL, snr)
        view = seen(images, table)
        own = from_particles(table, len(view.micrographs))
        estimates.append(expected_errors(view, torch.arange(80), own, model_of(truth, view, own), pixel_list(BOX, 15)))
    assert 1.0 < estimates[1][0] < estimates[0][0] < 15.0
    assert 0.2 < estimates[1][1] < estimates[0][1] < 6.0
    assert abs(estimates[0][0] / estimates[1][0] - 2) < 0.3  # twice the amplitude


def test_noise_at_the_start_leaves_the_common_image_out() -> None:
    images, table, _ = particles(150, BOX, PIXEL, 0.2)
    view, own = seen(images + 0, table), unknown(table)
    power, transform = view.power_spectra(torch.arange(150), own)
    noise = first_noise(view, power, transform.mean(0)[None], view.noise_group)
    assert (noise > 0).all()
    blob = 4 * torch.exp(-((torch.arange(BOX) - 16.0) ** 2)[:, None] / 8) * torch.exp(-((torch.arange(BOX) - 16.0) ** 2) / 8)
    power2, transform2 = (lambda seen2: seen2.power_spectra(torch.arange(150), own))(seen(images + blob, table))
    with_blob = first_noise(view, power2, transform2.mean(0)[None], view.noise_group)
    assert (with_blob[0, 1:5] / noise[0, 1:5] - 1).abs().max() < 0.3
    assert (power2.mean(0)[1:3] > 1.5 * power.mean(0)[1:3]).all()


@pytest.mark.parametrize(("half_precision", "correlation"), [(False, False), (True, False), (False, True)])
def test_slices_that_memory_does_not_hold_are_compared_in_tiles(
    monkeypatch: pytest.MonkeyPatch, half_precision: bool, correlation: bool
) -> None:
    """A global search of many poses and classes: no tile is larger than its share of the memory, and the outcome is the same."""
    images, table, truth = particles(12, BOX, PIXEL, 0.3)
    view, own = seen(images, table), unknown(table)
    model = model_of(lowpass(truth, PIXEL, 20.0), view, own)
    generator = torch.Generator().manual_seed(1)
    pixels = pixel_list(BOX, 9, multiple=64)
    search = Search(
        SpaceGrid(1, "D2", generator),
        shifts_within(3.0, 3.0, generator),
        pixels,
        pixels,
        pixels,
        symmetry="D2",
        half_precision=half_precision,
        correlation=correlation,
    )
    sizes: list[int] = []
    whole = DenseSlices.__init__

    def noted(self: DenseSlices, slices: torch.Tensor, half_precision: bool) -> None:
        sizes.append(len(slices))
        whole(self, slices, half_precision)

    monkeypatch.setattr(DenseSlices, "__init__", noted)
    sums, found = expect(view, torch.arange(12), own, model, search)
    assert sizes == [len(search.grid)]
    sizes.clear()
    most = 100
    monkeypatch.setattr("verglas.refine.expectation.budget", lambda *_: most * 20 * len(pixels))
    tiled, same = expect(view, torch.arange(12), own, model, search)
    assert max(sizes) == most and sum(sizes) == len(search.grid)
    assert torch.equal(found.matrices, same.matrices) and torch.equal(found.classes, same.classes)
    assert torch.allclose(found.log_likelihood, same.log_likelihood, rtol=1e-4, atol=0.05)
    assert torch.allclose(sums.slices.weights(), tiled.slices.weights(), rtol=1e-2, atol=1e-3 * float(sums.slices.weights().max()))
