import math

import pytest
import torch

from verglas.optics.dose import accumulated_exposure, critical_exposure, damage, dose_weights


def test_published_critical_exposures():
    k = torch.tensor([1 / 20, 1 / 10, 1 / 3], dtype=torch.float64)
    expected = [0.245 * f**-1.665 + 2.81 for f in k.tolist()]
    assert critical_exposure(k).tolist() == pytest.approx(expected)
    assert critical_exposure(k)[2] == pytest.approx(4.34, abs=0.01)
    assert (critical_exposure(k, 200.0) / critical_exposure(k)).tolist() == pytest.approx([0.8] * 3)
    assert critical_exposure(torch.tensor([0.0])).isinf().all()


def test_optimal_exposure_of_the_papers_filter():
    # signal grows with the sum of amplitudes, noise with the root of the exposure: best at 2.51284 Ne
    k = torch.tensor([0.1], dtype=torch.float64)
    ne = float(critical_exposure(k))
    doses = torch.linspace(0.5, 6, 2000, dtype=torch.float64) * ne
    signal_to_noise = (1 - torch.exp(-doses / (2 * ne))) / doses.sqrt()
    assert float(doses[signal_to_noise.argmax()]) / ne == pytest.approx(2.51284, abs=0.01)
    assert damage(k, torch.tensor([2 * ne], dtype=torch.float64)).item() == pytest.approx(math.exp(-1))


def test_weights_keep_white_noise_and_favour_early_frames():
    k = torch.rand(16, 9) * 0.4
    weights = dose_weights(k, accumulated_exposure(20, 2.0))
    assert weights.shape == (20, 16, 9)
    assert torch.allclose(weights.square().sum(dim=0), torch.ones(16, 9), atol=1e-5)
    assert (weights.diff(dim=0) <= 0).all()
    ratio = weights[3] / weights[0]
    assert torch.allclose(ratio, torch.exp(-6.0 / (2 * critical_exposure(k))), atol=1e-5)
    at_zero = dose_weights(torch.zeros(1), accumulated_exposure(4, 1.5))
    assert torch.allclose(at_zero, torch.full((4, 1), 0.5))


def test_exposure_counts_from_the_end_of_the_first_frame():
    assert accumulated_exposure(3, 1.5, 4.0).tolist() == [5.5, 7.0, 8.5]
    far = dose_weights(torch.tensor([0.5]), accumulated_exposure(5, 1e5))
    assert torch.isfinite(far).all() and far.square().sum() == pytest.approx(1, abs=1e-5)
