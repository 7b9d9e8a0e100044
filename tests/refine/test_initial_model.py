"""First maps against the truth that the particles were made from."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from refine.particles_for_tests import simulated
from verglas.particles import ParticleSet
from verglas.particles.images import ArrayImages
from verglas.refine.initial_model import InitialModel, Settings, State, spherical, stage
from verglas.refine.initial_search import PoseSearch, evening, rotations_apart
from verglas.refine.observations import Observations
from verglas.scores.maps import map_fsc_to_truth
from verglas.simulate.stand_in import stand_in
from verglas.volume.atoms import density_from_atoms
from verglas.volume.rotations import axis_rotation, random_rotations, rotation_distance
from verglas.volume.sampling import asymmetric_unit, shift_grid
from verglas.volume.slices import pixel_list
from verglas.volume.symmetry import normaliser, symmetry_operators
from volume.maps_for_tests import chain

BOX, PIXEL = 24, 7.0
SETTINGS = Settings(
    mask_diameter=120.0, symmetry="D2", iterations=14, ini_batch=100, fin_batch=200, fin_resolution=20.0, angle=14.0, offset_step=7.0
)


def truth(turned: bool = False) -> torch.Tensor:
    """The simulator's D2 tetramer; or, `turned`, with its subunits turned by 50 degrees about axes of their own."""
    specimen = stand_in()
    place = torch.as_tensor(specimen.position)
    if turned:
        one = place[specimen.chain == specimen.chain[0]]
        own = (one - one.mean(dim=0)) @ axis_rotation(torch.tensor([1.0, 2.0, 0.5]).double(), 50.0).T + one.mean(dim=0)
        place = torch.cat([own @ g.T for g in symmetry_operators("D2")])
    return density_from_atoms(place, torch.full((len(place),), 7.0), BOX, PIXEL, 200.0)


@pytest.fixture(scope="module")
def made() -> tuple[Observations, State, torch.Tensor, torch.Tensor, InitialModel]:
    particles, images, rotations, origins = simulated(truth(), PIXEL, 300)
    model = InitialModel(Observations(particles, images, mask_diameter=120.0), SETTINGS)
    state = model.start()
    for _ in range(SETTINGS.iterations):
        state = model.step(state)
    return model.seen, state, rotations, origins, model


def test_map_is_the_truth_up_to_normaliser_and_hand(made: tuple) -> None:
    _, state, _, _, _ = made
    score = map_fsc_to_truth(state.maps[0], truth(), PIXEL, radius=60.0, rotations=normaliser("D2"))
    assert score.resolution < 24.0, score.fsc


def test_poses_and_origins_are_the_truth_in_the_maps_frame(made: tuple) -> None:
    _, state, rotations, origins, model = made
    score = map_fsc_to_truth(state.maps[0], truth(), PIXEL, radius=60.0, rotations=normaliser("D2"))
    found = model.assign(state)
    # the mirrored map's pose of the same image: turned by half about the view, all reflected
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    expected = (flip @ rotations @ mirror if score.mirrored else rotations).double() @ score.alignment.rotation.T
    errors = torch.stack([rotation_distance(found.matrices.double() @ g, expected) for g in symmetry_operators("D2")]).amin(dim=0)
    assert errors.median() < 10.0
    assert (found.origins - origins).norm(dim=1).median() < 5.0


def test_map_explains_images_better_than_its_spherical_average(made: tuple) -> None:
    _, state, _, _, model = made
    rows = model.sample(100)
    assert model.mean_log_likelihood(state, rows) > model.mean_log_likelihood(spherical(state), rows) + 5


def test_order_of_the_list_changes_nothing(made: tuple) -> None:
    seen, _, _, _, model = made
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(9))
    images = ArrayImages(seen.source.read(order.numpy()), PIXEL)
    other = InitialModel(Observations(seen.particles.subset(order.numpy()), images, mask_diameter=120.0), SETTINGS)
    assert torch.allclose(other.step(other.start()).maps, model.step(model.start()).maps, rtol=1e-4, atol=1e-6)


def test_seeds_differ_and_repeat(made: tuple) -> None:
    seen, _, _, _, model = made
    other = InitialModel(seen, replace(SETTINGS, seed=2))
    assert not torch.allclose(other.start().maps, model.start().maps, rtol=0.1)
    assert torch.equal(InitialModel(seen, SETTINGS).start().maps, model.start().maps)


def test_two_structures_are_told_apart() -> None:
    parts = [simulated(truth(turned), PIXEL, 200, seed=number) for number, turned in enumerate((False, True), start=1)]
    images = torch.cat([source.read(torch.arange(200).numpy()) for _, source, _, _ in parts])
    table = pd.concat([particles.table for particles, _, _, _ in parts], ignore_index=True)
    table["image_name"] = [f"{i + 1:06d}@all.mrcs" for i in range(400)]
    seen = Observations(ParticleSet(parts[0][0].optics, table), ArrayImages(images, PIXEL), mask_diameter=120.0)
    model = InitialModel(seen, replace(SETTINGS, classes=2, fin_batch=300, iterations=24))
    state = model.start()
    for _ in range(24):
        state = model.step(state)
    classes = model.assign(state).classes
    member = torch.arange(400) // 200
    purity = max(float((classes == member).float().mean()), float((classes != member).float().mean()))
    assert purity > 0.9


