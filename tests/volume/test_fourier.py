import subprocess

import mrcfile
import pytest
import torch

from verglas.volume import fourier

SIZES = [(16, 2), (17, 2), (12, 3), (13, 3)]


@pytest.mark.parametrize("size, dims", SIZES)
def test_transform_is_the_sum_about_the_centre(size, dims):
    values = torch.randn((2,) + (size,) * dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    frequencies = fourier.frequency_grid(size, 1.0, dims)
    place = torch.arange(size, dtype=torch.float64) - size // 2
    places = torch.meshgrid(*[place] * dims, indexing="ij")[::-1]
    entry = (0, 2, 3, 1)[-dims:]
    turns = sum(float(k[entry]) * x for k, x in zip(frequencies, places))
    expected = (values * torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)).flatten(1).sum(dim=1)
    transform = fourier.rfft_centred(values, dims)
    assert torch.allclose(transform[(slice(None), *entry)], expected, atol=1e-6)
    assert torch.allclose(fourier.irfft_centred(transform, size, dims), values, atol=1e-12)


@pytest.mark.parametrize("size, dims", SIZES)
def test_shells_are_rounded_lengths(size, dims):
    index = fourier.shell_index(size, dims)
    squared = sum((k.double() * size) ** 2 for k in fourier.frequency_grid(size, 1.0, dims))
    assert index.shape == squared.shape and (index - squared.sqrt()).abs().max() <= 0.5 + 1e-5
    counts = torch.bincount(index.flatten())[: size // 2 + 1]
    assert torch.equal(fourier.shell_counts(size, dims), counts.double())
    values = torch.randn(3, *index.shape)
    means = fourier.radial_average(values, size, dims)
    for shell in (0, 1, size // 2):
        assert torch.allclose(means[:, shell], values[:, index == shell].double().mean(dim=1))


@pytest.mark.parametrize("size, new, dims", [(24, 16, 2), (25, 16, 2), (24, 15, 2), (25, 15, 3), (24, 12, 3)])
def test_cropping_keeps_a_band_limited_picture_and_its_centre(size, new, dims):
    def wave(n):
        place = (torch.arange(n, dtype=torch.float64) - n // 2) / n
        line = 1 + torch.cos(2 * torch.pi * 3 * place) + 0.5 * torch.sin(2 * torch.pi * 5 * place)
        return line * line[:, None] if dims == 2 else line * line[:, None] * line[:, None, None]

    assert torch.allclose(fourier.fourier_crop(wave(size), new, dims), wave(new), atol=1e-12)
    assert torch.allclose(fourier.fourier_pad(wave(new), size, dims), wave(size), atol=1e-12)


def test_padding_meets_the_old_pixels_and_cropping_refuses_to_grow():
    values = torch.randn(2, 16, 16, dtype=torch.float64)
    assert torch.allclose(fourier.fourier_pad(values, 32)[:, ::2, ::2], values, atol=1e-12)
    with pytest.raises(ValueError, match="size 16 to 32"):
        fourier.fourier_crop(values, 32)
    with pytest.raises(ValueError, match="size 16 to 8"):
        fourier.fourier_pad(values, 8)


@pytest.mark.relion
@pytest.mark.parametrize("new", [24, 36])
def test_cropping_is_relions_scale(tmp_path, new):
    images = torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(2))
    with mrcfile.new(tmp_path / "in.mrcs") as stack:
        stack.set_data(images.numpy())
        stack.set_image_stack()
    command = ["relion_preprocess", "--operate_on", "in.mrcs", "--operate_out", "out.mrcs", "--scale", str(new)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs = torch.tensor(mrcfile.read(tmp_path / "out.mrcs"))
    assert (fourier.fourier_crop(images.double(), new) - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("dims, shift", [(2, (2, -3)), (3, (1, -2, 4))])
def test_shift_moves_by_whole_pixels_in_order_x_y_z(dims, shift):
    values = torch.randn((4,) + (11,) * dims)
    moved = fourier.fourier_shift(values, torch.tensor([shift] * 4, dtype=torch.float32), dims)
    assert torch.allclose(moved, torch.roll(values, shift[::-1], dims=tuple(range(-dims, 0))), atol=1e-5)


@pytest.mark.parametrize("size, max_shell", [(16, 7), (16, 8), (17, 8), (64, 20)])
def test_packed_pixels_count_each_independent_frequency_once(size, max_shell):
    packed = fourier.packed_pixels(size, max_shell)
    pairs = set(zip(packed.kx.tolist(), packed.ky.tolist()))
    assert len(pairs) == len(packed.flat) and (0, 0) not in pairs
    assert not {(-x, -y) for x, y in pairs} & pairs
    reach = (size - 1) // 2
    wanted = sum(
        1 for x in range(-reach, reach + 1) for y in range(-reach, reach + 1) if (x or y) and (x * x + y * y) ** 0.5 < max_shell + 0.5
    )
    assert 2 * len(pairs) == wanted
    assert torch.equal(packed.shell, packed.shell.sort().values)
    assert [int((packed.shell <= s).sum()) for s in range(max_shell + 1)] == packed.ends.tolist()


def test_packed_pixels_point_into_the_half_transform():
    packed = fourier.packed_pixels(32)
    kx, ky = fourier.frequency_grid(32)
    assert torch.equal((kx.flatten()[packed.flat] * 32).round().long(), packed.kx)
    assert torch.equal((ky.flatten()[packed.flat] * 32).round().long(), packed.ky)
    image = torch.randn(32, 32, dtype=torch.float64)
    image -= image.mean()
    smooth = fourier.fourier_pad(fourier.fourier_crop(image, 15), 32)
    power = fourier.rfft_centred(smooth).flatten()[packed.flat].abs().square().sum()
    assert torch.isclose(2 * power / 32**2, smooth.square().sum(), rtol=1e-9)
    with pytest.raises(ValueError, match="outside 0 to 16"):
        fourier.packed_pixels(32, 17)
