"""Picking against known positions, against its own definition computed directly, and on real micrographs against experts."""

import numpy as np
import pytest
import torch

from synthetic_micrographs import CTF, PIXEL, lobes, micrograph
from verglas.errors import ItemError
from verglas.micrograph.peaks import keep_separate, local_maxima, refine_peaks
from verglas.micrograph.pick_background import smooth_surface, without_background
from verglas.micrograph.pick_blob import blob_bank, blob_reference
from verglas.micrograph.pick_candidates import template_candidates
from verglas.micrograph.pick_log import log_diameters, log_responses
from verglas.micrograph.pick_prepare import Coarse, disc, prepare_micrograph, smooth_size, sums_within
from verglas.micrograph.pick_templates import match_templates, template_bank
from verglas.micrograph.pick_threshold import find_cut
from verglas.optics.ctf import ctf
from verglas.scores.picks import match_picks, total_score


@pytest.fixture(scope="module")
def scenes():
    return [micrograph(1, crystal=True), micrograph(2, carbon=True)]


@pytest.fixture(scope="module")
def coarse(scenes):
    return [without_background(prepare_micrograph(scene.image, PIXEL, 8.0), 105) for scene in scenes]


def score(found, scenes, threshold):
    picks = [each.xy[each.score > threshold] for each in found]
    size = (scenes[0].image.shape[1] * PIXEL, scenes[0].image.shape[0] * PIXEL)
    return total_score([match_picks(xy * PIXEL, scene.xy * PIXEL, 25, size, 50) for xy, scene in zip(picks, scenes)])


def reference():
    return lobes(np.array([[64, 64]]), np.zeros(1), (128, 128))[None]


def test_blobs_are_picked_without_a_reference_and_not_from_dirt(scenes, coarse):
    profile = blob_reference(coarse, 90, 120, 75, 20.0)
    bank = blob_bank(profile, coarse[0].pixel_size, 90, 120, 20.0)
    found = [template_candidates(each, bank, 75, 50) for each in coarse]
    threshold = find_cut(np.concatenate([each.score for each in found])).threshold
    result = score(found, scenes, threshold)
    assert result.true > 50 and result.f1 > 0.85
    for each, scene in zip(found, scenes):
        x, y = np.rint(each.xy).astype(int).T
        assert not scene.covered[y, x].any()


def test_templates_find_positions_and_turns(scenes, coarse):
    bank = template_bank(reference(), PIXEL, 8.0, diameter=140, low_pass=20, psi_step=10)
    found = [template_candidates(each, bank, 75, 50, CTF) for each in coarse]
    result = score(found, scenes, find_cut(np.concatenate([each.score for each in found])).threshold)
    assert result.f1 > 0.95 and result.centre_error < 4
    best, scene = found[0].subset(np.arange(20)), scenes[0]
    nearest = np.linalg.norm(best.xy[:, None] - scene.xy[None], axis=2).argmin(1)
    errors = (best.psi - scene.psi[nearest] + 180) % 360 - 180
    assert np.median(np.abs(errors)) < 6


def test_projections_of_a_map_find_their_direction():
    random = np.random.default_rng(0)
    z, y, x = np.mgrid[:40, :40, :40] - 20.0
    density = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 8.0) for a, b, c in random.uniform(-10, 10, (9, 3)))
    volume = torch.from_numpy(density).float()
    directions = torch.tensor([[0.0, 0.0], [0.0, 90.0], [90.0, 90.0]])
    bank = template_bank(volume, 4.0, 4.0, diameter=120, low_pass=10, psi_step=30, directions=directions)
    seen = [density.sum(0), density.sum(2)]  # along z (rot 0, tilt 0), and along x (rot 0, tilt 90)
    image = np.zeros((64, 180), np.float32)
    image[12:52, 30:70], image[12:52, 110:150] = -seen[0], -np.rot90(seen[1], 0)
    noisy = torch.from_numpy(image + random.normal(0, 0.05, image.shape)).float()
    match = match_templates(Coarse(noisy, 4.0, (64, 180), torch.ones(64, 180, dtype=torch.bool)), bank)
    assert int(bank.class_number[match.template[32, 50]]) == 1
    assert int(bank.class_number[match.template[32, 130]]) == 2
    assert match.score[32, 50] > 0.95 and match.score[32, 130] > 0.95


