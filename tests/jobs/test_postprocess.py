"""PostProcess: its files are RELION's kind, its figures come from them, its faults are found before work."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import job
from helpers import make_job, run_job
from verglas.errors import InputError
from verglas.io.mrc import read_map, write_map
from verglas.io.mtf import write_mtf
from verglas.io.star import list_table, read_star
from verglas.jobs.postprocess import JOB
from verglas.volume.atoms import density_from_atoms
from verglas.volume.masks import solvent_mask
from volume.maps_for_tests import chain

SIZE, PIXEL = 40, 2.5


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two half maps and a mask, on disk."""
    folder = tmp_path_factory.mktemp("halves")
    generator = torch.Generator().manual_seed(3)
    truth = chain(SIZE, PIXEL, bfactor=200.0, radius=30.0, atoms=1200)
    for half in (1, 2):
        noisy = truth + 0.03 * torch.randn(truth.shape, generator=generator)
        write_map(folder / f"run_half{half}_class001_unfil.mrc", noisy.numpy(), PIXEL)
    write_map(folder / "mask.mrc", solvent_mask(truth, PIXEL, threshold=0.1).numpy(), PIXEL)
    return folder


def inputs(maps: Path, **more: Path) -> dict:
    return {"half1": maps / "run_half1_class001_unfil.mrc", "mask": maps / "mask.mrc", **more}


@pytest.mark.relion
def test_resolution_and_tables_are_relions(maps: Path, tmp_path: Path) -> None:
    run_job(JOB, {}, inputs(maps), tmp_path)
    metrics = JOB.measure(tmp_path, JOB.params())
    (tmp_path / "relion").mkdir()
    command = (
        f"relion_postprocess --i {maps}/run_half1_class001_unfil.mrc --mask {maps}/mask.mrc --o relion/pp --angpix {PIXEL} --auto_bfac"
    )
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    ours, theirs = read_star(tmp_path / "postprocess.star"), read_star(tmp_path / "relion/pp.star")
    assert set(theirs) <= set(ours)
    for table in ("fsc", "guinier"):
        assert set(list_table(theirs, table, "")) <= set(list_table(ours, table, ""))
    assert set(theirs["general"]) <= set(ours["general"])
    assert abs(metrics["shell"] - round(SIZE * PIXEL / float(theirs["general"]["rlnFinalResolution"]))) <= 1
    assert metrics["mask_share"] == pytest.approx(0.476 / float(ours["general"]["rlnParticleBoxFractionSolventMask"]), rel=1e-3)


