import numpy as np
import pytest
import torch

from verglas.errors import ItemError
from verglas.micrograph.frames import crop_rect, fill_defects, find_outliers, prepare_frames


def noise(frames: int = 6, shape: tuple[int, int] = (128, 160), dose: float = 5.0) -> torch.Tensor:
    return torch.poisson(torch.full((frames, *shape), dose), generator=torch.Generator().manual_seed(3))


def test_hot_and_dead_pixels_are_found_and_no_others() -> None:
    counts = noise()
    counts[:, 20, 30] += 40
    counts[:, 77, 5] = 0
    frames = prepare_frames(counts, "movie")
    assert sorted(frames.hot.tolist()) == [[5, 77], [30, 20]]
    assert frames.values[:, 20, 30].mean() < 12 and frames.values[:, 77, 5].sum() > 0


def test_uneven_illumination_is_no_defect() -> None:
    ramp = torch.linspace(0.4, 1.6, 160).expand(128, 160)
    counts = torch.poisson(5 * ramp.expand(6, -1, -1), generator=torch.Generator().manual_seed(1))
    assert not find_outliers(counts.sum(dim=0), torch.zeros(128, 160, dtype=torch.bool)).any()


def test_gain_multiplies_and_its_zeros_are_defects() -> None:
    gain = torch.full((128, 160), 1.25)
    gain[:, 50] = 0
    gain[4, 7] = torch.nan
    frames = prepare_frames(noise(), "movie", gain)
    assert frames.defects[:, 50].all() and frames.defects[4, 7] and int(frames.defects.sum()) == 129
    assert torch.isfinite(frames.values).all()
    assert abs(float(frames.values.mean()) - 6.25) < 0.03
    # a filled column has the noise of its neighbours, in every frame anew
    assert 0.85 < float(frames.values[:, :, 50].std() / frames.values[:, :, 60].std()) < 1.15
    assert abs(float(torch.corrcoef(frames.values[:2, :, 50])[0, 1])) < 0.35


def test_filling_is_the_same_for_the_same_seed() -> None:
    bad = torch.zeros(128, 160, dtype=torch.bool)
    bad[10:14, 20:24] = True
    first, second, other = noise(), noise(), noise()
    fill_defects(first, bad, 1)
    fill_defects(second, bad, 1)
    fill_defects(other, bad, 2)
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda movie: movie.fill_(3), "constant"),
        (lambda movie: movie[2].fill_(3), "frame 3"),
        (lambda movie: movie[1, 5, 5].fill_(torch.nan), "not numbers"),
    ],
)
def test_movies_without_an_image_are_refused(spoil: object, said: str) -> None:
    movie = noise()
    spoil(movie)  # type: ignore[operator]
    with pytest.raises(ItemError, match=said):
        prepare_frames(movie, "bad.tif")


def test_mostly_defects_is_refused() -> None:
    with pytest.raises(ItemError, match="defects"):
        prepare_frames(noise(), "bad.tif", defects=torch.rand(128, 160) < 0.5)


def test_cropping_a_transform_bins_a_rectangle() -> None:
    y, x = torch.meshgrid(torch.arange(96) / 96, torch.arange(144) / 144, indexing="ij")
    wave = torch.cos(2 * np.pi * (3 * x + 5 * y)) + 2
    small = torch.fft.irfft2(crop_rect(torch.fft.rfft2(wave), (96, 144), (64, 96)), s=(64, 96)) * (64 * 96) / (96 * 144)
    y, x = torch.meshgrid(torch.arange(64) / 64, torch.arange(96) / 96, indexing="ij")
    assert torch.allclose(small, torch.cos(2 * np.pi * (3 * x + 5 * y)) + 2, atol=1e-4)
