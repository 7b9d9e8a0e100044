"""Maps from known poses: against the truth, RELION's reconstruction, and under symmetry."""

import subprocess

import pytest
import torch

from blobs import blobs
from verglas.volume.fourier import rfft_centred, shell_sums
from verglas.volume.reconstruct import add_symmetric, reconstruct, slice_operators, symmetrise, weight_of_shells
from verglas.volume.rotations import random_rotations
from verglas.volume.slices import FourierSums, Projector, pixel_list
from verglas.volume.symmetry import symmetry_operators


def shell_correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    box = a.shape[-1]
    first, second = rfft_centred(a, a.dim()), rfft_centred(b, b.dim())
    cross = shell_sums((first.conj() * second).real, box, a.dim())
    power = [shell_sums(x.abs() ** 2, box, a.dim()) for x in (first, second)]
    return cross / (power[0] * power[1]).sqrt()


def test_true_poses_give_the_map_back() -> None:
    box = 32
    volume = blobs(box, dtype=torch.float32)
    pixels = pixel_list(box, 15, min_shell=0)
    matrices = random_rotations(600, torch.Generator().manual_seed(1)).float()
    slices = Projector(volume[None], 15).project(matrices, pixels)
    sums = FourierSums(box, 3, 15)
    sums.add(matrices, pixels, slices, torch.ones(len(slices), len(pixels)))
    [found] = reconstruct(sums)
    assert (shell_correlation(found, volume)[:10] > 0.998).all()  # beyond, the blobs hold a millionth of their power
    found, volume = found - found.mean(), volume - volume.mean()
    assert (found - volume).norm() < 0.04 * volume.norm()


def test_prior_shrinks_each_shell_by_the_wiener_factor() -> None:
    box, pixels = 24, pixel_list(24, 11, min_shell=0)
    volume = blobs(box, dtype=torch.float32)
    matrices = random_rotations(400, torch.Generator().manual_seed(1)).float()
    sums = FourierSums(box, 3, 11)
    sums.add(matrices, pixels, Projector(volume[None], 11).project(matrices, pixels), torch.ones(400, len(pixels)))
    [plain], [shrunk] = reconstruct(sums), reconstruct(sums, 1 / weight_of_shells(sums))
    power = [shell_sums(rfft_centred(x, 3).abs() ** 2, box, 3)[2:9] for x in (plain, shrunk)]
    assert ((power[1] / power[0]).sqrt() - 0.5).abs().max() < 0.05
    assert reconstruct(sums, torch.zeros(12)).abs().max() == 0


@pytest.mark.parametrize("group,copies", [("C1", 1), ("C2", 1), ("D2", 1), ("O", 1), ("C3", 3), ("D3", 3), ("D7", 7), ("I2", 5), ("T", 12)])
def test_symmetry_is_that_of_the_group_at_the_least_cost(group: str, copies: int) -> None:
    if group == "T":  # RELION's T has its 3-fold on z: of its operators few permute the axes
        copies = len(slice_operators(group))
    assert len(slice_operators(group)) == copies
    box = 16
    pixels = pixel_list(box, 6)
    matrix = random_rotations(1, torch.Generator().manual_seed(5))
    values = torch.randn(1, len(pixels), dtype=torch.complex128, generator=torch.Generator().manual_seed(6))
    weights = torch.rand(1, len(pixels), dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    quick = FourierSums(box, 3, 6, dtype=torch.float64)
    add_symmetric(quick, group, matrix, pixels, values, weights)
    plain = FourierSums(box, 3, 6, dtype=torch.float64)
    for operator in symmetry_operators(group):
        plain.add(matrix @ operator.T, pixels, values, weights)
    symmetrise(quick, group)
    assert (quick.numerators() - plain.numerators()).abs().max() < 1e-9
    assert (quick.weights() - plain.weights()).abs().max() < 1e-9


def test_2d_averages_turn_in_the_plane() -> None:
    from verglas.volume.rotations import euler_to_matrix

    box = 32
    image = blobs(box, dtype=torch.float32).sum(0)
    pixels = pixel_list(box, 15, min_shell=0)
    matrices = euler_to_matrix(torch.tensor([[0.0, 0.0, 4.0 * i + 1.3] for i in range(90)]))
    sums = FourierSums(box, 2, 15)
    sums.add(matrices, pixels, Projector(image[None], 15).project(matrices, pixels), torch.ones(90, len(pixels)))
    [found], image = reconstruct(sums), image - image.mean()
    found -= found.mean()
    assert (found - image).norm() < 0.04 * image.norm()


@pytest.mark.relion
def test_relion_reconstruct_agrees(tmp_path) -> None:
    """The same noisy, shifted, CTF-modulated images and true poses: the maps correlate above 0.95 as far as they are good."""
    from verglas.io.mrc import read_map, write_stack
    from verglas.optics.ctf import ctf
    from verglas.particles import ctf_parameters, write_particles
    from verglas.simulate.particles import simulate_particles
    from verglas.volume.fourier import shift_phases
    from verglas.volume.rotations import euler_to_matrix

    images, particles, truth = simulate_particles(200, 32, 4.0, snr=0.5, seed=2)
    write_stack(tmp_path / "images.mrcs", images.numpy(), 4.0)
    write_particles(tmp_path / "p.star", particles)
    command = "relion_reconstruct --i p.star --o r.mrc --ctf --sym C1 --j 1"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    theirs = torch.as_tensor(read_map(tmp_path / "r.mrc")[0])
    pixels = pixel_list(32, 15, min_shell=0)
    kx, ky = pixels.kx / (32 * 4.0), pixels.ky / (32 * 4.0)
    modulation = ctf(kx, ky, **ctf_parameters(particles))
    spectra = pixels.pack(rfft_centred(images)) * shift_phases((kx, ky), torch.as_tensor(particles.origins()).float())
    matrices = euler_to_matrix(torch.as_tensor(particles.angles())).float()
    sums = FourierSums(32, 3, 15)
    sums.add(matrices, pixels, spectra * modulation, modulation**2)
    [ours] = reconstruct(sums)
    against_relion, against_truth = shell_correlation(ours, theirs), shell_correlation(ours, truth)
    reached = int((against_truth[1:] > 0.9).long().cumprod(0).sum())
    assert reached >= 8
    assert (against_relion[1:reached] > 0.95).all(), against_relion
    assert (against_truth[1:reached] > shell_correlation(theirs, truth)[1:reached] - 0.01).all()
    truth = truth - truth.mean()  # the mean hangs on a handful of CTF values near 0.1
    scale = (ours * truth).sum() / (theirs * truth).sum()
    assert 0.9 < scale < 1.1
