import math
import subprocess

import mrcfile
import numpy as np
import pytest
import torch

from verglas.volume import fsc as fs
from verglas.volume.fourier import frequency_grid, irfft_centred, rfft_centred, shell_index


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def half_maps(size=32):
    """Two noisy copies of a compact smooth map, and a soft mask around it."""
    place = torch.arange(size) - size // 2
    squared = (place[:, None, None] ** 2 + place[:, None] ** 2 + place**2).float()
    k = torch.stack(frequency_grid(size, 1.0, 3)).square().sum(dim=0).sqrt()
    signal = torch.randn(size, size, size, generator=generator())
    signal = irfft_centred(rfft_centred(signal, 3) * torch.exp(-((k / 0.15) ** 2)), size, 3) * torch.exp(-squared / 60)
    signal /= signal.std()
    halves = [signal + 0.5 * torch.randn(size, size, size, generator=generator(seed)) for seed in (1, 2)]
    return halves[0], halves[1], torch.exp(-squared / 120)


def test_sums_run_over_the_half_transform_as_it_is_stored():
    first, second, _ = half_maps(12)
    one, two = (rfft_centred(values.double(), 3) for values in (first, second))
    index = shell_index(12, 3)
    curve = fs.fsc(first, second)
    for shell in (1, 3, 6):
        a, b = one[index == shell], two[index == shell]
        expected = (a * b.conj()).real.sum() / (a.abs().square().sum() * b.abs().square().sum()).sqrt()
        assert curve[shell] == pytest.approx(float(expected), abs=1e-6)
    assert curve.shape == (7,) and curve[0] == 1


def test_known_signal_to_noise_and_batches():
    signal = torch.randn(4, 64, 64, generator=generator())
    noisy = [signal + torch.randn(4, 64, 64, generator=generator(seed)) for seed in (1, 2)]
    curves = fs.fsc(*noisy, dims=2)
    assert curves.shape == (4, 33) and curves[:, 10:].mean() == pytest.approx(0.5, abs=0.02)
    assert torch.allclose(fs.fsc(signal, signal, dims=2), torch.ones(4, 33, dtype=torch.float64))
    assert torch.allclose(fs.fsc(signal, -3 * signal, dims=2)[:, 1:], -torch.ones(4, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match="unlike shape"):
        fs.fsc(signal, signal[:, :32, :32], dims=2)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_empty_shells_are_0_not_rounding_noise(scale):
    first, second, _ = half_maps()
    cut = [irfft_centred(torch.where(shell_index(32, 3) <= 6, rfft_centred(values, 3), 0), 32, 3) * scale for values in (first, second)]
    curve = fs.fsc(*cut)
    assert curve[1:7].min() > 0.5 and (curve[7:] == 0).all()
    assert (fs.fsc(torch.zeros(8, 8, 8), torch.ones(8, 8, 8))[1:] == 0).all()


def test_resolution_is_the_last_shell_before_the_first_fall():
    curve = torch.tensor([1.0, 0.9, 0.5, 0.143, 0.1, 0.6, 0.05])
    assert fs.resolution_shell(curve) == 3 and fs.resolution_shell(curve, 0.5) == 2 and fs.resolution_shell(curve, 0.01) == 6
    assert fs.resolution_shell(torch.tensor([1.0, 0.1, 0.9])) == 0
    assert fs.resolution_shell(torch.tensor([1.0, 0.9, math.nan, 0.9])) == 1
    assert fs.shell_to_resolution(16, 80, 2.5) == 12.5 and fs.shell_to_resolution(0, 80, 2.5) == math.inf
    assert fs.resolution(curve, 12, 2.0) == 8.0
    assert fs.randomisation_shell(curve) == 2 and fs.randomisation_shell(torch.ones(5)) == 4


@pytest.mark.parametrize("size, dims", [(16, 3), (15, 3), (32, 2)])
def test_randomised_phases_keep_amplitudes_and_low_shells(size, dims):
    volume = torch.randn((size,) * dims, generator=generator(3), dtype=torch.float64)
    changed = fs.phase_randomise(volume, 5, generator(4), dims)
    index, before, after = shell_index(size, dims), rfft_centred(volume, dims), rfft_centred(changed, dims)
    assert torch.allclose(before[index < 5], after[index < 5], atol=1e-9)
    assert torch.allclose(before.abs(), after.abs(), atol=1e-9)
    assert fs.fsc(volume, changed, dims)[6:].abs().max() < 0.35
    assert torch.equal(changed, fs.phase_randomise(volume, 5, generator(4), dims))


@pytest.mark.relion
def test_curves_are_those_of_relion_postprocess(tmp_path):
    first, second, mask = half_maps()
    for name, values in (("run_half1_class001_unfil", first), ("run_half2_class001_unfil", second), ("mask", mask)):
        with mrcfile.new(tmp_path / f"{name}.mrc") as file:
            file.set_data(values.numpy())
            file.voxel_size = 2.0
    (tmp_path / "out").mkdir()
    command = "relion_postprocess --i run_half1_class001_unfil.mrc --mask mask.mrc --o out/post --angpix 2"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "out" / "post.star").read_text()
    table = text.split("data_fsc")[1].split("data_guinier")[0]
    rows = torch.tensor(np.array([line.split() for line in table.splitlines() if line[:12].strip().isdigit()], dtype=float))
    corrected, unmasked, masked, randomised = rows[:, [3, 5, 6, 7]].T
    assert (fs.fsc(first, second) - unmasked).abs().max() < 1e-5
    assert (fs.fsc(first * mask, second * mask) - masked).abs().max() < 1e-5
    start = int(float(text.split("_rlnRandomiseFrom")[1].split()[0]))
    assert fs.randomisation_shell(unmasked) == start
    assert (fs.corrected_fsc(unmasked, masked, randomised, start) - corrected).abs().max() < 2e-5
    final = float(text.split("_rlnFinalResolution")[1].split()[0])
    assert fs.resolution(corrected, 32, 2.0) == pytest.approx(final, abs=1e-5)
    ours = fs.fsc(*(fs.phase_randomise(half, start, generator(seed)) * mask for seed, half in ((5, first), (6, second))))
    assert (ours - randomised)[start + 2 :].abs().max() < 0.3 and ours[start + 2 :].abs().mean() < 0.12


def test_curves_are_corrected_two_shells_after_the_randomisation():
    masked, random, plain = torch.full((12,), 0.9), torch.full((12,), 0.5), torch.full((12,), 0.7)
    found = fs.corrected_fsc(plain, masked, random, 6)
    assert (
        [bool(fs.corrected_at(shell, 6)) for shell in range(12)] == [value < 0.85 for value in found.tolist()] == [False] * 8 + [True] * 4
    )


def test_what_a_mask_spreads_into_empty_shells_is_no_agreement():
    masked, random, plain = torch.full((12,), 0.9), torch.full((12,), 0.1), torch.full((12,), 0.9)
    plain[8:] = 0.0
    assert (fs.corrected_fsc(plain, masked, random, 3) > 0.5).tolist() == [True] * 8 + [False] * 4
