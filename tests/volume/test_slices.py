"""The projector against a direct sum, its transpose, and RELION's projections."""

import subprocess

import numpy as np
import pytest
import torch

from blobs import blobs
from verglas.volume.fourier import irfft_centred, rfft_centred, shell_index
from verglas.volume.fsc import fsc
from verglas.volume.reconstruct import reconstruct
from verglas.volume.rotations import euler_to_matrix, random_rotations
from verglas.volume.slices import FourierSums, Projector, pixel_list


def direct_slice(volume: torch.Tensor, matrix: torch.Tensor, kx: torch.Tensor, ky: torch.Tensor) -> torch.Tensor:
    """Σ V(r) exp(−2πi k·r) at the points Aᵀ(kx, ky, 0): no grid in Fourier space at all."""
    box = volume.shape[-1]
    line = torch.arange(box, dtype=torch.float64) - box // 2
    points = (matrix[:2].T @ torch.stack([kx, ky]).double()) / box
    x, y, z = (torch.exp(-2j * torch.pi * points[axis, :, None] * line) for axis in range(3))
    return torch.einsum("zyx,kx,ky,kz->k", volume.to(torch.complex128), x, y, z)


@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize("padding,tolerance", [(1, 0.25), (2, 0.05)])
def test_slices_equal_the_direct_sum(box: int, padding: int, tolerance: float) -> None:
    volume = blobs(box)
    pixels = pixel_list(box, box // 2 - 1, min_shell=0, multiple=16)
    matrices = random_rotations(3, torch.Generator().manual_seed(1))
    found = Projector(volume[None], box // 2 - 1, padding).project(matrices, pixels)
    for matrix, slice_ in zip(matrices, found):
        exact = direct_slice(volume, matrix, pixels.kx, pixels.ky)
        for shell in range(2, box // 2 - 1):  # grid points near the origin lie too regularly for sinc² to be undone
            ring = (pixels.shell == shell) & (pixels.valid > 0)
            assert (slice_ - exact)[ring].norm() < tolerance * exact[ring].norm() + 1e-3 * exact.abs().max() / box


def test_no_dip_at_high_resolution() -> None:
    """White noise inside a sphere has no weak shell to hide in: the correlation stays above 0.999 at every shell with pad 2."""
    box = 32
    line = torch.arange(box) - box // 2
    ball = line[:, None, None] ** 2 + line[:, None] ** 2 + line**2 < (0.375 * box) ** 2
    volume = torch.randn(box, box, box, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * ball
    pixels = pixel_list(box, box // 2 - 1)
    matrix = random_rotations(1, torch.Generator().manual_seed(3))
    found = Projector(volume[None], box // 2 - 1).project(matrix, pixels)[0]
    exact = direct_slice(volume, matrix[0], pixels.kx, pixels.ky)
    for shell in range(1, box // 2):
        ring = pixels.shell == shell
        correlation = (found[ring].conj() * exact[ring]).sum().real / (found[ring].norm() * exact[ring].norm())
        assert correlation > 0.999, shell


@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize("padding,good,last_but_one,last", [(2, 0.995, 0.99, 0.96), (1, 0.987, 0.985, 0.96)])
def test_no_dip_at_high_resolution_of_a_map_from_its_slices(box: int, padding: int, good: float, last_but_one: float, last: float) -> None:
    """White noise in a ball, as above, from 500 of its projections: the last shells alone lack neighbours beyond them.

    It is as strong at the rim as in the middle: what interpolation takes there is given back.
    """
    line, shell = torch.arange(box) - box // 2, (box - 1) // 2
    radius2 = line[:, None, None] ** 2 + line[:, None] ** 2 + line**2
    volume = torch.randn(box, box, box, generator=torch.Generator().manual_seed(0)) * (radius2 < (0.375 * box) ** 2)
    pixels, matrices = pixel_list(box, shell, min_shell=0), random_rotations(500, torch.Generator().manual_seed(10)).float()
    sums = FourierSums(box, 3, shell, padding)
    sums.add(matrices, pixels, Projector(volume[None], shell).project(matrices, pixels), torch.ones(500, len(pixels)))
    [found] = reconstruct(sums)
    curve = fsc(found, volume)
    assert (curve[1 : shell - 1] > good).all() and curve[shell - 1] > last_but_one and curve[shell] > last, curve
    summed = irfft_centred(rfft_centred(volume, 3).masked_fill(shell_index(box, 3) > shell, 0.0), box, 3)
    parts = [radius2 < (0.2 * box) ** 2, (radius2 > (0.3 * box) ** 2) & (radius2 < (0.375 * box) ** 2)]
    middle, rim = (float((found * summed)[part].sum() / summed[part].square().sum()) for part in parts)
    assert abs(rim / middle - 1) < 0.03 and abs(middle - 1) < 0.03, (rim, middle)


@pytest.mark.parametrize(
    "dims,box,padding,max_shell", [(3, 16, 2, 7), (3, 15, 2, 4), (3, 14, 1, 6), (3, 15, 1, 7), (2, 15, 1, 7), (2, 16, 2, 7), (2, 17, 3, 5)]
)
def test_backprojection_is_the_exact_transpose(dims: int, box: int, padding: int, max_shell: int) -> None:
    generator = torch.Generator().manual_seed(dims)
    volume = torch.randn(*[box] * dims, generator=generator, dtype=torch.float64)
    pixels = pixel_list(box, max_shell, min_shell=0)
    angles = torch.rand(5, 3, generator=generator, dtype=torch.float64) * 180
    matrices = euler_to_matrix(angles * torch.tensor([dims - 2.0, dims - 2.0, 1.0]))
    values = torch.randn(5, len(pixels), generator=generator, dtype=torch.complex128)
    sums = FourierSums(box, dims, max_shell, padding, dtype=torch.float64)
    sums.add(matrices, pixels, values)
    forward = (values.conj() * Projector(volume[None], max_shell, padding).project(matrices, pixels)).sum().real
    backward = (volume * sums.adjoint()).sum()
    assert abs(forward - backward) < 1e-9 * abs(forward)


def test_image_of_unpacked_slice_is_the_projection_along_z() -> None:
    volume = blobs(32)
    pixels = pixel_list(32, 15, min_shell=0, multiple=64)
    slice_ = Projector(volume[None], 15).project(torch.eye(3, dtype=torch.float64)[None], pixels)[0]
    image = irfft_centred(pixels.unpack(slice_), 32)
    assert (image - volume.sum(0)).abs().max() < 0.12 * volume.sum(0).max()  # the grid-point case: sinc² of z is not undone
    assert torch.corrcoef(torch.stack([image.flatten(), volume.sum(0).flatten()]))[0, 1] > 0.999


def test_pixels_outside_the_box_are_refused() -> None:
    with pytest.raises(ValueError, match="box of 16"):
        pixel_list(16, 8)


@pytest.mark.relion
def test_relion_project_agrees(tmp_path) -> None:
    from verglas.io.mrc import read_image, write_map

    box, pixel_size = 32, 2.5
    volume = blobs(box, seed=4, dtype=torch.float32)
    write_map(tmp_path / "map.mrc", volume.numpy(), pixel_size)
    command = "relion_project --i map.mrc --o p.mrc --rot 30 --tilt 50 --psi 70 --angpix 2.5"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    theirs = torch.as_tensor(np.asarray(read_image(tmp_path / "p.mrc")))
    pixels = pixel_list(box, box // 2 - 1)
    ours = Projector(volume[None], box // 2 - 1).project(euler_to_matrix(torch.tensor([[30.0, 50.0, 70.0]])), pixels)[0]
    packed = pixels.pack(rfft_centred(theirs))
    assert (packed - ours).norm() < 0.02 * packed.norm()