@pytest.mark.parametrize("with_ctf", [False, True])
def test_score_is_the_local_correlation_coefficient(with_ctf):
    """The basis, the transforms and the matrix product against the definition, pixel by pixel."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(50, 60, generator=generator)
    line = torch.arange(-10.0, 10)
    references = torch.randn(2, 20, 20, generator=generator) * torch.exp(-torch.hypot(line[:, None], line) / 5)
    bank = template_bank(references, 4.0, 4.0, diameter=60, low_pass=9, psi_step=90)
    match = match_templates(Coarse(image, 4.0, (50, 60), torch.ones(50, 60, dtype=torch.bool)), bank, CTF if with_ctf else None)
    size, window = bank.basis.shape[-1], disc(7.5)
    gap = (size - window.shape[0]) // 2
    window = torch.nn.functional.pad(window, (gap,) * 4)
    templates = torch.einsum("tr,ryx->tyx", bank.weights, bank.basis)
    if with_ctf:
        ky, kx = torch.fft.fftfreq(size, 4.0)[:, None], torch.fft.rfftfreq(size, 4.0)[None]
        templates = torch.fft.irfft2(torch.fft.rfft2(templates) * ctf(*torch.broadcast_tensors(kx, ky), **CTF), s=(size, size))
    templates = (templates - (templates * window).sum((1, 2), keepdim=True) / window.sum()) * window
    for y, x in ((20, 30), (28, 25), (25, 41)):
        patch = -image[y - size // 2 : y + size // 2 + 1, x - size // 2 : x + size // 2 + 1]
        mean = (patch * window).sum() / window.sum()
        norm = ((patch - mean) ** 2 * window).sum().sqrt()
        direct = (templates * patch).sum((1, 2)) / templates.flatten(1).norm(dim=1) / norm
        assert match.score[y, x] == pytest.approx(float(direct.max()), abs=2e-4)
        assert int(match.template[y, x]) == int(direct.argmax())


def test_basis_is_small_and_carries_the_templates():
    bank = template_bank(reference(), PIXEL, 8.0, diameter=140, low_pass=20, psi_step=5)
    assert len(bank) == 72 and len(bank.basis) < 30
    norms = (bank.weights @ bank.basis.flatten(1)).norm(dim=1)
    assert (norms > 0.99).all()


def test_laplacian_of_gaussian_answers_at_the_disc_s_own_diameter():
    line = torch.arange(200.0)
    image = -(torch.hypot(line[:, None] - 90, line[None] - 110) <= 15).float()
    diameters = log_diameters(60, 240)
    responses = log_responses(Coarse(image, 4.0, (200, 200), torch.ones(200, 200, dtype=torch.bool)), diameters)
    assert float(diameters[responses[:, 90, 110].argmax()]) == pytest.approx(120, rel=0.08)
    at_best = responses[responses[:, 90, 110].argmax()]
    assert divmod(int(at_best.argmax()), 200) == (90, 110)


def test_positions_go_back_to_the_micrograph_s_pixels():
    """Sizes that do not divide, different in x and y: a particle is found where it was put."""
    at = np.array([[301.4, 222.7]])
    image = 50 - lobes(at, np.zeros(1), (431, 517)) + 0.3 * torch.randn(431, 517, generator=torch.Generator().manual_seed(1))
    bank = template_bank(reference(), PIXEL, 8.0, diameter=130, low_pass=20, psi_step=15)
    found = template_candidates(prepare_micrograph(image, PIXEL, 8.0), bank, 75, 50)
    assert found.score[0] > 0.8
    assert np.abs(found.xy[0] - at[0]).max() < 0.75


def test_micrographs_that_hold_no_image_are_refused():
    with pytest.raises(ItemError, match="constant"):
        prepare_micrograph(torch.full((40, 40), 7.0), 1.0, 4.0, "mic")
    with pytest.raises(ItemError, match="NaN"):
        prepare_micrograph(torch.full((40, 40), float("nan")), 1.0, 4.0, "mic")


def test_illumination_is_fitted_past_what_covers_it():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 120), torch.linspace(-1, 1, 160), indexing="ij")
    surface = 0.3 * x - 0.2 * y + 0.25 * x * x
    values = surface + 0.02 * torch.randn(120, 160, generator=torch.Generator().manual_seed(2))
    values[:, :30] -= 3
    assert (smooth_surface(values) - surface)[:, 30:].abs().max() < 0.03


def test_sums_within_a_window_are_sums():
    generator = torch.Generator().manual_seed(5)
    image, window = torch.randn(30, 41, generator=generator), torch.rand(7, 7, generator=generator)
    direct = torch.nn.functional.conv2d(image[None, None], window[None, None], padding=3)[0, 0]
    assert torch.allclose(sums_within(image, window), direct, atol=1e-4)
    assert [smooth_size(n) for n in (7, 97, 127, 360)] == [8, 100, 128, 360]


def test_peaks_one_a_particle():
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
    score = 5 - 0.1 * (x - 20.3) ** 2 - 0.1 * (y - 11.8) ** 2
    rows, columns = local_maxima(score, 0.0)
    assert refine_peaks(score, rows, columns)[0].tolist() == pytest.approx([20.3, 11.8], abs=1e-4)
    line = np.array([[0.0, 0], [4, 0], [8, 0], [30, 0]])
    # the best goes first: the middle one takes both neighbours with it
    assert sorted(keep_separate(line, np.array([1.0, 3, 2, 0.5]), 5.0)) == [1, 3]
    assert sorted(keep_separate(line, np.array([3.0, 1, 2, 0.5]), 5.0)) == [0, 2, 3]
    assert len(keep_separate(np.zeros((0, 2)), np.zeros(0), 5.0)) == 0


def test_cut_parts_noise_from_particles():
    random = np.random.default_rng(1)
    noise, particles = random.normal(0, 1, 3000), random.normal(5, 1.2, 600)
    cut = find_cut(np.concatenate([noise, particles]))
    assert (noise > cut.threshold).mean() < 0.01 and (particles > cut.threshold).mean() > 0.97
    assert cut.share == pytest.approx(600 / 3600, abs=0.02) and cut.separation > 3


def test_cut_is_not_taken_in_by_a_few_outliers():
    random = np.random.default_rng(2)
    noise, particles, dirt = random.normal(0, 1, 3000), random.normal(5, 0.8, 600), random.normal(40, 3, 25)
    cut = find_cut(np.concatenate([noise, particles, dirt]))
    assert (particles > cut.threshold).mean() > 0.95 and (noise > cut.threshold).mean() < 0.02


def test_cut_of_noise_alone_keeps_little():
    noise = np.random.default_rng(3).normal(0, 1, 4000)
    assert (noise > find_cut(noise).threshold).mean() < 0.02
    assert find_cut(noise[:5]).threshold == -np.inf


def test_apoferritin_against_the_experts(shared_data):
    """Real micrographs; recall 0.85 and precision 0.70 within 30 Å are asked for, particles cut by the edge included."""
    from verglas.io.coordinates import read_coordinates
    from verglas.io.picture import read_micrograph

    folder = shared_data / "apoferritin"
    experts = read_coordinates(folder / "picks_expert.star")
    names = sorted(path.name for path in folder.glob("*.png"))
    ready = [without_background(prepare_micrograph(torch.from_numpy(read_micrograph(folder / name)), 1.5, 8.0), 120) for name in names]
    profile = blob_reference(ready, 100, 140, 80, 20.0)
    bank = blob_bank(profile, ready[0].pixel_size, 100, 140, 20.0)
    found = [template_candidates(each, bank, 80, 30) for each in ready]
    threshold = find_cut(np.concatenate([each.score for each in found])).threshold
    truth = [experts[experts["micrograph_name"] == name][["coordinate_x", "coordinate_y"]].to_numpy() for name in names]
    result = total_score([match_picks(f.xy[f.score > threshold] * 1.5, t * 1.5, 30) for f, t in zip(found, truth)])
    assert result.recall > 0.85 and result.precision > 0.9


@pytest.mark.gpu
def test_card_and_cpu_agree(scenes):
    """Same peaks and templates; the last digits of scores differ by the order of sums."""
    found = []
    for device in ("cpu", "cuda"):
        bank = template_bank(reference().to(device), PIXEL, 8.0, diameter=140, low_pass=20, psi_step=10)
        ready = without_background(prepare_micrograph(scenes[0].image.to(device), PIXEL, 8.0), 105)
        found.append(template_candidates(ready, bank, 75, 50, CTF).subset(np.arange(30)))
    assert found[0].xy == pytest.approx(found[1].xy, abs=0.05)
    assert found[0].score == pytest.approx(found[1].score, abs=1e-3)
    assert np.array_equal(found[0].class_number, found[1].class_number)
