import pytest
import torch

from micrograph.made_movies import make_movie
from verglas.micrograph.motion import Motion, MotionSettings, estimate_motion
from verglas.micrograph.motion_correction import CorrectionSettings, binned_shape, correct_movie
from verglas.micrograph.motion_model import no_local_motion
from verglas.micrograph.motion_sum import move_blocks, sum_frames
from verglas.micrograph.power_spectrum import power_spectrum, resample_spectrum
from verglas.optics.dose import accumulated_exposure, dose_weights


def waves(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A smooth picture with waves up to 0.8 of Nyquist, evaluated anywhere."""
    return torch.cos(2 * torch.pi * (0.40 * x + 0.01 * y)) + torch.cos(2 * torch.pi * (0.11 * x - 0.38 * y)) + torch.cos(0.2 * x + 0.3 * y)


def test_blocks_are_moved_exactly() -> None:
    y, x = torch.meshgrid(torch.arange(130.0), torch.arange(170.0), indexing="ij")
    rows, columns = 5, 6
    shifts = torch.zeros(rows, columns, 2)
    shifts[..., 0] = 7.3 + 0.25 * torch.arange(columns)
    shifts[..., 1] = -4.6 + 0.4 * torch.arange(rows)[:, None]
    moved = move_blocks(waves(x, y), shifts)
    dx = shifts[..., 0].repeat_interleave(32, 0).repeat_interleave(32, 1)[:130, :170]
    dy = shifts[..., 1].repeat_interleave(32, 0).repeat_interleave(32, 1)[:130, :170]
    error = (moved - waves(x - dx, y - dy))[16:-16, 24:-24]
    # shifts are rounded to 1/128 px, which at 0.4 cycles a px is up to 1 % of the wave
    assert float(error.abs().max()) < 0.04 and float(error.square().mean().sqrt()) < 0.015


def still(frames: torch.Tensor) -> Motion:
    shape = (int(frames.shape[1]), int(frames.shape[2]))
    return Motion(
        shape, torch.zeros(len(frames), 2, dtype=torch.float64), no_local_motion(), torch.zeros(0, 2), torch.zeros(0, len(frames), 2)
    )


def test_dose_weighted_sum_of_still_frames_is_that_of_the_formula() -> None:
    frames = torch.poisson(torch.full((8, 96, 128), 4.0), generator=torch.Generator().manual_seed(1))
    settings = CorrectionSettings(1.4, 200.0, tuple(accumulated_exposure(8, 2.0).tolist()), find_hot=False)
    from verglas.micrograph.motion_correction import _damage_weights

    sums = sum_frames(frames, still(frames), weights=_damage_weights(settings, torch.device("cpu")))
    radius = torch.sqrt(torch.fft.rfftfreq(128)[None] ** 2 + torch.fft.fftfreq(96)[:, None] ** 2) / 1.4
    weights = dose_weights(radius.double(), accumulated_exposure(8, 2.0), 200.0)
    expected = torch.fft.irfft2((torch.fft.rfft2(frames.double()) * weights).sum(dim=0), s=(96, 128))
    assert sums.weighted is not None
    assert torch.allclose(sums.weighted.double(), expected, atol=2e-3)
    assert torch.allclose(sums.plain, frames.sum(dim=0), atol=2e-3)


def test_corrected_sum_is_sharper_than_the_plain_one() -> None:
    movie = make_movie()
    motion = estimate_motion(movie.counts, movie.pixel_size, MotionSettings(patches=(3, 3)))
    corrected = sum_frames(movie.counts, motion).plain
    unmoved = make_movie(drift_px=0, local_px=0).counts.sum(dim=0)
    uncorrected = movie.counts.sum(dim=0)

    def likeness(image: torch.Tensor) -> float:
        inner = torch.stack([image[16:-16, 16:-16].flatten(), unmoved[16:-16, 16:-16].flatten()])
        return float(torch.corrcoef(inner)[0, 1])

    assert likeness(corrected) > likeness(uncorrected) + 0.1


def test_binning_keeps_the_mean_and_gives_an_even_shape() -> None:
    assert binned_shape((3710, 3838), 1) == (3710, 3838)
    assert binned_shape((3710, 3838), 1.5) == (2474, 2558)
    movie = make_movie(shape=(240, 320), frames=5, blobs=300)
    settings = CorrectionSettings(2.5, 300.0, tuple(accumulated_exposure(5, 1.0).tolist()), bin_factor=2, dose_weighting=False)
    result = correct_movie(movie.counts.clone(), "m", settings)
    assert result.sums.plain.shape == (120, 160) and result.sums.weighted is None
    assert float(result.sums.plain.mean()) == pytest.approx(float(movie.counts.sum(dim=0).mean()), rel=0.01)


def test_power_spectrum_of_white_noise_is_flat_and_of_a_wave_is_in_its_place() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(300, 420, generator=generator)
    flat = power_spectrum(noise, 128)
    assert float(flat.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(flat.max()) < 4
    x, y = torch.arange(420)[None], torch.arange(300)[:, None]
    for pixel in (1.0, 1.5):
        spectrum = power_spectrum(torch.cos(2 * torch.pi * (x * 24 / 128 / pixel - y * 17 / 128 / pixel)), 128, pixel)
        assert divmod(int(spectrum.argmax()), 65) == (128 - 17, 24)


def test_resampled_spectrum_equals_plain_averages() -> None:
    """Weights of a triangle, written out as a loop over the full transform."""
    power = torch.fft.fft2(torch.randn(36, 48, generator=torch.Generator().manual_seed(2))).abs().square()
    found = resample_spectrum(power[:, :25], (36, 48), 12)
    power[0, 0] = power[0, 1]
    for j, i in ((0, 0), (3, 0), (0, 5), (11, 2), (6, 6)):
        wy = [max(0.0, 1 - min(abs(a - 3 * j) % 36, 36 - abs(a - 3 * j) % 36) / 3) for a in range(36)]
        wx = [max(0.0, 1 - min(abs(a - 4 * i) % 48, 48 - abs(a - 4 * i) % 48) / 4) for a in range(48)]
        weights = torch.tensor(wy)[:, None] * torch.tensor(wx)
        assert float(found[j, i]) == pytest.approx(float((weights * power).sum() / weights.sum()), rel=1e-4)
