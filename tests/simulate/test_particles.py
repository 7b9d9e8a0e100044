"""Particle images made without movies, against their own truth."""

import numpy as np
import pytest
import torch

from verglas.simulate.particles import simulate_particles


def test_units_snr_and_seed() -> None:
    images, particles, truth = simulate_particles(60, box=32, pixel_size=5.6, snr=0.2, seed=3)
    again, _, _ = simulate_particles(60, box=32, pixel_size=5.6, snr=0.2, seed=3)
    assert torch.equal(images, again)
    assert images.shape == (60, 32, 32) and truth.shape == (32, 32, 32)
    assert abs(images.var().item() - 1.2) < 0.05
    assert particles.optics.pixel_size == 5.6 and len(particles) == 60
    # bright particles on a dark ground, in a map whose projections have the images' units
    assert truth[16].max() > 0 and truth[10:22, 10:22, 10:22].mean() > 5 * abs(truth[:4].mean())


def test_origin_shift_puts_the_particle_at_centre_minus_origin() -> None:
    """RELION's rule; the CTF at strong underfocus keeps the centre of mass of |contrast| where the particle is."""
    images, particles, _ = simulate_particles(12, box=48, pixel_size=4.0, snr=1e6, offset_sigma=12.0, defocus=(500.0, 501.0), seed=5)
    weight = images - images.amin(dim=(1, 2), keepdim=True)
    weight = (weight / weight.amax(dim=(1, 2), keepdim=True)) ** 4
    index = torch.arange(48.0)
    found = torch.stack([(weight.sum(1) * index).sum(1), (weight.sum(2) * index).sum(1)], 1) / weight.sum(dim=(1, 2))[:, None]
    expected = 24 - particles.origins() / 4.0
    assert np.corrcoef((found.numpy() - 24).ravel(), (expected - 24).ravel())[0, 1] > 0.9


def test_classes_come_with_their_maps() -> None:
    from verglas.simulate.stand_in import stand_in

    one, two = stand_in(seed=7), stand_in(seed=8)
    _, particles, maps = simulate_particles(10, box=32, pixel_size=5.6, specimen=[one, two])
    assert maps.shape == (2, 32, 32, 32)
    assert sorted(set(particles.column("class_number"))) == [1, 2]
    assert not torch.allclose(maps[0], maps[1], atol=float(maps.max()) * 0.01)


@pytest.mark.parametrize("coloured", [False, True])
def test_noise_spectrum(coloured: bool) -> None:
    images, _, _ = simulate_particles(200, box=32, pixel_size=4.0, snr=1e-9, coloured=coloured)
    power = torch.fft.rfft2(images).abs().square().mean(dim=0) / 32**2
    low, high = power[0, 1:3].mean().item(), power[0, 12:16].mean().item()
    assert (low / high > 1.5) if coloured else abs(low / high - 1) < 0.2
    assert abs(images.var().item() - 1) < 0.05
