import math
import subprocess

import mrcfile
import pytest
import torch

from verglas.optics.dose import accumulated_exposure, critical_exposure, damage, dose_weights
from verglas.volume.fourier import frequency_grid, rfft_centred, shell_index


def test_published_critical_exposures():
    k = torch.tensor([1 / 20, 1 / 10, 1 / 3], dtype=torch.float64)
    expected = [0.245 * f**-1.665 + 2.81 for f in k.tolist()]
    assert critical_exposure(k).tolist() == pytest.approx(expected)
    assert critical_exposure(k)[2] == pytest.approx(4.34, abs=0.01)
    assert (critical_exposure(k, 200.0) / critical_exposure(k)).tolist() == pytest.approx([0.8] * 3)
    assert critical_exposure(torch.tensor([0.0])).isinf().all()


def test_optimal_exposure_of_the_papers_filter():
    # signal grows with the sum of amplitudes, noise with the root of the exposure: best at 2.51284 Ne
    k = torch.tensor([0.1], dtype=torch.float64)
    ne = float(critical_exposure(k))
    doses = torch.linspace(0.5, 6, 2000, dtype=torch.float64) * ne
    signal_to_noise = (1 - torch.exp(-doses / (2 * ne))) / doses.sqrt()
    assert float(doses[signal_to_noise.argmax()]) / ne == pytest.approx(2.51284, abs=0.01)
    assert damage(k, torch.tensor([2 * ne], dtype=torch.float64)).item() == pytest.approx(math.exp(-1))


def test_weights_keep_white_noise_and_favour_early_frames():
    k = torch.rand(16, 9) * 0.4
    weights = dose_weights(k, accumulated_exposure(20, 2.0))
    assert weights.shape == (20, 16, 9)
    assert torch.allclose(weights.square().sum(dim=0), torch.ones(16, 9), atol=1e-5)
    assert (weights.diff(dim=0) <= 0).all()
    ratio = weights[3] / weights[0]
    assert torch.allclose(ratio, torch.exp(-6.0 / (2 * critical_exposure(k))), atol=1e-5)
    at_zero = dose_weights(torch.zeros(1), accumulated_exposure(4, 1.5))
    assert torch.allclose(at_zero, torch.full((4, 1), 0.5))


def test_exposure_counts_from_the_end_of_the_first_frame():
    assert accumulated_exposure(3, 1.5, 4.0).tolist() == [5.5, 7.0, 8.5]
    far = dose_weights(torch.tensor([0.5]), accumulated_exposure(5, 1e5))
    assert torch.isfinite(far).all() and far.square().sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.relion
@pytest.mark.parametrize("voltage", [300, 200])
def test_weights_are_those_of_relion_run_motioncorr(tmp_path, voltage):
    # four like frames: the weighted and the plain sum differ by the sum of the weights alone
    frame = 100 + 10 * torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    with mrcfile.new(tmp_path / "m.mrcs") as file:
        file.set_data(frame.expand(4, 128, 128).contiguous().numpy())
        file.set_image_stack()
    optics = ["OpticsGroupName", "OpticsGroup", "MicrographOriginalPixelSize", "Voltage", "SphericalAberration", "AmplitudeContrast"]
    text = ""
    for name, labels, row in (
        ("optics", optics, f"one 1 1.5 {voltage} 2.7 0.1"),
        ("movies", ["MicrographMovieName", "OpticsGroup"], "m.mrcs 1"),
    ):
        text += f"\n# version 30001\n\ndata_{name}\n\nloop_\n" + "".join(f"_rln{label}\n" for label in labels) + row + "\n\n"
    (tmp_path / "movies.star").write_text(text)
    command = "relion_run_motioncorr --i movies.star --o out/ --use_own --dose_per_frame 5 --dose_weighting --save_noDW"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    weighted, plain = (rfft_centred(torch.tensor(mrcfile.read(tmp_path / f"out/{name}.mrc")).double()) for name in ("m", "m_noDW"))
    kx, ky = frequency_grid(128, 1.5)
    ours = dose_weights(torch.hypot(kx, ky), accumulated_exposure(4, 5.0), voltage).sum(dim=0) / 4
    assert ((weighted / plain).real / ours - 1)[(shell_index(128) < 63) & (plain.abs() > 20)].abs().max() < 1e-3
