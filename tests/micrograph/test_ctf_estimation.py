import csv
from pathlib import Path

import pytest
import torch

from verglas.errors import InputError, ItemError
from verglas.io.picture import read_micrograph
from verglas.micrograph.ctf_estimation import CtfFit, CtfSearch, Microscope, estimate_ctf, target_pixel, with_range
from verglas.micrograph.ctf_files import read_ctf_fit, rings_beside_model, write_ctf_fit
from verglas.micrograph.ctf_resolution import ctf_profile
from verglas.micrograph.power_spectrum import power_spectrum

SCOPE = Microscope(300.0, 2.7, 0.1)


def made_micrograph(
    u: float, v: float, angle: float, pixel: float, scope: Microscope, phase: float = 0.0, strength: float = 1.0, size: int = 1024
) -> torch.Tensor:
    """Noise filtered by a CTF written out here (RELION.md 2), with white noise on top."""
    generator = torch.Generator().manual_seed(8)
    kx, ky = torch.fft.rfftfreq(size, pixel).double()[None], torch.fft.fftfreq(size, pixel).double()[:, None]
    k2, theta = kx**2 + ky**2, torch.atan2(ky, kx)
    volts = scope.voltage * 1e3
    wave = 12.2643247 / (volts * (1 + volts * 0.978466e-6)) ** 0.5
    dz = 0.5 * (u + v + (u - v) * torch.cos(2 * (theta - torch.deg2rad(torch.tensor(angle)))))
    chi = torch.pi * wave * dz * k2 - torch.pi / 2 * scope.spherical_aberration * 1e7 * wave**3 * k2**2
    q = scope.amplitude_contrast
    ctf = torch.sin(chi + torch.atan(torch.tensor(q / (1 - q * q) ** 0.5)) + torch.deg2rad(torch.tensor(phase))) * torch.exp(-30 * k2)
    signal = torch.fft.irfft2(torch.fft.rfft2(torch.randn(size, size, generator=generator).double()) * ctf, s=(size, size))
    return (strength * signal + torch.randn(size, size, generator=generator)).float()


@pytest.mark.parametrize(
    ("u", "v", "angle", "pixel", "scope"),
    [
        (12500.0, 11900.0, 25.0, 1.4, Microscope(200.0, 2.7, 0.1)),
        (21000.0, 20900.0, -60.0, 1.1, SCOPE),
        (33000.0, 31500.0, 80.0, 1.4, SCOPE),
        (8200.0, 7900.0, -10.0, 2.0, Microscope(200.0, 2.7, 0.07)),
    ],
)
def test_defocus_and_astigmatism_are_found(u: float, v: float, angle: float, pixel: float, scope: Microscope) -> None:
    image = made_micrograph(u, v, angle, pixel, scope)
    grid = target_pixel(pixel, 5.0)
    fit = estimate_ctf(power_spectrum(image, 512, grid / pixel), grid, scope, CtfSearch())
    assert (fit.defocus_u + fit.defocus_v) / 2 == pytest.approx((u + v) / 2, abs=60)
    assert fit.astigmatism == pytest.approx(u - v, abs=80)
    if u - v > 200:
        assert abs((fit.defocus_angle - angle + 90) % 180 - 90) < 6
    assert fit.score > 0.05


def test_phase_shift_is_found_only_when_it_is_searched() -> None:
    image = made_micrograph(15000.0, 14800.0, 10.0, 1.4, SCOPE, phase=70.0)
    spectrum = power_spectrum(image, 512, 2 / 1.4)
    search = CtfSearch(phase_shifts=tuple(float(value) for value in range(0, 180, 15)))
    fit = estimate_ctf(spectrum, 2.0, SCOPE, search)
    assert fit.phase_shift == pytest.approx(70, abs=8)
    assert (fit.defocus_u + fit.defocus_v) / 2 == pytest.approx(14900, abs=120)
    assert estimate_ctf(spectrum, 2.0, SCOPE, CtfSearch()).phase_shift == 0


def test_expected_astigmatism_holds_a_weak_fit_back() -> None:
    image = made_micrograph(12500.0, 11900.0, 25.0, 1.4, SCOPE)
    spectrum = power_spectrum(image, 512, 2 / 1.4)
    held = estimate_ctf(spectrum, 2.0, SCOPE, CtfSearch(tolerated_astigmatism=50))
    assert held.astigmatism < estimate_ctf(spectrum, 2.0, SCOPE, CtfSearch()).astigmatism


@pytest.mark.parametrize("seed", range(3))
def test_noise_scores_low_and_shows_no_rings(seed: int) -> None:
    noise = torch.randn(768, 768, generator=torch.Generator().manual_seed(seed))
    spectrum = power_spectrum(noise, 512, 2 / 1.4)
    fit = estimate_ctf(spectrum, 2.0, SCOPE, CtfSearch())
    assert fit.score < 0.04
    assert ctf_profile(spectrum, 2.0, fit, SCOPE, CtfSearch()).resolution > 8


