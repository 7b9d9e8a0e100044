import numpy as np
import pytest
import torch

from micrograph.made_movies import field_points, make_movie, motion_rms
from verglas.micrograph.motion import MotionSettings, accumulated_motion, edge_taper, estimate_motion
from verglas.micrograph.motion_files import MovieFacts, read_motion, write_motion
from verglas.micrograph.motion_model import fit_local_model
from verglas.micrograph.motion_shifts import Series, bfactor_weight, estimate_shifts, find_peaks, newton_steps, signal_weight


@pytest.fixture(scope="module")
def movie():
    return make_movie()


@pytest.fixture(scope="module")
def motion(movie):
    return estimate_motion(movie.counts, movie.pixel_size, MotionSettings(patches=(3, 3)))


def test_motion_over_the_whole_field_is_found(movie, motion) -> None:
    shape = tuple(movie.counts.shape[1:])
    true = movie.undo(field_points(shape))
    uncorrected = motion_rms(torch.zeros_like(true), true) * movie.pixel_size
    error = motion_rms(motion.shifts_at(field_points(shape)), true) * movie.pixel_size
    assert uncorrected > 5
    assert error < 0.5 and error < 0.1 * uncorrected
    whole = motion_rms(motion.global_shifts.expand_as(true), true) * movie.pixel_size
    assert error < 0.6 * whole, "the local model must improve on whole frames"
    assert float(motion.global_shifts[0].abs().max()) == 0


@pytest.mark.parametrize("bfactor", [20.0, 150.0, 600.0])
def test_result_does_not_hang_on_the_b_factor(movie, motion, bfactor: float) -> None:
    other = estimate_motion(movie.counts, movie.pixel_size, MotionSettings(bfactor=bfactor)).global_shifts
    assert motion_rms(other[None], motion.global_shifts[None]) < 0.05


def test_no_local_model_from_noise_alone() -> None:
    """RELION's default went wild by 13 and 52 Å on weak movies: here they get whole frames only, or next to nothing."""
    movie = make_movie(dose=4, contrast=0.06, local_px=0, seed=4)
    found = estimate_motion(movie.counts, movie.pixel_size, MotionSettings(patches=(5, 5)))
    points = field_points(tuple(movie.counts.shape[1:]))
    local = (found.shifts_at(points) - found.global_shifts) * movie.pixel_size
    assert float((local - local.mean(dim=1, keepdim=True)).norm(dim=-1).max()) < 4
    assert found.model or "no local motion" in found.notes[-1]


def places(side: int) -> torch.Tensor:
    line = (torch.arange(side) + 0.5) / side - 0.5
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).reshape(-1, 2)


def made_field(side: int, frames: int) -> torch.Tensor:
    """Shifts that RELION's polynomial has no trouble with: c B z, c B z^2."""
    at, time = places(side).double(), torch.arange(frames, dtype=torch.float64) / (frames - 1)
    bend = torch.stack([2 * at[:, 0] + at[:, 1] ** 2, at[:, 0] * at[:, 1] - at[:, 1]], dim=-1)
    return bend[:, None] * (2 * time - time**2)[None, :, None]


