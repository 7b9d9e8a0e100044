"""Priors of orientations, origins and classes: what they do to poses, that they are learned, and what becomes of classes that run empty."""

from typing import Any

import pytest
import torch

from refine.sets import DIAMETER, particles, seen
from verglas.refine.assignments import from_particles
from verglas.refine.classify import _only_class, one_iteration
from verglas.refine.expectation import expect
from verglas.refine.grids import GivenPoses, SpaceGrid, no_shift
from verglas.refine.iteration import new_statistics
from verglas.refine.maximisation import spectrum
from verglas.refine.model import Model
from verglas.refine.observations import rolled
from verglas.refine.search import Fit, Found, Search
from verglas.refine.settings import Settings
from verglas.refine.start import first_state, starting_noise
from verglas.refine.state import State
from verglas.volume.rotations import axis_rotation, rotation_distance
from verglas.volume.slices import pixel_list
from verglas.volume.symmetry import symmetry_operators

BOX, PIXEL = 32, 6.0


def distances(poses: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Degrees between poses and given ones [..., 3, 3] modulo D2."""
    return torch.stack([rotation_distance(poses.double(), given.double() @ each) for each in symmetry_operators("D2")]).amin(0)


def found_near(given: torch.Tensor, sigma: float, noise: float, fraction: float) -> tuple[Found, SpaceGrid]:
    """A local search about the given poses of the first particles, that takes their noise for `noise` times as strong as it is."""
    images, table, truth = particles(60, BOX, PIXEL, 0.3)
    view, rows = seen(images, table), torch.arange(len(given))
    own = from_particles(table, len(view.micrographs))
    own.matrices[rows] = given
    grid, pixels = SpaceGrid(3, "D2", torch.Generator().manual_seed(2)), pixel_list(BOX, 12, multiple=64)
    tau2 = spectrum(truth[None])[:, : view.shells]
    sigma2 = noise * starting_noise(view, rows, own)
    model = Model(truth[None], sigma2, tau2, 9 * torch.ones_like(tau2), torch.ones(1, dtype=torch.float64), 6.0)
    how: dict[str, Any] = {"symmetry": "D2", "local_sigma": sigma, "fraction": fraction, "at_most": 1_000_000}
    return expect(view, rows, own, model, Search(grid, no_shift(), pixels, pixels, pixels, **how))[1], grid


@pytest.mark.parametrize("sigma", [5.0, 7.5])
def test_where_images_say_nothing_poses_are_as_likely_as_the_prior_has_them(sigma: float) -> None:
    """The best one's share, and how many hold half of it all, are those of a Gaussian about the given poses, over all of the grid."""
    given = from_particles(particles(60, BOX, PIXEL, 0.3)[1], 2).matrices[:20]
    found, grid = found_near(given, sigma, 1e8, 1 - 1e-6)
    apart = distances(grid.matrices(torch.arange(len(grid)))[None], given[:, None])
    shares = torch.softmax(-apart.square() / (2 * sigma**2), 1).sort(descending=True).values
    assert (grid.fan * found.max_probability / shares[:, 0] - 1).abs().max() < 0.05  # the search leaves out what is beyond 3 sigmas
    half = (shares.cumsum(1) < 0.5).sum(1) + 1
    assert (found_near(given, sigma, 1e8, 0.5)[0].significant - half).abs().max() <= 1


def test_the_sharper_the_prior_the_nearer_poses_stay_to_the_given_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same candidates about poses 8 degrees from the truth, by images that are nearly as vague as the prior."""
    true = from_particles(particles(60, BOX, PIXEL, 0.3)[1], 2).matrices
    axes = torch.randn(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = (torch.stack([axis_rotation(axis, 8.0) for axis in axes]) @ true.double()).float()
    moved, off = [], []
    for sigma in (2.0, 4.0, 8.0):
        monkeypatch.setattr("verglas.refine.expectation._CUTOFF_SIGMAS", 16.0 / sigma)
        found, _ = found_near(given, sigma, 10.0, 0.999)
        moved.append(float(distances(found.matrices, given).mean()))
        off.append(float(distances(found.matrices, true).mean()))
    assert moved[0] + 0.6 < moved[1] < moved[2] - 0.6
    assert off[0] - 0.6 > off[1] > off[2] + 0.3


@pytest.mark.parametrize("fit", ["", "found", "last"])
@pytest.mark.parametrize("further", [0.0, 8.0])
def test_the_spread_of_origins_is_learned(further: float, fit: Fit) -> None:
    """One iteration from the true poses takes it from 10 Å an axis to the simulation's 4 Å, and to more where images are moved further."""
    images, table, truth = particles(60, BOX, PIXEL, 0.3)
    moves = (further / PIXEL * torch.randn(60, 2, generator=torch.Generator().manual_seed(1))).round().long()
    true = torch.as_tensor(table.origins()) - PIXEL * moves
    images, table = rolled(images, moves), table.with_columns(origin_x=true[:, 0].numpy(), origin_y=true[:, 1].numpy())
    view = seen(images, table)
    settings = Settings(
        dims=3,
        mask_diameter=DIAMETER,
        symmetry="D2",
        ini_high=15.0,
        healpix_order=4,
        local_sigma=3.75,
        offset_range_px=1.0,
        offset_step_px=0.5,
        absolute_greyscale=True,
    )
    start = first_state(view, from_particles(table, len(view.micrographs)), truth[None], settings)
    start.sampling.fit = fit
    found = one_iteration(view, start, settings).models[0].offset_sigma
    assert start.models[0].offset_sigma == 10.0
    assert abs(found / float(true.square().mean().sqrt()) - 1) < 0.1
    assert further or abs(found / 4.0 - 1) < 0.2


def test_the_spread_of_origins_never_gets_too_small_to_search() -> None:
    """Origins that are all 0 leave half an ångström; where poses are kept nothing is learned."""
    images, table, truth = particles(60, BOX, PIXEL, 0.3)
    view, rows = seen(images, table), torch.arange(60)
    own = from_particles(table.with_columns(origin_x=0.0, origin_y=0.0), len(view.micrographs))
    tau2, pixels = spectrum(truth[None])[:, : view.shells], pixel_list(BOX, 12, multiple=64)
    model = Model(truth[None], starting_noise(view, rows, own), tau2, tau2, torch.ones(1, dtype=torch.float64), 6.0)
    sums, _ = expect(view, rows, own, model, Search(GivenPoses(own.matrices), no_shift(), pixels, pixels, pixels))
    assert sums.offset2 == 0
    for align, expected in ((False, 6.0), (True, 0.5)):
        new_statistics(model, sums, view, Settings(dims=3, mask_diameter=DIAMETER, align=align))
        assert model.offset_sigma == expected


def classes_2d(weights: list[float], counts: list[int], iteration: int) -> tuple[State, Settings]:
    """A 2D classification of 60 particles on its way, with random averages."""
    images, table, _ = particles(60, BOX, PIXEL, 0.3)
    view = seen(images, table)
    settings = Settings(dims=2, mask_diameter=DIAMETER, classes=len(weights), iterations=6, psi_step=30.0, offset_range_px=1.0)
    own = from_particles(table, len(view.micrographs))
    own.classes = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    averages = torch.randn(len(weights), BOX, BOX, generator=torch.Generator().manual_seed(1))
    state = first_state(view, own, averages, settings)
    state.iteration, state.models[0].class_weight = iteration, torch.tensor(weights, dtype=torch.float64)
    state.models[0].ssnr = torch.rand(state.models[0].ssnr.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for values in (state.models[0].references, state.models[0].tau2, state.models[0].ssnr):
        values[torch.tensor(weights) == 0] = 0.0
    return state, settings


@pytest.mark.parametrize("iteration", [1, 3])
def test_an_empty_class_takes_half_of_the_largest(iteration: int) -> None:
    """Its particles, at random, and copies of its average and spectra; the others are left alone."""
    state, settings = classes_2d([0.99, 0.0, 0.01], [56, 0, 4], iteration)
    before, model, own = classes_2d([0.99, 0.0, 0.01], [56, 0, 4], iteration)[0].models[0], state.models[0], state.assignments.classes
    bound = _only_class(state, settings)
    assert bound is not None
    assert torch.bincount(bound[own == 0], minlength=3).tolist() == [28, 28, 0]
    assert ((bound[own == 2] == -1) | (bound[own == 2] == 2)).all()
    assert all(7 < (some == 1).sum() < 21 for some in (bound[:28], bound[:56:2])), "not by their order"
    for now, then in ((model.references, before.references), (model.tau2, before.tau2), (model.ssnr, before.ssnr)):
        assert torch.equal(now[1], then[0]) and then[0].any()
        assert torch.equal(now[[0, 2]], then[[0, 2]])


def test_two_empty_classes_take_from_the_two_largest() -> None:
    """And particles of a class that is neither may go where they like."""
    state, settings = classes_2d([0.5, 0.0, 0.0, 0.3, 0.2], [30, 0, 0, 18, 12], 2)
    before = state.models[0].references.clone()
    bound, own = _only_class(state, settings), state.assignments.classes
    assert bound is not None
    shares = [torch.bincount(bound[own == number], minlength=5).tolist() for number in (0, 3)]
    assert shares == [[15, 15, 0, 0, 0], [0, 0, 9, 9, 0]] and (bound[own == 4] == -1).all()
    assert torch.equal(state.models[0].references, before[[0, 0, 3, 3, 4]])


@pytest.mark.parametrize(
    "weights,iteration,dims",
    [([0.99, 0.0, 0.01], 4, 2), ([0.99, 0.0, 0.01], 6, 2), ([0.99, 0.0, 0.01], 2, 3), ([0.6, 0.05, 0.35], 2, 2)],
)
def test_no_class_is_halved_late_or_in_3d_or_for_one_that_is_not_empty(weights: list[float], iteration: int, dims: int) -> None:
    state, settings = classes_2d(weights, [56, 0, 4], iteration)
    before = state.models[0].references.clone()
    settings = Settings(dims=dims, mask_diameter=DIAMETER, classes=3, iterations=settings.iterations)
    assert _only_class(state, settings) is None
    assert torch.equal(state.models[0].references, before)


def test_an_iteration_fills_the_empty_class_and_leaves_its_start_as_it_was() -> None:
    images, table, _ = particles(60, BOX, PIXEL, 0.3)
    for iteration, share in ((3, 28), (4, 0)):
        state, settings = classes_2d([0.99, 0.0, 0.01], [56, 0, 4], iteration)
        after = one_iteration(seen(images, table), state, settings)
        assert not state.models[0].references[1].any() and (state.assignments.classes != 1).all()
        now = torch.bincount(after.assignments.classes[:56], minlength=3)
        if share:
            assert now.tolist() == [28, 28, 0] and 0.4 < after.models[0].class_weight[1] < 0.55
            assert after.models[0].references[1].any()
            assert not torch.equal(after.models[0].references[1], after.models[0].references[0])
        else:
            assert now[1] == 0 and not after.models[0].references[1].any()
