"""What runs may start from and be told: references on any grey scale, several of them, given poses, strengths, masks."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from refine.particles_for_tests import simulated
from refine.sets import DIAMETER, errors, particles, seen, two_states, unknown
from verglas.optics.aberrations import aberration_phase
from verglas.optics.ctf import ctf
from verglas.particles import ctf_parameters
from verglas.refine.assignments import from_particles, split_halves
from verglas.refine.autorefine import refine
from verglas.refine.classify import classify
from verglas.refine.expectation import expect
from verglas.refine.grids import GivenPoses, SpaceGrid, no_shift, shifts_within
from verglas.refine.maximisation import spectrum
from verglas.refine.model import Model
from verglas.refine.observations import Observations
from verglas.refine.search import Found, Search
from verglas.refine.settings import Settings
from verglas.refine.start import first_state, starting_noise
from verglas.refine.state import State
from verglas.scores.classes import class_purity
from verglas.scores.poses import pose_errors
from verglas.volume.fourier import frequency_grid, irfft_centred, radial_average, rfft_centred
from verglas.volume.fsc import corrected_fsc, fsc, phase_randomise, randomisation_shell
from verglas.volume.masks import soft_sphere
from verglas.volume.reconstruct import reconstruct, symmetrise
from verglas.volume.rotations import axis_rotation, matrix_to_euler, rotation_distance
from verglas.volume.slices import pixel_list
from verglas.volume.symmetry import symmetrise_map, symmetry_operators
from volume.maps_for_tests import chain

BOX, PIXEL = 32, 6.0


def refined(scale: float = 1.0, mask: torch.Tensor | None = None, **own: object) -> list[State]:
    images, table, truth = particles(120, BOX, PIXEL, 0.3)
    settings = Settings(**({"dims": 3, "mask_diameter": DIAMETER, "symmetry": "D2", "ini_high": 40.0, "iterations": 2} | own))  # type: ignore[arg-type]
    view = seen(images, table)
    return list(refine(view, first_state(view, unknown(table, halves=True), scale * truth[None], settings), settings, mask))


def classified(scales: tuple[float, ...], align: bool, iterations: int = 3, **own: object) -> State:
    """Two states by one map each, or copies of one, on scales of their own."""
    images, table, truth = two_states(120, BOX, PIXEL, 0.3)
    view = seen(images, table)
    assignments = unknown(table) if align else from_particles(table, len(view.micrographs))
    settings = Settings(
        **(
            {"dims": 3, "mask_diameter": DIAMETER, "classes": 2, "iterations": iterations, "symmetry": "D2", "tau2_fudge": 4.0}  # type: ignore[arg-type]
            | {"ini_high": 20.0, "align": align}
            | own
        )
    )
    references = torch.stack([scale * density for scale, density in zip(scales, truth)])
    return list(classify(view, first_state(view, assignments, references, settings), settings))[-1]


def test_a_refinement_does_not_hang_on_the_references_grey_values() -> None:
    """The first iteration is by cross-correlation: noise and strengths of the images are not taken from it."""
    plain, other = refined()[-1], refined(1e4)[-1]
    assert torch.equal(plain.assignments.matrices, other.assignments.matrices)
    assert torch.allclose(plain.unfiltered[0], other.unfiltered[0], atol=1e-4 * float(plain.unfiltered[0].std()))


@pytest.mark.parametrize("align", [True, False])
def test_classes_from_a_map_each_whatever_their_scales(align: bool) -> None:
    """Each class stays with the state that it began from, though one map is a thousand times as strong as the other."""
    _, table, _ = two_states(120, BOX, PIXEL, 0.3)
    true = table.column("class_number")
    first = classified((1.0, 1000.0), align, iterations=1)
    assert (first.assignments.classes.numpy() + 1 == true).mean() > 0.7
    state = classified((1.0, 1000.0), align)
    assert (state.assignments.classes.numpy() + 1 == true).mean() > 0.9
    assert class_purity(state.assignments.classes.numpy(), true).purity > 0.9


def test_errors_of_poses_are_foretold_in_classifications_too() -> None:
    state = classified((1.0, 1.0), align=True)
    assert 0.5 < state.progress.accuracy_rotation < 15.0 and 0.2 < state.progress.accuracy_offset < 6.0


def test_local_searches_begin_at_the_given_angles() -> None:
    """Angles that are 5 degrees off come nearer to the truth, and none leaves the three sigmas about it."""
    images, table, truth = particles(120, BOX, PIXEL, 1.0)
    generator = torch.Generator().manual_seed(1)
    true = from_particles(table, 1).matrices.double()
    axes = torch.randn(120, 3, generator=generator, dtype=torch.float64)
    off = torch.stack([axis_rotation(axis, 5.0) for axis in axes]) @ true
    angles = matrix_to_euler(off).numpy()
    given = table.with_columns(rot=angles[:, 0], tilt=angles[:, 1], psi=angles[:, 2])
    view = seen(images, given)
    settings = Settings(
        dims=3,
        mask_diameter=DIAMETER,
        iterations=2,
        symmetry="D2",
        ini_high=15.0,
        healpix_order=4,
        local_sigma=4.0,
        offset_range_px=2.0,
        offset_step_px=1.0,
    )
    start = first_state(view, from_particles(given, len(view.micrographs)), truth[None], settings)
    state = list(classify(view, start, settings))[-1]
    assert errors(state.assignments, table, "D2").summary()["pose_median"] < 3.5
    operators = symmetry_operators("D2")
    moved = torch.stack([rotation_distance(state.assignments.matrices.double(), off @ g) for g in operators]).amin(0)
    assert moved.median() > 0.5 and moved.max() < 2 * (3 * 4.0) * 2**0.5  # in direction and in the plane, in each of two iterations


def test_a_refinement_that_begins_finely_begins_at_the_given_angles() -> None:
    """As RELION's with an order from that of local searches on; one that begins coarsely takes no notice of them."""
    images, table, truth = particles(120, BOX, PIXEL, 1.0)
    true = from_particles(table, 1).matrices.double()
    axes = torch.randn(120, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    off = torch.stack([axis_rotation(axis, 70.0 if number < 12 else 5.0) for number, axis in enumerate(axes)]) @ true
    angles = matrix_to_euler(off).numpy()
    view = seen(images, table.with_columns(rot=angles[:, 0], tilt=angles[:, 1], psi=angles[:, 2]))
    half = split_halves(table, 1)[0]
    for order, local in ((3, True), (1, False)):
        settings = Settings(
            dims=3,
            mask_diameter=DIAMETER,
            symmetry="D2",
            ini_high=20.0,
            iterations=2,
            healpix_order=order,
            local_order=3,
            offset_step_px=1.0,
        )
        start = first_state(view, from_particles(view.particles, len(view.micrographs), half), truth[None], settings)
        assert start.sampling.local_sigma == (7.5 if local else None)
        state = next(refine(view, start, settings))
        moved = torch.stack([rotation_distance(state.assignments.matrices.double(), off @ g) for g in symmetry_operators("D2")]).amin(0)
        assert (moved < 3 * 7.5 * 2**0.5 + 4).all() == local
        errors_now = errors(state.assignments, table, "D2").degrees
        assert np.median(errors_now[12:]) < (5.0 if local else 16.0)
        assert (np.median(errors_now[:12]) > 30.0) == local, "what is far from the truth is found by a search everywhere alone"


def test_strengths_of_particles_and_micrographs_are_found() -> None:
    """RELION's norm correction follows each image's grey values, its scale those of the micrograph's signal."""
    images, table, truth = particles(160, BOX, PIXEL, 0.5)
    rng = np.random.default_rng(1)
    strength = np.exp(rng.normal(0, 0.25, 160))
    view = seen(images * torch.from_numpy(strength)[:, None, None].float(), table)
    settings = Settings(dims=3, mask_diameter=DIAMETER, iterations=3, symmetry="D2", ini_high=20.0, align=False, correct_scale=False)
    start = first_state(view, from_particles(table, len(view.micrographs)), truth[None], settings)
    found = list(classify(view, start, settings))[-1].assignments.norm.numpy()
    assert np.corrcoef(np.log(found), np.log(strength))[0, 1] > 0.95

    names = np.array([f"mic_{i % 4}.mrc" for i in range(160)])
    signal = np.array([0.7, 0.9, 1.1, 1.3])[np.arange(160) % 4]
    clean, noisy = particles(160, BOX, PIXEL, 1e6)[0], particles(160, BOX, PIXEL, 1e6)[0]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2)) * float(clean.std())
    noisy = clean * torch.from_numpy(signal)[:, None, None].float() + noise
    table = particles(160, BOX, PIXEL, 1e6)[1].with_columns(micrograph_name=names)
    view = seen(noisy, table)
    settings = Settings(dims=3, mask_diameter=DIAMETER, iterations=3, symmetry="D2", ini_high=20.0, align=False, correct_norm=False)
    start = first_state(view, from_particles(table, 4), truth[None], settings)
    scale = list(classify(view, start, settings))[-1].assignments.scale.numpy()
    np.testing.assert_allclose(scale, [0.7, 0.9, 1.1, 1.3], atol=0.08)


