"""Filters against RELION's program and against the Gaussian's formula."""

import subprocess
from pathlib import Path

import mrcfile
import pytest
import torch

from verglas.io.mrc import write_map
from verglas.volume.filters import apply_weights, bfactor_weights, lowpass, shell_weights
from volume.maps_for_tests import chain, gaussian


@pytest.mark.relion
@pytest.mark.parametrize("resolution", [30.0, 12.0])
def test_lowpass_is_relions(tmp_path: Path, resolution: float) -> None:
    density = chain(36, 2.5)
    write_map(tmp_path / "map.mrc", density.numpy(), 2.5)
    command = f"relion_image_handler --i map.mrc --o low.mrc --lowpass {resolution} --angpix 2.5"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    theirs = torch.tensor(mrcfile.read(tmp_path / "low.mrc"))
    assert (lowpass(density, 2.5, resolution) - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_bfactor_widens_a_gaussian_as_the_formula_says() -> None:
    sigma, bfactor, pixel_size = 6.0, 800.0, 2.0
    wider = (sigma**2 + bfactor / (8 * torch.pi**2)) ** 0.5
    expected = gaussian(48, pixel_size, (4, -2, 6), wider) * (sigma / wider) ** 3
    found = apply_weights(gaussian(48, pixel_size, (4, -2, 6), sigma), bfactor_weights(48, pixel_size, bfactor))
    assert torch.allclose(found, expected, atol=1e-5)


def test_bfactor_and_its_negative_cancel() -> None:
    density = chain(32, 2.5)
    sharper, back = (bfactor_weights(32, 2.5, bfactor) for bfactor in (-100.0, 100.0))
    assert torch.allclose(apply_weights(apply_weights(density, sharper), back), density, atol=1e-5)


def test_shell_weights_follow_the_curve_and_end_with_it() -> None:
    weights = shell_weights(torch.tensor([1.0, 0.5, 0.25]), 8, dims=2)
    assert weights[0, :4].tolist() == [1.0, 0.5, 0.25, 0.0]
    assert weights[1, 1] == 0.5 and weights[-2, 0] == 0.25