def test_fit_resolution_follows_how_far_rings_go() -> None:
    """The same micrograph, rings ended at 1/9 Å by noise that takes over: the resolution must say so."""
    image = made_micrograph(15000.0, 15000.0, 0.0, 1.4, SCOPE, strength=1.0)
    k = torch.sqrt(torch.fft.rfftfreq(1024, 1.4)[None] ** 2 + torch.fft.fftfreq(1024, 1.4)[:, None] ** 2)
    white = torch.fft.rfft2(torch.randn(1024, 1024, generator=torch.Generator().manual_seed(2))) * 1.3
    cut = torch.fft.irfft2(torch.where(k < 1 / 9, torch.fft.rfft2(image), white), s=(1024, 1024))
    found = []
    for each in (image, cut):
        spectrum = power_spectrum(each, 512, 2 / 1.4)
        fit = estimate_ctf(spectrum, 2.0, SCOPE, CtfSearch())
        found.append(ctf_profile(spectrum, 2.0, fit, SCOPE, CtfSearch()).resolution)
    assert found[0] < 6
    assert 7.5 < found[1] < 10.5


def real_fit(path: Path, pixel: float, scope: Microscope, highest: float = 5.0) -> tuple[CtfFit, float]:
    search = with_range(CtfSearch(highest=highest), pixel)
    grid = target_pixel(pixel, search.highest)
    spectrum = power_spectrum(torch.from_numpy(read_micrograph(path)), 512, grid / pixel)
    fit = estimate_ctf(spectrum, grid, scope, search)
    return fit, ctf_profile(spectrum, grid, fit, scope, search).resolution


def test_real_ribosomes_against_deposited_values(shared_data: Path) -> None:
    """EMPIAR-10028, binned to 5.36 Å, against the deposited CTF of the full micrographs: 200 Å of mean defocus (1 %)."""
    with (shared_data / "ribosome/ctf_deposited.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        fit, resolution = real_fit(shared_data / "ribosome" / row["micrograph"], 5.36, Microscope(300.0, 2.0, 0.1))
        mean = (float(row["defocus_u_A"]) + float(row["defocus_v_A"])) / 2
        assert (fit.defocus_u + fit.defocus_v) / 2 == pytest.approx(mean, abs=200)
        assert fit.astigmatism == pytest.approx(abs(float(row["defocus_u_A"]) - float(row["defocus_v_A"])), abs=150)
        assert resolution < 12


def test_real_apoferritin_shows_rings_to_six_angstrom(shared_data: Path) -> None:
    files = sorted((shared_data / "apoferritin").glob("*.png"))
    assert len(files) == 4
    for file in files:
        fit, resolution = real_fit(file, 1.5, SCOPE)
        coarser, _ = real_fit(file, 1.5, SCOPE, highest=7.0)
        assert resolution < 6.5 and fit.score > 0.1
        assert (fit.defocus_u + fit.defocus_v) / 2 == pytest.approx((coarser.defocus_u + coarser.defocus_v) / 2, abs=100)


def test_bad_ranges_and_empty_spectra_are_refused() -> None:
    with pytest.raises(InputError, match="resmin"):
        CtfSearch(lowest=5, highest=30)
    with pytest.raises(InputError, match="dfmin"):
        CtfSearch(min_defocus=6e4)
    with pytest.raises(ItemError, match="empty"):
        estimate_ctf(torch.zeros(512, 257), 2.0, SCOPE, CtfSearch())
    with pytest.raises(ItemError, match="only"):
        estimate_ctf(torch.ones(512, 257), 2.0, SCOPE, CtfSearch(highest=29))


def test_fit_file_comes_back_and_rings_show_the_model(tmp_path: Path) -> None:
    image = made_micrograph(15000.0, 14600.0, 30.0, 1.4, SCOPE, strength=1.0)
    spectrum = power_spectrum(image, 256, 2 / 1.4)
    fit = estimate_ctf(spectrum, 2.0, SCOPE, CtfSearch())
    profile = ctf_profile(spectrum, 2.0, fit, SCOPE, CtfSearch())
    write_ctf_fit(tmp_path / "a_ctf.star", fit, profile)
    back, curve = read_ctf_fit(tmp_path / "a_ctf.star")
    assert back == fit and curve.resolution == pytest.approx(profile.resolution, rel=1e-4)
    rings = torch.from_numpy(rings_beside_model(spectrum, 2.0, fit, SCOPE, 30.0, 5.0))
    assert rings.shape == (256, 256)
    # the left half, turned by 180 degrees, lies on the right half: the observed rings must look like the fitted ones
    left, right = torch.roll(rings.flip(0, 1), (1, 1), (0, 1))[:, 128:], rings[:, 128:]
    inside = (right != 0.5) & (torch.arange(256)[:, None] > 0) & (torch.arange(128)[None] > 1)
    assert float(torch.corrcoef(torch.stack([left[inside], right[inside]]))[0, 1]) > 0.3
