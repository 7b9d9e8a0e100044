"""What the engine makes of images before it compares them."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from refine.sets import particles, seen
from verglas.compute.native import native_library
from verglas.errors import InputError
from verglas.optics.aberrations import aberration_phase
from verglas.particles import ArrayImages, write_particles
from verglas.refine import observations, observations_native
from verglas.refine.assignments import from_particles
from verglas.refine.observations import (
    check_mask_diameter,
    keep_times,
    masked_and_whole,
    power_by_shell,
    rolled,
    shift_factors,
    unmagnified,
    unusable,
)
from verglas.volume.fourier import fourier_shift, frequency_grid, irfft_centred, rfft_centred
from verglas.volume.reconstruct import reconstruct
from verglas.volume.rotations import euler_to_matrix
from verglas.volume.slices import FourierSums, Projector, pixel_list

BOX, PIXEL = 32, 6.0


def test_images_are_centred_masked_and_whitened() -> None:
    """The particle stands in the middle after the whole-pixel move, with the rest left to the exact origins."""
    images, table, truth = particles(40, BOX, PIXEL, 50.0)
    view = seen(images, table)
    own = from_particles(table, len(view.micrographs))
    pixels = pixel_list(BOX, 10, multiple=64)
    sigma2 = torch.full((1, view.shells), 4.0, dtype=torch.float64)
    batch = view.batch(torch.arange(40), own, sigma2, pixels, exact_origins=True)
    slices = Projector(truth[None], 10).project(own.matrices, pixels)
    expected = batch.ctf * slices
    assert ((batch.unmasked - expected).norm(dim=1) / expected.norm(dim=1)).median() < 0.15
    assert batch.masked.abs().square().sum() < batch.unmasked.abs().square().sum()
    assert not batch.ctf[:, pixels.count :].any() and not batch.masked[:, pixels.count :].any()
    assert torch.allclose(
        view.batch(torch.arange(40), own, 4 * sigma2, pixels).masked * 2, view.batch(torch.arange(40), own, sigma2, pixels).masked
    )


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
compiled = pytest.mark.skipif(native_library(observations_native.SOURCE) is None, reason="no C++ compiler")


@pytest.mark.parametrize("kept", [torch.float16, torch.float32])
@pytest.mark.parametrize("box", [16, 33])
@pytest.mark.parametrize("device", DEVICES)
def test_images_are_made_ready_in_one_pass(device: str, box: int, kept: torch.dtype) -> None:
    """Over their norm, moved around the edges by any number of pixels, with the mask and without."""
    draw = torch.Generator().manual_seed(box)
    images, mask = torch.randn(7, box, box, generator=draw).to(kept), torch.rand(box, box, generator=draw)
    norm, shifts = torch.rand(7, generator=draw) + 0.5, torch.randint(-3 * box, 3 * box, (7, 2), generator=draw)
    moved = [np.roll(image.float().numpy() / float(n), (int(y), int(x)), (0, 1)) for image, n, (x, y) in zip(images, norm, shifts)]
    whole = torch.tensor(np.stack(moved))
    found = masked_and_whole(*(each.to(device) for each in (images, norm, shifts, mask))).cpu()
    assert torch.allclose(found, torch.stack([whole * mask, whole]), rtol=1e-6)
    assert masked_and_whole(*(each[:0].to(device) for each in (images, norm, shifts)), mask.to(device)).shape == (2, 0, box, box)


@pytest.mark.parametrize("tilt", [0.0, 60.0])
@pytest.mark.parametrize("device", DEVICES)
def test_images_are_transformed_a_few_at_a_time(device: str, tilt: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images, four at a time, give what they give at once; none give nothing."""
    images, table, _ = particles(10, BOX, PIXEL, 1.0)
    view = seen(images, table.with_optics(beam_tilt_x=tilt, beam_tilt_y=0.0), device=device)
    own = from_particles(table, len(view.micrographs), device=device)
    pixels = pixel_list(BOX, 10, device=device)
    given = own, torch.ones(1, view.shells, dtype=torch.float64, device=device), pixels
    whole = view.batch(torch.arange(10, device=device), *given)
    monkeypatch.setitem(observations._TRANSFORMED_AT_ONCE, device, 4 * BOX**2)
    parts = view.batch(torch.arange(10, device=device), *given)
    for name in ("masked", "unmasked", "power"):
        one, other = getattr(whole, name), getattr(parts, name)
        assert one.abs().sum() > 0 and torch.allclose(one, other, rtol=1e-5, atol=1e-5)
    assert len(view.batch(torch.arange(0, device=device), *given).power) == 0


