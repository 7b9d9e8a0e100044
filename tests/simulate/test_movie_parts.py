"""Detector, motion and ice, each against what is known of it."""

import numpy as np
import pytest
import torch
from scipy import stats

from verglas.optics.microscope import interaction_constant
from verglas.simulate.detector import EER_FRAMES, PoissonTable, draw_detector, electron_events, mtf
from verglas.simulate.ice import TILE, Ice, phase_spectrum
from verglas.simulate.motion import draw_motion, particle_paths
from verglas.volume.fourier import frequency_grid


@pytest.mark.parametrize("rate", [0.7, 2.94, 5.3])
def test_counts_follow_poissons_law(rate: float) -> None:
    random = np.random.default_rng(1)
    counts = PoissonTable(0.5, 6.0).draw(np.full(400_000, rate, np.float32), random)
    top = int(rate + 5 * rate**0.5)
    seen = np.bincount(counts, minlength=top + 2)
    seen = np.append(seen[:top], seen[top:].sum())
    expected = np.append(stats.poisson.pmf(np.arange(top), rate), stats.poisson.sf(top - 1, rate)) * len(counts)
    assert stats.chisquare(seen, expected).pvalue > 1e-4
    assert counts.mean() == pytest.approx(rate, abs=4 * (rate / len(counts)) ** 0.5)


def test_rates_between_the_table_s_keep_their_mean() -> None:
    table = PoissonTable(0.5, 6.0)
    rate = np.repeat(np.linspace(1.0, 5.0, 8, dtype=np.float32) + np.float32(table.step / 3), 200_000)
    counts = table.draw(rate, np.random.default_rng(2)).reshape(8, -1).mean(axis=1)
    assert counts == pytest.approx(rate.reshape(8, -1)[:, 0], abs=0.02)


def test_detector() -> None:
    detector = draw_detector((300, 200), 0.06, 20, 25, np.random.default_rng(3))
    alive = detector.gain[detector.gain > 0]
    assert alive.mean() == pytest.approx(1, abs=0.01) and alive.std() == pytest.approx(0.06, abs=0.01)
    assert len(detector.dead) == 25 and len(detector.hot) == 20 and not set(detector.dead) & set(detector.hot)
    assert mtf(torch.tensor([0.0, 0.5]), 0.6).tolist() == pytest.approx([1.0, 0.6])


def test_electron_events_sum_to_the_frame() -> None:
    frame = np.random.default_rng(0).poisson(3.0, (40, 50)).astype(np.uint8)
    frame[3, 4] = 60
    parts = np.stack(list(electron_events(frame, np.random.default_rng(1))))
    assert parts.shape == (EER_FRAMES, 40, 50) and parts.max() == 1
    assert np.array_equal(parts.sum(axis=0), np.minimum(frame, EER_FRAMES))
    assert parts.sum(axis=(1, 2)).std() < 3 * np.sqrt(frame.sum() / EER_FRAMES)


@pytest.mark.parametrize("seed", range(5))
def test_motion_is_large_smooth_and_starts_at_zero(seed: int) -> None:
    motion = draw_motion(20, (1536, 1536), 20.0, 4.0, np.random.default_rng(seed))
    assert 15 <= np.linalg.norm(motion.drift[-1]) <= 25.01
    grid = np.stack(np.meshgrid(np.linspace(0, 1536, 33), np.linspace(0, 1536, 33))).reshape(2, -1)
    local = motion.local(*grid)
    assert not local[0].any() and not motion.drift[0].any()
    assert 3 <= np.linalg.norm(local[-1], axis=1).max() <= 4.5
    assert np.abs(local.mean(axis=1)).max() < 0.6
    steps = np.diff(motion.total(*grid), axis=0)
    assert np.linalg.norm(np.diff(steps, axis=0), axis=2).max() < 2.5
    paths = particle_paths(20, 500, 0.4, np.random.default_rng(seed))
    assert not paths[0].any() and np.sqrt((paths[-1] ** 2).sum(axis=1).mean()) == pytest.approx(0.4, abs=0.04)


def test_ice_has_its_spectrum_moves_and_is_seamless() -> None:
    kx, ky = frequency_grid(TILE, 1.4, 2)
    k = torch.hypot(kx, ky)
    power = phase_spectrum(k, 250.0, interaction_constant(200.0)) * (k < 0.25)
    ice = Ice((900, 900), 1.4, power.sqrt(), torch.ones_like(k), np.random.default_rng(1))
    still = np.zeros((len(ice.centres), 2))
    first, shifted = ice.frame(still), ice.frame(still + np.array([7.0, -4.0]))
    # variance = ∫ PSD d²k
    expected = 2 * float(power[:, 1:].sum() + power[:, 0].sum() / 2) / (TILE * 1.4) ** 2
    assert float(first.var()) == pytest.approx(expected, rel=0.1)
    moved = torch.roll(first, (-4, 7), (0, 1))
    inner = slice(40, -40)
    same = torch.corrcoef(torch.stack([moved[inner, inner].flatten(), shifted[inner, inner].flatten()]))[0, 1]
    assert same > 0.97
    assert torch.corrcoef(torch.stack([first.flatten(), shifted.flatten()]))[0, 1] < 0.8
    rows = first.var(dim=1)
    assert rows.max() / rows.mean() < 2 and rows.min() / rows.mean() > 0.4


def test_ice_without_memory_is_new_in_each_frame() -> None:
    k = torch.ones(TILE, TILE // 2 + 1)
    ice = Ice((256, 256), 1.4, k, 0 * k, np.random.default_rng(1))
    still = np.zeros((len(ice.centres), 2))
    assert abs(torch.corrcoef(torch.stack([ice.frame(still).flatten(), ice.frame(still).flatten()]))[0, 1]) < 0.05
