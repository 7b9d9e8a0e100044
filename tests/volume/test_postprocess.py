"""Post-processing against `relion_postprocess`, and its parts against known maps."""

import subprocess
from pathlib import Path

import pytest
import torch

from verglas.errors import InputError
from verglas.io.mrc import read_map, write_map
from verglas.io.star import list_table, read_star, write_star
from verglas.volume.filters import apply_weights, bfactor_weights, lowpass
from verglas.volume.fsc import fsc
from verglas.volume.masks import soft_sphere, solvent_mask
from verglas.volume.postprocess import fsc_weights, guinier_fit, log_amplitudes, mtf_weights, postprocess
from volume.maps_for_tests import chain

SIZE, PIXEL = 48, 2.5


@pytest.fixture(scope="module")
def halves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two half maps that agree to about 6 Å, and a mask."""
    generator = torch.Generator().manual_seed(7)
    truth = chain(SIZE, PIXEL, bfactor=200.0, radius=36.0, atoms=1500)
    first, second = (truth + 0.03 * torch.randn(truth.shape, generator=generator) for _ in range(2))
    return first, second, solvent_mask(truth, PIXEL, threshold=0.1, extend=3, edge=4)


@pytest.mark.relion
@pytest.mark.parametrize("with_mtf", [False, True])
def test_agrees_with_relion(tmp_path: Path, halves: tuple[torch.Tensor, ...], with_mtf: bool) -> None:
    import pandas as pd

    for name, density in zip(("run_half1_x.mrc", "run_half2_x.mrc", "mask.mrc"), halves, strict=True):
        write_map(tmp_path / name, density.numpy(), PIXEL)
    command = f"relion_postprocess --i run_half1_x.mrc --mask mask.mrc --o out/post --angpix {PIXEL} --auto_bfac --autob_lowres 10"
    mtf = (torch.linspace(0, 0.5, 51), torch.linspace(1, 0.2, 51)) if with_mtf else None
    if mtf is not None:
        write_star(tmp_path / "mtf.star", {"": pd.DataFrame({"rlnResolutionInversePixel": mtf[0].numpy(), "rlnMtfValue": mtf[1].numpy()})})
        command += " --mtf mtf.star --mtf_angpix 1.0"
    (tmp_path / "out").mkdir()
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    tables = read_star(tmp_path / "out/post.star")
    theirs, general = list_table(tables, "fsc", "post.star"), tables["general"]

    ours = postprocess(*halves, PIXEL, fit_highest=2 * PIXEL, lowpass=0, mtf=mtf, mtf_pixel_size=1.0)
    curves = ours.curves
    columns = {"UnmaskedMaps": curves.unmasked, "MaskedMaps": curves.masked, "ParticleMaskFraction": curves.particle}
    for name, curve in columns.items():
        assert (curve - torch.tensor(theirs["rlnFourierShellCorrelation" + name].astype(float))).abs().max() < 1e-4, name
    # the phases are random: curves that hang on them agree within their noise
    assert (curves.corrected - torch.tensor(theirs["rlnFourierShellCorrelationCorrected"].astype(float))).abs().mean() < 0.05
    assert abs(curves.shell - round(SIZE * PIXEL / float(general["rlnFinalResolution"]))) <= 1
    assert float(general["rlnRandomiseFrom"]) == pytest.approx(SIZE * PIXEL / curves.randomised_from, rel=1e-4)
    assert ours.relion_fraction == pytest.approx(float(general["rlnParticleBoxFractionSolventMask"]), rel=1e-4)
    label = "rlnLogAmplitudesMTFCorrected" if with_mtf else "rlnLogAmplitudesOriginal"
    original = torch.tensor(list_table(tables, "guinier", "")[label].astype(float))
    # RELION takes the first value of the MTF up to its second point, which shell 1 does not reach
    assert (ours.guinier.original - original)[2:-1].abs().max() < 2e-3
    assert ours.bfactor == pytest.approx(float(general["rlnBfactorUsedForSharpening"]), rel=0.2)
    sharpened = torch.from_numpy(read_map(tmp_path / "out/post.mrc")[0])
    assert fsc(sharpened, ours.map)[1 : curves.shell].min() > 0.999


def test_b_factor_of_a_map_is_found() -> None:
    """White atoms blurred by B = 150 fall off as exp(-B k²/4)."""
    generator = torch.Generator().manual_seed(1)
    density = apply_weights(torch.randn(SIZE, SIZE, SIZE, generator=generator), bfactor_weights(SIZE, PIXEL, 150.0))
    assert 4 * guinier_fit(log_amplitudes(density), SIZE, PIXEL, 10.0, 5.0).slope == pytest.approx(-150.0, abs=5.0)


def test_fit_reaches_down_where_the_resolution_is_low() -> None:
    line = guinier_fit(log_amplitudes(chain(SIZE, PIXEL)), SIZE, PIXEL, 10.0, 9.0)
    assert line.low > 10.0 and line.high == pytest.approx(9.23, abs=0.01)


def test_no_fit_where_the_map_ends_before_it_would_begin() -> None:
    line = guinier_fit(log_amplitudes(chain(SIZE, PIXEL)), SIZE, PIXEL, 10.0, 20.0)
    assert (line.slope, line.intercept, line.correlation) == (0.0, 0.0, 0.0)


def test_the_strongest_sharpening_stays_finite() -> None:
    """exp(1000/4 · k²) is past float32 in the corners of a box of 1 Å voxels, where the low-pass filter is 0."""
    generator = torch.Generator().manual_seed(5)
    common = torch.randn(32, 32, 32, generator=generator)
    first, second = (common + 0.1 * torch.randn(32, 32, 32, generator=generator) for _ in range(2))
    found = postprocess(first, second, torch.ones(32, 32, 32), 1.0, bfactor=-1000.0, lowpass=8.0)
    assert torch.isfinite(found.map).all() and found.map.std() > 0


def test_resolution_of_known_noise_and_no_gain_from_a_tight_mask() -> None:
    """Noise alone under a mask has no resolution, however tight the mask."""
    generator = torch.Generator().manual_seed(2)
    first, second = (lowpass(torch.randn(SIZE, SIZE, SIZE, generator=generator), PIXEL, 25.0) for _ in range(2))
    result = postprocess(first, second, soft_sphere(SIZE, 8.0, 2.0), PIXEL, bfactor=0.0)
    assert result.curves.shell <= 2


def test_what_lies_beyond_the_resolution_is_cut(halves: tuple[torch.Tensor, ...]) -> None:
    result = postprocess(*halves, PIXEL)
    assert result.lowpass == result.curves.resolution
    power = log_amplitudes(result.map)
    assert power[result.curves.shell + 2 :].max() < power[result.curves.shell - 2] - 5 if result.curves.shell < 22 else True
    assert torch.equal(result.masked_map, result.map * halves[2])
    assert result.mask_share == pytest.approx(float((halves[2] >= 0.5).float().mean()))


def test_weights_stop_at_the_first_shell_that_is_not_positive() -> None:
    weights = fsc_weights(torch.tensor([1.0, 0.5, -0.01, 0.9]).double())
    assert weights.tolist() == pytest.approx([1.0, (2 / 3) ** 0.5, 0.0, 0.0])


def test_mtf_is_read_in_the_detectors_pixels() -> None:
    weights = mtf_weights(16, 2.0, torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.5]), 1.0)
    assert weights[0, 0, 8] == pytest.approx(0.75)
    with pytest.raises(InputError, match="reaches 0"):
        mtf_weights(16, 1.0, torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.0]), 1.0)


def test_inputs_that_do_not_fit_are_refused(halves: tuple[torch.Tensor, ...]) -> None:
    first, second, mask = halves
    with pytest.raises(InputError, match="same map"):
        postprocess(first, first, mask, PIXEL)
    with pytest.raises(InputError, match="boxes differ"):
        postprocess(first, second[:40, :40, :40], mask, PIXEL)
    with pytest.raises(InputError, match="values from"):
        postprocess(first, second, 3 * mask, PIXEL)