def test_the_ctf_of_the_engine_has_zernikes_and_may_be_left_out_up_to_its_first_peak() -> None:
    images, table, _ = particles(8, BOX, PIXEL, 1.0)
    even, odd = [0.3, -0.2, 0.5, 0.1], [0.0, 0.0, 4.0, -3.0, 2.0, 1.0]
    pixels, rows = pixel_list(BOX, 12), torch.arange(8)
    kx, ky = pixels.kx / (BOX * PIXEL), pixels.ky / (BOX * PIXEL)
    own = from_particles(table.with_columns(origin_x=0.0, origin_y=0.0), 1)
    flat = torch.ones(1, 16, dtype=torch.float64)
    parameters = ctf_parameters(table)
    for intact in (False, True):
        view = Observations(
            table.with_optics(even_zernike=str(even)), seen(images, table).source, mask_diameter=DIAMETER, intact_until_first_peak=intact
        )
        expected = ctf(kx, ky, **parameters, even_zernike=torch.tensor(even).expand(8, -1), intact_until_first_peak=intact)
        assert torch.allclose(view.batch(rows, own, flat, pixels).ctf, expected, atol=1e-5)
    fx, fy = frequency_grid(BOX, PIXEL)
    phase = aberration_phase(fx, fy, voltage=200.0, spherical_aberration=2.7, odd_zernike=torch.tensor(odd))
    bent = irfft_centred(rfft_centred(images) * phase, BOX)
    told = table.with_optics(odd_zernike=str(odd))
    straight, undone = (seen(stack, each).batch(rows, own, flat, pixels).unmasked for stack, each in ((images, table), (bent, told)))
    assert (straight - undone).abs().max() < 1e-3 * straight.abs().max()
    assert (pixels.pack(rfft_centred(bent)) - straight).abs().max() > 0.1 * straight.abs().max()


