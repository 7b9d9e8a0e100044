"""Masks against RELION's program and against geometry."""

import subprocess
from pathlib import Path

import mrcfile
import pytest
import torch

from verglas.errors import InputError
from verglas.io.mrc import write_map
from verglas.volume.masks import (
    PROTEIN_VOLUME,
    otsu_threshold,
    raised_cosine,
    share_of_box,
    soft_circle,
    soft_sphere,
    solvent_mask,
    threshold_for_mass,
)
from volume.maps_for_tests import ball, chain


@pytest.mark.relion
@pytest.mark.parametrize(
    ("lowpass", "threshold", "extend", "edge"), [(15, 0.2, 3, 3), (12, 0.3, 0, 6), (0, 0.4, 2.5, 4.5), (20, 0.1, -2, 3)]
)
def test_solvent_mask_is_relions(tmp_path: Path, lowpass: float, threshold: float, extend: float, edge: float) -> None:
    density, pixel_size = chain(40, 2.5), 2.5
    write_map(tmp_path / "map.mrc", density.numpy(), pixel_size)
    command = f"relion_mask_create --i map.mrc --o mask.mrc --ini_threshold {threshold} --extend_inimask {extend} --width_soft_edge {edge}"
    command += f" --lowpass {lowpass} --angpix {pixel_size}" if lowpass else ""
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    theirs = torch.tensor(mrcfile.read(tmp_path / "mask.mrc"))
    ours = solvent_mask(density, pixel_size, threshold=threshold, lowpass_resolution=lowpass, extend=extend, edge=edge)
    assert 0 < share_of_box(theirs) < 0.5
    assert (ours - theirs).abs().max() < 1e-6


def test_shares_of_sphere_and_circle() -> None:
    assert share_of_box(soft_sphere(64, 20.0, 0.0)) == pytest.approx(4 / 3 * torch.pi * 20**3 / 64**3, rel=0.01)
    assert share_of_box(soft_circle(64, 20.0, 0.0)) == pytest.approx(torch.pi * 400 / 64**2, rel=0.01)


@pytest.mark.parametrize("size", [32, 33])
def test_edge_is_a_raised_cosine_about_the_centre(size: int) -> None:
    line = soft_sphere(size, 6.0, 4.0)[size // 2, size // 2, size // 2 :]
    expected = raised_cosine(torch.arange(len(line)) - 6.0, 4.0)
    assert torch.allclose(line, expected, atol=1e-6)
    assert line[6] == 1 and line[10] == 0 and line[8] == pytest.approx(0.5)


def test_threshold_for_mass_holds_the_proteins_volume() -> None:
    density = chain(48, 2.0)
    threshold = threshold_for_mass(density, 2.0, mass=30.0)
    assert int((density >= threshold).sum()) == round(30_000 * PROTEIN_VOLUME / 8)
    with pytest.raises(InputError, match="fill"):
        threshold_for_mass(density, 2.0, mass=3000.0)


def test_otsu_parts_two_levels() -> None:
    noise = 0.1 * torch.randn(40, 40, 40, generator=torch.Generator().manual_seed(1))
    found = otsu_threshold(ball(40, 9.0) + noise)
    assert 0.35 < found < 0.65


def test_a_threshold_that_takes_nothing_or_everything_is_refused() -> None:
    density = ball(24, 6.0)
    with pytest.raises(InputError, match="no voxel"):
        solvent_mask(density, 1.0, threshold=2.0, lowpass_resolution=0)
    with pytest.raises(InputError, match="every voxel"):
        solvent_mask(density, 1.0, threshold=-1.0, lowpass_resolution=0)
