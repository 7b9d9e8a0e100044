"""CtfFind on folders of small micrographs: table, pictures, faults, going on."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import make_job, run_job
from micrograph.test_ctf_estimation import SCOPE, made_micrograph
from verglas.errors import InputError, JobAborted
from verglas.io.mrc import read_image, write_image
from verglas.io.star import read_star, write_star
from verglas.jobs.ctffind import JOB

QUICK = {"box": 256, "threads": 1}


def write_table(folder: Path, rows: dict[str, list[str]]) -> Path:
    optics = {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnMicrographOriginalPixelSize": [1.4],
        "rlnMicrographPixelSize": [1.4],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
    }
    rows = rows | {"rlnOpticsGroup": ["1"] * len(next(iter(rows.values())))}
    write_star(folder / "mics.star", {"optics": pd.DataFrame(optics), "micrographs": pd.DataFrame(rows)})
    return Path("mics.star")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return made_micrograph(15000.0, 14500.0, 35.0, 1.4, SCOPE, size=512).numpy()


@pytest.fixture
def project(tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mics").mkdir()
    for name in ("a", "b.1", "b.2"):
        write_image(tmp_path / f"mics/{name}.mrc", image, 1.4)
    write_table(tmp_path, {"rlnMicrographName": [f"mics/{name}.mrc" for name in ("a", "b.1", "b.2")]})
    return tmp_path


def run(out: str = "CtfFind/job003", **params: object):
    return run_job(JOB, QUICK | params, {"micrographs": Path("mics.star")}, Path(out))


def test_table_pictures_and_values(project: Path) -> None:
    items = run()
    assert (items.done, items.failed) == (3, 0)
    rows = read_star("CtfFind/job003/micrographs_ctf.star")["micrographs"]
    assert rows["rlnCtfImage"].tolist() == [f"CtfFind/job003/mics/{name}.ctf:mrc" for name in ("a", "b.1", "b.2")]
    for label, value, within in (
        ("rlnDefocusU", 15000, 160),
        ("rlnDefocusV", 14500, 160),
        ("rlnCtfAstigmatism", 500, 200),
        ("rlnDefocusAngle", 35, 8),
    ):
        assert rows[label].astype(float).tolist() == pytest.approx([value] * 3, abs=within)
    assert (rows["rlnCtfMaxResolution"].astype(float) < 7).all()
    assert read_image("CtfFind/job003/mics/b.1.ctf").shape == (256, 256)
    assert all(
        Path(f"CtfFind/job003/{name}").stat().st_size > 5000 for name in ("picture_ctf.png", "picture_ctf_all.png", "mics/a_ctf.png")
    )
    metrics = JOB.measure(Path("CtfFind/job003"), JOB.params(**QUICK))
    for check in JOB.checks(JOB.params(**QUICK)):
        value = metrics[check.metric]
        assert (check.low is None or value >= check.low) and (check.high is None or value <= check.high), check


def test_checks_fail_on_noise(project: Path) -> None:
    noise = torch.randn(768, 768, generator=torch.Generator().manual_seed(1)).numpy()
    write_image("mics/a.mrc", noise, 1.4)
    write_table(project, {"rlnMicrographName": ["mics/a.mrc"]})
    run(box=512)
    metrics = JOB.measure(Path("CtfFind/job003"), JOB.params(box=512))
    broken = [
        check.metric
        for check in JOB.checks(JOB.params(box=512))
        if (check.low is not None and metrics[check.metric] < check.low) or (check.high is not None and metrics[check.metric] > check.high)
    ]
    assert "figure_of_merit_median" in broken


def test_power_spectrum_of_motioncorr_is_used(project: Path, image: np.ndarray) -> None:
    """A spectrum at another defocus beside the micrograph tells which of the two was fitted."""
    from verglas.micrograph.power_spectrum import power_spectrum

    other = power_spectrum(made_micrograph(21000.0, 21000.0, 0.0, 1.4, SCOPE, size=512), 256).sqrt()
    full = torch.fft.fftshift(torch.cat([other, torch.roll(other[:, 1:-1].flip(0, 1), 1, dims=0)], dim=1))
    write_image("mics/a_PS.mrc", full.numpy(), 1.4)
    write_table(project, {"rlnMicrographName": ["mics/a.mrc"], "rlnCtfPowerSpectrum": ["mics/a_PS.mrc"]})
    for out, given, defocus in (("with", True, 21000), ("without", False, 15000)):
        run(out, use_given_ps=given)
        found = float(read_star(f"{out}/micrographs_ctf.star")["micrographs"]["rlnDefocusU"][0])
        assert found == pytest.approx(defocus, abs=250)


def test_bad_micrographs_are_named(project: Path) -> None:
    write_image("mics/flat.mrc", np.ones((512, 512), np.float32), 1.4)
    write_image("mics/tiny.mrc", np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32), 1.4)
    whole = Path("mics/a.mrc").read_bytes()
    Path("mics/cut.mrc").write_bytes(whole[: len(whole) // 2])
    bad = ["mics/flat.mrc", "mics/tiny.mrc", "mics/cut.mrc", "mics/missing.mrc"]
    write_table(project, {"rlnMicrographName": ["mics/a.mrc", *bad]})
    items = run()
    assert (items.done, items.failed) == (1, 4)
    assert [problem.item for problem in items.problems] == bad
    assert len(read_star("CtfFind/job003/micrographs_ctf.star")["micrographs"]) == 1
    write_table(project, {"rlnMicrographName": bad})
    with pytest.raises(InputError, match="no CTF of 4"):
        run("none")


def test_going_on_does_only_what_is_missing(project: Path) -> None:
    run("undisturbed")
    out = Path("CtfFind/job003")
    job = make_job(JOB, QUICK, {"micrographs": Path("mics.star")}, out, stop_after=0)
    with pytest.raises(JobAborted):
        JOB.run(job)
    run()
    time = (out / "mics/a.ctf").stat().st_mtime_ns
    (out / "mics/b.1.ctf").write_bytes(b"cut")
    (out / "mics/b.2_ctf.star").unlink()
    run()
    assert (out / "mics/a.ctf").stat().st_mtime_ns == time
    texts = [(folder / "micrographs_ctf.star").read_text().replace(str(folder), "X") for folder in (out, Path("undisturbed"))]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"box": 255}, "even"),
        ({"resmin": 5.0, "resmax": 30.0}, "larger"),
        ({"dfmin": 6e4}, "range"),
        ({"do_phaseshift": True, "phase_min": 90.0, "phase_max": 10.0}, "smaller"),
        ({"use_noDW": True}, "save-noDW"),
    ],
)
def test_impossible_settings_are_refused_before_work(project: Path, params: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(**params)
    assert not list(Path("CtfFind").rglob("*.ctf"))


@pytest.mark.relion
def test_relion_keeps_every_row_and_value(project: Path) -> None:
    import subprocess

    assert shutil.which("relion_star_handler")
    run()
    table = "CtfFind/job003/micrographs_ctf.star"
    program = ["relion_star_handler", "--i", table, "--o", "copy.star", "--select", "rlnDefocusU", "--minval", "0", "--maxval", "100000"]
    subprocess.run(program, check=True, capture_output=True)
    ours, theirs = read_star(table)["micrographs"], read_star("copy.star")["micrographs"]
    for label in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnCtfMaxResolution", "rlnCtfFigureOfMerit"):
        assert np.allclose(ours[label].astype(float), theirs[label].astype(float), rtol=1e-5)
    assert ours["rlnCtfImage"].tolist() == theirs["rlnCtfImage"].tolist()