def test_local_model_is_exact_without_noise_and_leaves_out_a_wild_patch() -> None:
    shifts = made_field(5, 20)
    spoiled = shifts.clone()
    spoiled[7, 1:] += 30 * torch.randn(19, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = fit_local_model(places(5), spoiled, largest=50)
    assert model.rejected == (7,)
    assert motion_rms(model.shifts(places(5), 20), shifts) < 0.02
    assert float(model.shifts(places(5), 20)[:, 0].abs().max()) == 0


def test_coefficients_are_in_the_order_of_relion() -> None:
    """Evaluate the polynomial as RELION.md 7 writes it, term by term."""
    model = fit_local_model(places(5), made_field(5, 20), largest=50)
    x, y, z = 0.31, -0.22, 13.0
    terms = [1, x, x * x, y, y * y, x * y]
    for axis in (0, 1):
        c = model.coefficients[axis].tolist()
        value = sum(c[3 * s + t] * terms[s] * z ** (t + 1) for s in range(6) for t in range(3))
        assert value == pytest.approx(float(model.shifts(torch.tensor([[x, y]]), 20)[0, 13, axis]), abs=1e-6)


def test_noise_yields_no_local_model() -> None:
    generator = torch.Generator().manual_seed(2)
    taken = [
        bool(fit_local_model(places(5), torch.randn(25, 20, 2, generator=generator, dtype=torch.float64), largest=50)) for _ in range(20)
    ]
    assert sum(taken) <= 8
    for _ in range(20):
        model = fit_local_model(places(5), 3 * torch.randn(25, 20, 2, generator=generator, dtype=torch.float64), largest=50)
        field = model.shifts(places(9), 20)
        assert float((field - field.mean(dim=1, keepdim=True)).square().sum(dim=-1).mean().sqrt()) < 1.3


def test_too_large_a_model_is_thrown_away_and_says_so() -> None:
    model = fit_local_model(places(5), 20 * made_field(5, 20), largest=5)
    assert not model and model.wild


def shifted_pair(dx: float, dy: float) -> torch.Tensor:
    """Spectra of a smooth random image and of the same moved by (dx, dy), 60 x 72 px."""
    generator = torch.Generator().manual_seed(5)
    kx, ky = torch.fft.rfftfreq(72)[None], torch.fft.fftfreq(60)[:, None]
    base = torch.fft.rfft2(torch.randn(60, 72, generator=generator)) * torch.exp(-200 * (kx**2 + ky**2))
    return torch.stack([base, base * torch.exp(-2j * torch.pi * (kx * dx + ky * dy))])


@pytest.mark.parametrize("shift", [(0.37, -0.81), (6.4, -3.3), (-11.2, 9.9)])
def test_peaks_are_exact_to_a_hundredth_of_a_pixel(shift: tuple[float, float]) -> None:
    pair = shifted_pair(*shift)
    product = Series(pair[:1].conj() * pair[1:], (60, 72), (1.0, 1.0))
    found = find_peaks(product, reach=max(4.0, 1.2 * max(map(abs, shift))))
    assert found[0].tolist() == pytest.approx(shift, abs=0.01)


def test_newton_steps_point_to_the_peak() -> None:
    pair = shifted_pair(0.3, -0.2)
    steps = newton_steps(Series(pair[None], (60, 72), (1.0, 1.0)), torch.zeros(1, 2, 2))
    assert (steps[0, 0] - steps[0, 1]).tolist() == pytest.approx([0.6, -0.4], abs=0.03)


def test_cutting_to_the_weight_changes_no_shift() -> None:
    movie = make_movie(shape=(200, 260), frames=6, blobs=500)
    values = movie.counts - movie.counts.mean()
    series = Series(torch.fft.rfft2(values * edge_taper((200, 260))), (200, 260), (1.0, 1.0))
    weight = bfactor_weight(100, 0.01, 0.15)
    cut = series.weighted(weight)
    assert cut.shape < series.shape
    whole = Series(series.spectra * weight(series.radius()).sqrt(), series.shape, series.pixel)
    results = [estimate_shifts(each, reach=20, iterations=8, tolerance=0.01) for each in (cut, whole)]
    assert float((results[0] - results[1]).abs().max()) < 0.03


def test_no_common_signal_no_weight() -> None:
    noise = torch.randn(8, 128, 128, generator=torch.Generator().manual_seed(1))
    assert signal_weight(Series(torch.fft.rfft2(noise), (128, 128), (1.0, 1.0)), torch.zeros(8, 2), 0.01) is None


def test_accumulated_motion_is_the_length_of_the_path() -> None:
    path = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0], [1.0, 5.0]])
    assert accumulated_motion(path, 2.0, 2.0, 0.0, 4.0) == pytest.approx((16.0, 10.0, 6.0))


def test_motion_file_comes_back(motion, tmp_path) -> None:
    facts = MovieFacts("movies/a b.tif", "gain.mrc", 12, 2.5, 1.0, 2.0, 0.0, 300.0)
    write_motion(tmp_path / "a.star", motion, facts, np.array([[3, 4], [100, 7]]))
    back = read_motion(tmp_path / "a.star")
    points = field_points(motion.shape)
    assert torch.allclose(back.shifts_at(points), motion.shifts_at(points), atol=1e-3)
    assert torch.allclose(back.patch_shifts.float(), motion.patch_shifts.float(), atol=1e-3)
    assert torch.allclose(back.patch_centres.float(), motion.patch_centres, atol=1e-2)