def test_the_fsc_that_decides_is_corrected_for_the_mask_where_that_is_wanted() -> None:
    mask = soft_sphere(BOX, 9.0, 4.0)
    plain, corrected = refined(mask=mask)[-1], refined(mask=mask, solvent_correct_fsc=True)[-1]
    halves = [half * mask for half in corrected.unfiltered]
    start = randomisation_shell(fsc(*corrected.unfiltered))
    generator = torch.Generator().manual_seed(1)
    random = [phase_randomise(half, start, generator) * mask for half in corrected.unfiltered]
    by_hand = corrected_fsc(fsc(*corrected.unfiltered), fsc(*halves), fsc(*random), start)[:16]
    assert (corrected.fsc[6:14] - by_hand[6:14]).abs().max() < 1e-4
    assert float(corrected.fsc[8:15].mean()) > float(plain.fsc[8:15].mean())
    # solvent is flattened by the mask either way
    assert not corrected.joined.references[0][mask == 0].any()  # type: ignore[union-attr]


def test_halves_are_joined_up_to_the_resolution_asked_for() -> None:
    """192 Å of box: 40 Å is shell 4, 24 Å shell 8; 0 joins nothing."""
    for resolution, shell in ((40.0, 4), (24.0, 8), (0.0, 0)):
        curve = refined(low_resol_join=resolution)[0].fsc
        assert (curve[: shell + 1] == 1).all() and (curve[shell + 1 :] < 1).all()


