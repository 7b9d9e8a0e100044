"""MaskCreate: its files against RELION's program, its threshold rules, its measured share."""

import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from helpers import make_job, run_job
from verglas.errors import InputError
from verglas.io.mrc import read_map, write_map
from verglas.jobs.maskcreate import JOB
from verglas.volume.masks import PROTEIN_VOLUME
from volume.maps_for_tests import chain


@pytest.fixture(scope="module")
def density(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map") / "map.mrc"
    write_map(path, chain(40, 2.5).numpy(), 2.5)
    return path


def passes(metrics: dict, params: dict) -> bool:
    return all(
        (check.low is None or metrics[check.metric] >= check.low) and (check.high is None or metrics[check.metric] <= check.high)
        for check in JOB.checks(JOB.params(**params))
    )


@pytest.mark.relion
def test_mask_is_relions(density: Path, tmp_path: Path) -> None:
    params = {"inimask_threshold": 0.2, "lowpass_filter": 15, "extend_inimask": 3, "width_mask_edge": 4}
    run_job(JOB, params, {"map": density}, tmp_path)
    command = f"relion_mask_create --i {density} --o relion.mrc --lowpass 15 --ini_threshold 0.2 --extend_inimask 3 --width_soft_edge 4"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    assert np.abs(read_map(tmp_path / "mask.mrc")[0] - mrcfile.read(tmp_path / "relion.mrc")).max() < 1e-6


@pytest.mark.parametrize("params", [{"molecular_weight": 40.0}, {}])
def test_threshold_is_found_and_the_true_share_measured(density: Path, tmp_path: Path, params: dict) -> None:
    items = run_job(JOB, params, {"map": density}, tmp_path)
    metrics = JOB.measure(tmp_path, JOB.params(**params))
    mask, pixel_size = read_map(tmp_path / "mask.mrc")
    assert items.done == 1 and pixel_size == 2.5
    assert metrics["mask_share"] == pytest.approx((mask >= 0.5).mean())
    assert passes(metrics, params)
    if params:
        assert metrics["protein_volumes"] == pytest.approx((mask >= 0.5).sum() * 2.5**3 / (40_000 * PROTEIN_VOLUME))
    assert (tmp_path / "picture_slices.png").stat().st_size > 5000


def test_a_mask_of_almost_nothing_fails_its_check(density: Path, tmp_path: Path) -> None:
    params = {"inimask_threshold": 0.98, "lowpass_filter": 0, "extend_inimask": 0, "width_mask_edge": 0}
    run_job(JOB, params, {"map": density}, tmp_path)
    assert not passes(JOB.measure(tmp_path, JOB.params(**params)), params)


def test_nonsense_is_refused_before_work(density: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="smaller than the protein"):
        JOB.validate(make_job(JOB, {"extend_inimask": -2, "molecular_weight": 100}, {"map": density}, tmp_path))
    with pytest.raises(InputError, match="no voxel"):
        run_job(JOB, {"inimask_threshold": 1e6}, {"map": density}, tmp_path)
    assert not (tmp_path / "mask.mrc").exists()
