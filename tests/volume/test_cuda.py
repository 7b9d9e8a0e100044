import pytest
import torch

from verglas.optics.aberrations import aberration_phase
from verglas.optics.ctf import ctf
from verglas.volume.fourier import fourier_crop, fourier_pad, fourier_shift, frequency_grid, packed_pixels, radial_average
from verglas.volume.fsc import fsc, phase_randomise
from verglas.volume.neighbours import local_neighbours
from verglas.volume.rotations import euler_to_matrix, matrix_to_euler, random_rotations
from verglas.volume.sampling import asymmetric_unit, rotation_grid
from verglas.volume.symmetry import symmetrise_map, symmetry_misfit

pytestmark = pytest.mark.gpu


def on_both(function, *values):
    there = function(*(value.cuda() for value in values))
    assert there.is_cuda
    return function(*values), there.cpu()


def test_transforms_and_curves_are_those_of_the_cpu():
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 24, 24, 24, generator=generator)
    for function in (
        lambda a: fourier_crop(a, 15, 3),
        lambda a: fourier_pad(a, 32, 3),
        lambda a: fourier_shift(a, torch.tensor([1.5, -2.0, 0.3]), 3),
        lambda a: radial_average(torch.fft.rfftn(a).abs(), 24, 3),
        lambda a: symmetrise_map(a, "T"),
    ):
        here, there = on_both(function, first)
        assert torch.allclose(here, there, atol=1e-4)
    here, there = on_both(fsc, first, second)
    assert torch.allclose(here, there, atol=1e-5)
    assert symmetry_misfit(first.cuda(), "D2") == pytest.approx(symmetry_misfit(first, "D2"), abs=1e-4)
    assert phase_randomise(first.cuda(), 5, torch.Generator("cuda").manual_seed(1)).is_cuda


def test_ctf_of_packed_pixels():
    flat = packed_pixels(64).flat
    kx, ky = (k.flatten()[flat] for k in frequency_grid(64, 1.5))
    values = {"defocus_v": 12000.0, "defocus_angle": 20.0, "voltage": 300.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}
    defocus, mag = torch.linspace(9000, 22000, 7), torch.eye(2).expand(7, 2, 2) * 1.01
    here, there = on_both(lambda u, m, x, y: ctf(x, y, defocus_u=u, mag=m, even_zernike=torch.ones(4), **values), defocus, mag, kx, ky)
    assert torch.allclose(here, there, atol=1e-3)
    tilt = {"voltage": 300.0, "spherical_aberration": 2.7, "beam_tilt": torch.tensor([1.0, 0.5])}
    here, there = on_both(lambda x, y: aberration_phase(x, y, odd_zernike=torch.ones(2), **tilt), kx, ky)
    assert torch.allclose(here, there, atol=1e-4)


def test_grids_and_neighbours():
    grids = [rotation_grid(2, "D2", device=device) for device in ("cpu", "cuda")]
    all_of_it = torch.arange(len(grids[0]))
    assert torch.allclose(grids[0].angles_of(all_of_it), grids[1].angles_of(all_of_it.cuda()).cpu())
    pick = torch.tensor([0, 5, 77])
    assert torch.allclose(grids[0].children(pick), grids[1].children(pick.cuda()).cpu())
    poses = random_rotations(30, torch.Generator().manual_seed(2))
    found = [local_neighbours(grid, poses, 20.0) for grid in grids]
    pairs = [set(zip(f.particle.tolist(), f.pose.tolist())) for f in found]
    assert found[1].pose.is_cuda and len(pairs[0] ^ pairs[1]) <= 2
    here, there = on_both(lambda p: asymmetric_unit(euler_to_matrix(matrix_to_euler(p)), "O"), poses)
    assert torch.allclose(here, there, atol=1e-6)