def test_one_padding_is_nearly_as_good_as_two() -> None:
    _, _, truth = particles(120, BOX, PIXEL, 0.3)
    curves = [fsc(refined(padding=padding)[-1].joined.references[0], truth) for padding in (1, 2)]  # type: ignore[union-attr]
    assert (curves[1][1:11] > 0.9).all() and (curves[0][1:11] > 0.85).all()


def test_nothing_finer_than_the_limit_is_compared_or_summed() -> None:
    state = refined(limit_resolution=20.0)[-1]  # shell 10
    assert state.progress.resolution_shell <= 10
    assert state.history[-1]["compared_to"] >= 19.0
    power = radial_average(rfft_centred(state.unfiltered[0], 3).abs().square(), BOX, 3)
    assert power[12:].max() < 1e-3 * power[4:8].min()


@cache
def symmetric(group: str) -> torch.Tensor:
    one = torch.roll(chain(24, 8.0, seed=2, atoms=300, radius=50.0), (2, 1, 3), (0, 1, 2))
    return symmetrise_map(one, group)


@pytest.mark.parametrize("group", ["C1", "C2", "C5", "D2", "D3", "D7", "T", "O", "I1", "I2", "I3", "I4"])
def test_every_group_from_global_search_to_map(group: str) -> None:
    """One unit is searched and the sums are spread over the group: poses modulo the group, and the map, are the truth; so locally."""
    truth = symmetric(group)
    table, source, rotations, _ = simulated(truth, 8.0, 40, snr=5.0, shift=3.0)
    view = Observations(table, source, mask_diameter=170.0)
    bare = table.with_columns(rot=None, tilt=None, psi=None, origin_x=None, origin_y=None)
    own = from_particles(bare, len(view.micrographs))
    noise = starting_noise(view, torch.arange(40), own) / 4
    images = source.read(np.arange(40))
    strength = float((images * view.mask).std() / truth.sum(0).std())
    reference = strength * truth[None]
    tau2 = spectrum(reference)[:, : view.shells]
    model = Model(reference, noise, tau2, 9 * torch.ones_like(tau2), torch.ones(1, dtype=torch.float64), 6.0)
    generator = torch.Generator().manual_seed(1)
    pixels = pixel_list(24, 10, multiple=64)
    shifts = shifts_within(1.5, 1.0, generator)
    true = matrix_to_euler(rotations.double())
    order, sums = 2, None
    for grid, sigma in ((SpaceGrid(order, group, generator), None), (SpaceGrid(order + 1, group, generator), 60.0 / 2 ** (order + 1))):
        search = Search(grid, shifts, pixels, pixels, pixels, symmetry=group, local_sigma=sigma, correlation=sigma is None)
        sums, found = expect(view, torch.arange(40), own, model, search)
        own.matrices, own.origins = found.matrices, found.origins
        median = pose_errors(own.angles(), true, group, common_rotation=False).summary()["pose_median"]
        assert median < (13.5 if sigma is None else 9.5), (group, sigma, median)  # by chance 20 degrees and more under I
    # fits tell them better, and the same from whichever copies of the last poses
    operators = symmetry_operators(group).float()
    last, copies = own.matrices, own.matrices @ operators[torch.randint(0, len(operators), (40,), generator=generator)]
    fit = Search(SpaceGrid(order + 1, group, generator), shifts, pixels, pixels, pixels, symmetry=group, local_sigma=7.5, fit="found")
    fitted = []
    for poses in (last, copies):
        own.matrices = poses
        sums, found = expect(view, torch.arange(40), own, model, fit)
        fitted.append(found.matrices)
    assert (rotation_distance(*fitted) < 0.1).float().mean() > 0.9
    own.matrices = fitted[1]
    assert pose_errors(own.angles(), true, group, common_rotation=False).summary()["pose_median"] < 9.0
    assert sums is not None
    symmetrise(sums.slices, group)
    [volume] = reconstruct(sums.slices)
    assert (fsc(volume, truth)[1:7] > 0.9).all(), fsc(volume, truth)