def test_classes_are_even_over_a_batch_however_it_is_cut(made: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory cuts a batch into chunks, down to single images where maps are many: classes must still be told apart within it."""
    seen, _, _, _, _ = made
    model = InitialModel(seen, replace(SETTINGS, classes=3))
    whole = model.step(model.start())
    assert torch.allclose(whole.shares, torch.full((3,), 1 / 3), atol=0.02)
    assert (whole.maps[0] - whole.maps[1]).abs().max() > 0.05 * whole.maps.max()
    monkeypatch.setattr("verglas.refine.initial_search._SCORES_AT_ONCE", 1)
    single = model.step(model.start())
    assert torch.allclose(single.maps, whole.maps, rtol=1e-3, atol=1e-4 * float(whole.maps.max()))


@pytest.mark.gpu
def test_card_and_cpu_agree(made: tuple) -> None:
    seen, _, _, _, model = made
    card = InitialModel(Observations(seen.particles, seen.source, mask_diameter=120.0, device="cuda"), SETTINGS)
    there, here = card.step(card.start()), model.step(model.start())
    assert torch.allclose(there.maps.cpu(), here.maps, rtol=1e-2, atol=1e-3 * float(here.maps.max()))
    assert card.mean_log_likelihood(there, card.sample(50)) == pytest.approx(model.mean_log_likelihood(here, model.sample(50)), rel=1e-2)


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("exponent", [1.0, 0.3])
def test_weights_are_the_posterior_and_none_is_next_to_nothing(made: tuple, classes: int, exponent: float) -> None:
    """Against the definition in double precision; numbers that a processor takes far longer for would slow the products tenfold."""
    seen, state, _, _, model = made
    pixels = pixel_list(BOX, 8)
    batch = seen.batch(torch.arange(20), model.known, 1e-3 * model.noise, pixels)  # a posterior as sharp as they come
    shares = torch.tensor([0.25, 0.75])[:classes] if classes > 1 else torch.ones(1)
    maps = torch.cat([state.maps, state.maps.flip(1)])[:classes]
    search = PoseSearch(maps, shares, rotations_apart(20.0, torch.eye(3), "D2"), shift_grid(2.0, 1.0), pixels, exponent)
    weights, moved, quality = search.posterior(batch, evening(search.log_class(batch)) if exponent < 1 else 0.0)
    scores = moved.double().flatten(0, 1) @ search.slices.double().T
    scores = scores.view(20, -1, len(search.slices)) - 0.5 * (batch.ctf.double().square() @ search.power.double().T)[:, None]
    flat = (scores + search.prior.double()).flatten(1)
    expected = torch.softmax(exponent * flat, dim=1)
    gain = torch.logsumexp(flat, dim=1) - math.log(len(search.shifts))
    assert torch.allclose(quality[:, 0].double(), gain, rtol=1e-5)
    of_class, own = weights.unflatten(2, (classes, -1)), flat.view(20, len(search.shifts), classes, -1)
    within = torch.softmax(exponent * own.transpose(1, 2).flatten(2), dim=2)
    assert torch.allclose((of_class / of_class.sum((1, 3), keepdim=True)).transpose(1, 2).flatten(2).double(), within, atol=1e-3)
    if exponent == 1:
        assert torch.allclose(weights.flatten(1).double(), expected, atol=1e-3)
    else:
        assert torch.allclose(quality[:, 2:].mean(0), torch.full((classes,), 1 / classes), atol=0.11)  # twenty images, each sure of one
    assert torch.allclose(quality[:, 1], weights.flatten(1).amax(1), atol=1e-4)
    assert torch.allclose(weights.sum((1, 2)), torch.ones(20), atol=1e-4)
    assert torch.allclose(quality[:, 2:], weights.unflatten(2, (classes, -1)).sum((1, 3)), atol=1e-4)
    assert (expected < 1e-37).any() and weights.min() > 1e-35


@pytest.mark.parametrize("group", ["C1", "D2", "O"])
def test_rotations_fill_one_unit_evenly(group: str) -> None:
    turn = random_rotations(1, torch.Generator().manual_seed(2))[0]
    grid = rotations_apart(14.0, turn, group)
    order = len(symmetry_operators(group))
    assert len(grid) == pytest.approx(8 * torch.pi**2 / torch.deg2rad(torch.tensor(14.0)).item() ** 3 / order, rel=0.12)
    any_pose = asymmetric_unit(random_rotations(300, torch.Generator().manual_seed(3)), group)
    copies = any_pose[:, None] @ symmetry_operators(group)
    nearest = rotation_distance(copies[:, :, None], grid.double()).flatten(1).amin(dim=1)
    assert nearest.max() < 14.0 and nearest.mean() < 9.0


def test_schedule_rises_to_what_was_asked_for() -> None:
    stages = [stage(i, Settings(mask_diameter=120.0, fin_resolution=17.0), 36, 5.6) for i in range(1, 25)]
    assert stages[0].resolution == pytest.approx(40) and stages[0].exponent == pytest.approx(0.3) and stages[0].batch == 150
    assert stages[15].resolution == pytest.approx(17) and stages[-1].shell == 12 and stages[-1].exponent == 1 and stages[-1].batch == 500
    assert [s.positive for s in stages] == [True] * 12 + [False] * 12
    assert stage(24, Settings(mask_diameter=120.0, fin_resolution=3.0), 36, 5.6).shell == 17


def test_spherical_average_keeps_the_radial_profile() -> None:
    state = State(1, torch.stack([chain(24, 5.0)]), torch.ones(1))
    flat = spherical(state).maps[0]
    assert flat.sum() == pytest.approx(float(state.maps.sum()), rel=1e-3)
    assert torch.allclose(flat[1:, 1:, 1:], flat[1:, 1:, 1:].transpose(0, 2), atol=1e-4)