@pytest.mark.relion
def test_relion_reads_our_table(maps: Path, tmp_path: Path) -> None:
    """`relion_star_printtable` finds every shell of our curves."""
    run_job(JOB, {"adhoc_bfac": -50}, inputs(maps), tmp_path)
    command = "relion_star_printtable postprocess.star data_fsc _rlnSpectralIndex _rlnFourierShellCorrelationCorrected"
    printed = subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()
    ours = list_table(read_star(tmp_path / "postprocess.star"), "fsc", "")
    assert [float(value) for value in printed[::2]] == list(range(SIZE // 2 + 1))
    assert [float(value) for value in printed[1::2]] == pytest.approx(
        ours["rlnFourierShellCorrelationCorrected"].astype(float).tolist(), abs=1e-5
    )


def test_given_b_factor_and_pictures(maps: Path, tmp_path: Path) -> None:
    run_job(JOB, {"adhoc_bfac": -80.0}, inputs(maps), tmp_path)
    metrics = JOB.measure(tmp_path, JOB.params())
    assert metrics["bfactor"] == -80.0
    assert np.allclose(
        read_map(tmp_path / "postprocess_masked.mrc")[0], read_map(tmp_path / "postprocess.mrc")[0] * read_map(maps / "mask.mrc")[0]
    )
    assert {path.name for path in tmp_path.glob("*.png")} == {f"picture_{name}.png" for name in ("fsc", "guinier", "slices", "surface")}
    checks = {check.metric: check for check in JOB.checks(JOB.params())}
    assert all((c.low is None or metrics[m] >= c.low) and (c.high is None or metrics[m] <= c.high) for m, c in checks.items())


def test_the_detectors_mtf_is_divided_out(maps: Path, tmp_path: Path) -> None:
    """By its file, in pixels of the detector: of half the map's size here, so that the map's Nyquist frequency is its 0.25."""
    frequency = np.linspace(0, 0.5, 51)
    write_mtf(tmp_path / "mtf.star", frequency, 1 - 0.8 * frequency)
    for name, more in (("without", {}), ("with", {"fn_mtf": str(tmp_path / "mtf.star"), "mtf_angpix": PIXEL / 2})):
        run_job(JOB, {"adhoc_bfac": 0.0, **more}, inputs(maps), tmp_path / name)
    sharper, plain = (np.abs(np.fft.rfftn(read_map(tmp_path / name / "postprocess.mrc")[0])[0, 0]) for name in ("with", "without"))
    shells = np.arange(1, 10)
    assert (sharper / plain)[shells] == pytest.approx(1 / (1 - 0.8 * shells / SIZE / 2), rel=0.02)


def test_model_is_placed_and_compared(tmp_path: Path) -> None:
    """A model lying elsewhere and turned is found, and the map agrees with it to about its own resolution."""
    from verglas.volume.rotations import random_rotations

    rng = np.random.default_rng(5)
    place = np.cumsum(rng.normal(size=(900, 3)) * 3, axis=0)
    place *= 28 / np.abs(place - place.mean(axis=0)).max()
    place -= place.mean(axis=0)
    density = density_from_atoms(torch.as_tensor(place), torch.full((900,), 6.0), SIZE, PIXEL, 150.0)
    generator = torch.Generator().manual_seed(4)
    for half in (1, 2):
        noisy = density + 0.01 * density.max() * torch.randn(density.shape, generator=generator)
        write_map(tmp_path / f"half{half}.mrc", noisy.numpy(), PIXEL)
    write_map(tmp_path / "mask.mrc", solvent_mask(density, PIXEL, threshold=0.05 * float(density.max())).numpy(), PIXEL)
    turned = place @ random_rotations(1, torch.Generator().manual_seed(8))[0].numpy().T + [70.0, 20.0, -40.0]
    (tmp_path / "model.pdb").write_text(_pdb(turned))
    given = {"half1": tmp_path / "half1.mrc", "mask": tmp_path / "mask.mrc", "model": tmp_path / "model.pdb"}
    run_job(JOB, {"model_bfactor": 150}, given, tmp_path / "out")
    metrics = JOB.measure(tmp_path / "out", JOB.params())
    assert metrics["model_resolution"] < 1.35 * metrics["resolution"]


def _pdb(place: np.ndarray) -> str:
    line = "ATOM  {0:5d}  C   ALA A{1:4d}    {2[0]:8.3f}{2[1]:8.3f}{2[2]:8.3f}  1.00 30.00           C\n"
    return "".join(line.format(i + 1, i + 1, xyz) for i, xyz in enumerate(place)) + "END\n"


def test_a_failed_job_tells_no_resolution(maps: Path, tmp_path: Path) -> None:
    write_map(tmp_path / "all.mrc", np.ones((SIZE,) * 3, np.float32), PIXEL)
    ran = job("PostProcess", "--half1", inputs(maps)["half1"], "--mask", tmp_path / "all.mrc", "--adhoc-bfac", "-50", out=tmp_path / "out")
    assert ran.code == 1 and "mask_share is out of its range" in ran.reasons
    assert "mask 100.00 % of the box" in ran.said
    assert not re.search(r"\d Å", ran.said + (tmp_path / "out/run.out").read_text())


def test_faults_are_found_before_work(maps: Path, tmp_path: Path) -> None:
    odd = tmp_path / "map.mrc"
    write_map(odd, np.zeros((SIZE,) * 3, np.float32), PIXEL)
    with pytest.raises(InputError, match="no 'half1'"):
        JOB.validate(make_job(JOB, {}, inputs(maps, half1=odd), tmp_path))
    with pytest.raises(InputError, match="same file"):
        JOB.validate(make_job(JOB, {}, inputs(maps, half2=maps / "run_half1_class001_unfil.mrc"), tmp_path))
    with pytest.raises(InputError, match="adhoc-bfac"):
        JOB.validate(make_job(JOB, {"do_auto_bfac": False}, inputs(maps), tmp_path))
    write_map(odd, np.ones((SIZE,) * 3, np.float32), 2 * PIXEL)
    with pytest.raises(InputError, match="pixel is 5"):
        run_job(JOB, {}, inputs(maps, mask=odd), tmp_path)