@pytest.mark.gpu
def test_a_batch_takes_the_memory_that_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`expectation._images_at_once` counts 48 bytes a pixel that is compared, and what is read; whole transforms are in its reserve."""
    n, box, at_once = 256, 256, 1 << 20
    images, table, _ = particles(n, box, 1.0, 1.0)
    view = seen(images, table, device="cuda")
    own, pixels = from_particles(table, len(view.micrographs), device="cuda"), pixel_list(box, 100, device="cuda")
    given = own, torch.ones(1, view.shells, dtype=torch.float64, device="cuda"), pixels
    rows = torch.arange(n, device="cuda")
    monkeypatch.setitem(observations._TRANSFORMED_AT_ONCE, "cuda", at_once)
    view.batch(rows[:16], *given)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    view.batch(rows, *given)
    assert torch.cuda.max_memory_allocated() - before < n * (4 * box**2 + 48 * len(pixels)) + 64 * at_once


@pytest.mark.parametrize("box", [16, 33])
@pytest.mark.parametrize("device", DEVICES)
def test_power_is_summed_by_shell(device: str, box: int) -> None:
    pixels = pixel_list(box, (box - 1) // 2, device=device)
    shells = (box - 1) // 2 + 1
    starts = torch.searchsorted(pixels.shell, torch.arange(shells + 1, device=device))
    transforms = torch.fft.rfft2(torch.randn(5, box, box, generator=torch.Generator().manual_seed(box)).to(device)).flatten(1)
    found = power_by_shell(transforms, pixels.index, starts)
    power = transforms[:, pixels.index].abs().double().square().cpu()
    expected = torch.stack([torch.bincount(pixels.shell.cpu(), of_image, shells) for of_image in power])
    assert found.dtype == torch.float64 and torch.allclose(found.cpu(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
@pytest.mark.parametrize("box", [16, 33])
@pytest.mark.parametrize("device", DEVICES)
def test_pixels_are_kept_times_a_factor(device: str, box: int, kind: torch.dtype) -> None:
    draw, pixels = torch.Generator().manual_seed(box), pixel_list(box, 6, multiple=64)
    transforms = torch.randn(5, box * (box // 2 + 1), generator=draw, dtype=torch.complex64)
    factor = torch.randn(5, len(pixels), generator=draw, dtype=kind)
    out = torch.empty(5, len(pixels), dtype=torch.complex64, device=device)
    keep_times(*(each.to(device) for each in (transforms, pixels.index, factor)), out)
    expected = transforms.numpy()[:, pixels.index.numpy()] * factor.numpy()
    assert np.allclose(out.cpu().numpy(), expected, rtol=1e-5, atol=1e-6)


@compiled
@pytest.mark.parametrize("kept", [torch.float16, torch.float32])
@pytest.mark.parametrize("box", [16, 33])
def test_compiled_code_does_what_the_plain_code_does(box: int, kept: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, pixels = torch.Generator().manual_seed(box), pixel_list(box, (box - 1) // 2, multiple=64)
    images, mask = torch.randn(7, box, box, generator=draw).to(kept), torch.rand(box, box, generator=draw)
    norm, shifts = torch.rand(7, generator=draw) + 0.5, torch.randint(-3 * box, 3 * box, (7, 2), generator=draw)
    starts = torch.searchsorted(pixels.shell[: pixels.count], torch.arange((box - 1) // 2 + 2))
    transforms = torch.fft.rfft2(images.float()).flatten(1)
    factors = [torch.randn(7, len(pixels), generator=draw, dtype=kind) for kind in (torch.float32, torch.complex64)]

    def done() -> list[torch.Tensor]:
        kept_ones = torch.empty(2, 7, len(pixels), dtype=torch.complex64)
        for factor, out in zip(factors, kept_ones):
            keep_times(transforms, pixels.index, factor, out)
        return [masked_and_whole(images, norm, shifts, mask), power_by_shell(transforms, pixels.index, starts), *kept_ones]

    ours = done()
    monkeypatch.setenv("VERGLAS_NATIVE", "0")
    for mine, plain in zip(ours, done(), strict=True):
        assert mine.dtype == plain.dtype and plain.abs().sum() > 0
        assert torch.allclose(mine, plain, rtol=1e-6, atol=1e-6 * float(plain.abs().max()))


@compiled
@pytest.mark.parametrize("exact_origins", [False, True])
@pytest.mark.parametrize("box", [BOX, BOX + 1])
def test_a_batch_is_that_of_the_plain_code(box: int, exact_origins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same bits with any number of threads, and however the images are parted."""
    images, table, _ = particles(10, box, PIXEL, 1.0)
    view, pixels = seen(images, table), pixel_list(box, 10, multiple=64)
    own = from_particles(table, len(view.micrographs))
    own.norm[:] = torch.linspace(0.8, 1.3, 10)
    sigma2 = torch.linspace(1, 3, view.shells, dtype=torch.float64)[None]

    def made(threads: int, parts: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        batches = [view.batch(rows, own, sigma2, pixels, exact_origins=exact_origins) for rows in torch.arange(10).split(parts)]
        return [torch.cat([getattr(batch, name) for batch in batches]) for name in ("masked", "unmasked", "ctf", "power")]

    before = torch.get_num_threads()
    try:
        ours = made(1, 10)
        for threads, parts, at_once in ((2, 10, 10), (5, 3, 10), (1, 1, 10), (2, 10, 4)):
            monkeypatch.setitem(observations._TRANSFORMED_AT_ONCE, "cpu", at_once * box**2)
            assert all(torch.equal(one, other) for one, other in zip(ours, made(threads, parts), strict=True))
    finally:
        torch.set_num_threads(before)
    monkeypatch.setenv("VERGLAS_NATIVE", "0")
    for mine, plain in zip(ours, made(before, 10), strict=True):
        assert plain.abs().sum() > 0 and torch.allclose(mine, plain, rtol=1e-5, atol=1e-6 * float(plain.abs().max()))


@pytest.mark.parametrize("name", ["ctf_bfactor", "ctf_scale"])
def test_a_factor_of_the_ctf_is_left_out_only_where_it_is_1(name: str) -> None:
    images, table, _ = particles(10, BOX, PIXEL, 1.0)
    pixels, found = pixel_list(BOX, 10), []
    own = from_particles(table, len(seen(images, table).micrographs))
    for values in (None, [0.0, *[5000.0] * 9] if name == "ctf_bfactor" else [1.0, *[0.5] * 9]):
        view = seen(images, table.with_columns(**{"ctf_bfactor": None, "ctf_scale": None, name: values}))
        found.append(view.batch(torch.arange(10), own, torch.ones(1, view.shells, dtype=torch.float64), pixels).ctf)
    assert torch.equal(found[0][0], found[1][0])
    assert (found[0][1:].abs() > 1.1 * found[1][1:].abs()).float().mean() > 0.5


def test_rolling_is_shifting_by_whole_pixels() -> None:
    images = torch.randn(3, 15, 15, generator=torch.Generator().manual_seed(1))
    shifts = torch.tensor([[2, -3], [0, 5], [-7, 1]])
    assert torch.allclose(rolled(images, shifts), fourier_shift(images, shifts.float()), atol=1e-5)
    pixels = pixel_list(15, 7)
    assert torch.allclose(
        pixels.pack(rfft_centred(rolled(images, shifts))),
        pixels.pack(rfft_centred(images)) * shift_factors(pixels, shifts.float()),
        atol=1e-4,
    )


def test_beam_tilt_is_undone() -> None:
    images, table, _ = particles(10, BOX, PIXEL, 1.0)
    kx, ky = frequency_grid(BOX, PIXEL)
    tilt = {"beam_tilt_x": 60.0, "beam_tilt_y": -30.0}  # mrad: much, as these pixels are large
    phase = aberration_phase(kx, ky, voltage=200.0, spherical_aberration=2.7, beam_tilt=torch.tensor(list(tilt.values())))
    tilted = irfft_centred(rfft_centred(images) * phase, BOX)
    pixels, rows = pixel_list(BOX, 12), torch.arange(10)
    batches = []
    for stack, particles_ in ((images, table), (tilted, table.with_optics(**tilt))):
        view = seen(stack, particles_)
        own = from_particles(table.with_columns(origin_x=0.0, origin_y=0.0), len(view.micrographs))
        batches.append(view.batch(rows, own, torch.ones(1, view.shells, dtype=torch.float64), pixels).unmasked)
    assert (batches[0] - batches[1]).abs().max() < 1e-3 * batches[0].abs().max()
    assert (pixels.pack(rfft_centred(tilted)) - batches[0]).abs().max() > 0.3 * batches[0].abs().max()


def test_unmagnified_images_have_the_transform_of_k_at_mk() -> None:
    """A Gaussian's transform is known everywhere."""
    line = torch.arange(BOX) - BOX // 2
    y, x = torch.meshgrid(line.float(), line.float(), indexing="ij")
    matrix = torch.tensor([[1.03, 0.02], [-0.01, 0.96]])
    image = torch.exp(-(x**2 / 8 + y**2 / 18))
    pixels = pixel_list(BOX, 8)
    k = torch.linalg.inv(matrix) @ torch.stack([pixels.kx, pixels.ky]) / BOX
    exact = 2 * torch.pi * 6 * torch.exp(-2 * torch.pi**2 * (4 * k[0] ** 2 + 9 * k[1] ** 2))
    found = pixels.pack(rfft_centred(unmagnified(image[None], matrix[None])))[0]
    assert (found.real - exact).abs().max() < 5e-3 * exact.max()


@pytest.mark.relion
def test_magnification_is_that_of_relion(tmp_path: Path) -> None:
    """`relion_reconstruct` of the same images with the same matrix: the maps agree, and less so when it is left out."""
    from verglas.io.mrc import read_map, write_stack
    from verglas.volume.fsc import fsc

    images, table, _ = particles(150, BOX, PIXEL, 2.0)
    squeezed = table.with_optics(mag_00=1.06, mag_01=0.02, mag_10=0.01, mag_11=0.95)
    write_stack(tmp_path / "images.mrcs", images.numpy(), PIXEL)
    write_particles(tmp_path / "p.star", squeezed)
    subprocess.run(
        ["relion_reconstruct", "--i", "p.star", "--o", "r.mrc", "--ctf", "--sym", "C1", "--j", "1"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    theirs = torch.as_tensor(read_map(tmp_path / "r.mrc")[0])
    agreement = []
    for particles_ in (squeezed, table):
        view = seen(images, particles_)
        own = from_particles(table, len(view.micrographs))
        pixels = pixel_list(BOX, 15)
        batch = view.batch(torch.arange(150), own, torch.ones(1, view.shells, dtype=torch.float64), pixels, exact_origins=True)
        sums = FourierSums(BOX, 3, 15)
        sums.add(euler_to_matrix(torch.as_tensor(table.angles())).float(), pixels, batch.unmasked * batch.ctf, batch.ctf.square())
        agreement.append(fsc(reconstruct(sums)[0], theirs)[4:11])
    assert (agreement[0] > 0.95).all(), agreement
    assert ((1 - agreement[1])[-4:] > 1.4 * (1 - agreement[0])[-4:]).all(), agreement


def test_particles_that_cannot_be_used_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(50, 16, 16, generator=torch.Generator().manual_seed(1))
    images[5], images[6, 0, 0], images[7, 1, 1], images[8] = 3.0, torch.nan, torch.inf, images[8] * 1000
    images[9] *= 5
    monkeypatch.setattr(observations, "_CHECKED_AT_ONCE", 7 * images[0].nbytes)
    assert sorted(unusable(ArrayImages(images, 1.0))) == [5, 6, 7, 8]
    assert unusable(ArrayImages(torch.randn(5, 8, 8), 1.0)) == {}


@pytest.mark.parametrize("diameter", [0.5, 200.0, np.nan])
def test_masks_that_do_not_fit(diameter: float) -> None:
    with pytest.raises(InputError, match="does not fit"):
        check_mask_diameter(diameter, BOX, PIXEL)
    check_mask_diameter(150.0, BOX, PIXEL)