ABERRATIONS: dict[str, dict[str, Any]] = {
    "odd": {"beam_tilt": (60.0, -30.0), "odd_zernike": (0.0, 0.0, 5000.0, 0.0, 0.0, -5000.0)},
    "even": {"even_zernike": (0.0, 200.0, 0.0, -150.0, 0.0, 0.0, 3e4)},
    "magnification": {"mag": torch.tensor([[1.06, 0.03], [0.02, 0.93]])},
}


def optics_of(beam_tilt: tuple[float, ...] = (), mag: torch.Tensor | None = None, **zernike: tuple[float, ...]) -> dict[str, float | str]:
    """The columns of an optics table that tell of aberrations."""
    columns: dict[str, float | str] = {name: str(list(values)) for name, values in zernike.items()}
    columns |= {f"beam_tilt_{axis}": value for axis, value in zip("xy", beam_tilt)}
    return columns if mag is None else columns | {f"mag_{i}{j}": float(mag[i, j]) for i in (0, 1) for j in (0, 1)}


def one_pass(
    view: Observations, poses: torch.Tensor, origins: torch.Tensor, reference: torch.Tensor, search: Search
) -> tuple[Found, torch.Tensor]:
    """What a pass from given poses and origins finds, and its map."""
    own, rows = from_particles(view.particles, len(view.micrographs)), torch.arange(len(view))
    own.matrices, own.origins = poses, origins
    noise, tau2 = starting_noise(view, rows, own), spectrum(reference[None])[:, : view.shells]
    model = Model(reference[None], noise, tau2, 9 * torch.ones_like(tau2), torch.ones(1, dtype=torch.float64), 6.0)
    sums, found = expect(view, rows, own, model, search)
    return found, reconstruct(sums.slices)[0]


@pytest.mark.parametrize("kind", ABERRATIONS)
def test_images_with_aberrations_are_fitted_and_summed_as_the_optics_table_tells(kind: str) -> None:
    """Simulated with them at each frequency: poses 5 degrees off come to the truth, and so does the map; less so if nothing is told."""
    truth, pixels = symmetric("C1"), pixel_list(24, 10, multiple=64)
    # other images, without aberrations, give a map in the images' units
    table, source, rotations, origins = simulated(truth, 8.0, 200, snr=2.0, shift=3.0, seed=2)
    given = Search(GivenPoses(rotations), no_shift(), pixels, pixels, pixels)
    _, reference = one_pass(Observations(table, source, mask_diameter=170.0), rotations, origins, truth, given)

    table, source, rotations, origins = simulated(truth, 8.0, 100, snr=2.0, shift=3.0, **ABERRATIONS[kind])
    axes = torch.randn(100, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    off = (torch.stack([axis_rotation(axis, 5.0) for axis in axes]) @ rotations.double()).float()
    near = Search(SpaceGrid(3, "C1", None), shifts_within(1.5, 1.0, None), pixels, pixels, pixels, local_sigma=5.0, fit="found")
    turned, moved, lost = [], [], []
    for told in (optics_of(**ABERRATIONS[kind]), {}):
        view = Observations(table.with_optics(**told), source, mask_diameter=170.0)
        found, volume = one_pass(view, off, torch.zeros(100, 2), reference, near)
        turned.append(float(rotation_distance(found.matrices, rotations).median()))
        moved.append(float((found.origins - origins).norm(dim=1).median()))
        lost.append(1 - fsc(volume, truth)[1:10])
    assert turned[0] < 2.2 and turned[0] < 0.6 * turned[1]
    assert moved[0] < 0.8 and moved[0] < 0.5 * moved[1]
    assert (lost[0] < 0.02).all() and lost[0][4:].mean() < 0.8 * lost[1][4:].mean()
