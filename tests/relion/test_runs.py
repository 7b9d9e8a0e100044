"""RELION itself in the place of our engine: every type, through the command line and the runner, measured and judged as ours."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import Ran, job
from relion.conftest import COUNT, DIAMETER
from verglas.io.mrc import read_map, write_map
from verglas.io.star import read_star
from verglas.project.jobfiles import read_job_star
from verglas.records.table import collect
from verglas.simulate.particles import simulate_particles
from verglas.volume.postprocess import fsc_curves

pytestmark = pytest.mark.relion

COMMON = ("--engine", "relion", "--threads", 1)
REFINEMENT = (*COMMON, "--particles", "particles.star", "--mask-diameter", DIAMETER)
CLASS2D = ("Class2D", *REFINEMENT, "--classes", 2, "--iterations", 2, "--offset-range", 2)
CLASS3D = ("Class3D", *REFINEMENT, "--classes", 2, "--iterations", 1, "--symmetry", "D2", "--ini-high", 40, "--healpix-order", 1)
REFINE3D = ("Refine3D", *REFINEMENT, "--symmetry", "D2", "--ini-high", 40, "--healpix-order", 1, "--local-search-order", 2)


def passed(ran: Ran) -> None:
    assert ran.code == 0 and ran.record is not None and ran.record.verdict == "PASS", ran.said
    record = ran.record
    assert record.engine == "relion" and record.relion["version"] == record.software["relion"]
    assert f"by RELION {record.relion['version']}" in record.note
    assert all(check["held"] for check in record.checks) and record.checks


def pictures(folder: str) -> set[str]:
    return {path.stem.removeprefix("picture_") for path in Path(folder).glob("picture_*.png")}


def test_class2d_and_more_iterations_of_it(work: Path) -> None:
    ran = job(*CLASS2D, out="J")
    passed(ran)
    record = ran.record
    assert record is not None and ran.counts() == (COUNT, COUNT, 0, 0)
    assert record.iterations == 2 and record.metrics["items_out"] == COUNT and record.metrics["classes_in_file"] == 2
    assert record.resources["ranks"] == 1 and record.resources["threads"] == 1
    (command,) = record.facts["relion_commands"]
    assert command.startswith("relion_refine --o J/run --i particles.star ") and command in Path("J/note.txt").read_text()
    assert "--engine relion" in shlex.join(record.command) and "iteration 2 of 2" in ran.said and "iterations: 2/2" in ran.said
    assert "~~(,_" in Path("J/run.out").read_text() and "~~(,_" not in ran.said, "RELION's bars belong into the log alone"
    assert record.usage["cpu_s"] > 0.2 and 5e6 < record.usage["peak_memory_bytes"] < 2e8
    # what RELION took alone is told apart from the whole
    assert 0.1 < record.facts["relion_cpu_s"] < record.usage["cpu_s"] and 0 < record.facts["relion_wall_s"] < record.usage["wall_s"]
    assert [row.resources for row in collect(work)] == ["1/1/0"]
    assert pictures("J") == {"classes"}
    again = job("Class2D", "--continue", "J", "--iterations", 3)
    assert again.code == 0 and "going on after iteration 2" in again.said
    record_now = json.loads(Path("J/record.json").read_text())
    assert record_now["engine"] == "relion" and record_now["iterations"] == 3 and record_now["verdict"] == "PASS"
    assert "--continue J/run_it002_optimiser.star" in record_now["facts"]["relion_commands"][0]
    nothing = job("Class2D", "--continue", "J")
    assert nothing.code == 0 and "everything is there already" in nothing.said
    fewer = job("Class2D", "--continue", "J", "--iterations", 2)
    assert fewer.code == 0 and "going on after iteration 1" in fewer.said and not Path("J/run_it003_data.star").exists()
    other = job(*[word for word in CLASS2D if word not in ("--engine", "relion")], "--iterations", 3, out="J")
    assert other.code == 2 and "begun by the engine relion" in other.said


def test_class3d_on_two_ranks_from_a_reference_each(work: Path) -> None:
    shutil.copy("truth.mrc", "other.mrc")
    ran = job(*CLASS3D, "--ranks", 2, "--reference", "truth.mrc", "other.mrc", out="J")
    passed(ran)
    record = ran.record
    assert record is not None and ran.counts()[1] == COUNT and record.resources["ranks"] == 2
    assert record.facts["relion_commands"][0].startswith("mpirun -n 2 ") and "--ref J/references.star" in record.facts["relion_commands"][0]
    assert [row.resources for row in collect(work)] == ["2/1/0"]
    assert read_job_star(Path("J"))[1]["nr_mpi"] == "2"
    assert pictures("J") == {"classes", "slices", "directions"}


def test_initial_model_by_its_own_names(work: Path) -> None:
    """The map is a copy of RELION's; what our starts are measured by is measured of it; particles of no subset are skipped."""
    words = "--sgd_ini_iter 1 --sgd_inbetween_iter 1 --sgd_fin_iter 1 --offset_range 2"
    batches = ("--sgd-ini-subset", 20, "--sgd-fin-subset", 40, "--sgd-fin-resol", 20, "--symmetry", "D2")
    ran = job("InitialModel", *REFINEMENT, *batches, f"--relion-args={words}", out="J")
    record = ran.record
    assert record is not None and record.exit["code"] == 0, ran.said
    assert Path("J/initial_model.mrc").read_bytes() == Path("J/run_it003_class001.mrc").read_bytes()
    assert "agreement" not in [check["metric"] for check in record.checks]
    metrics = record.metrics or record.rejected_metrics
    assert metrics["starts"] == 1 and metrics["gain_over_sphere"] > 0 and metrics["items_out"] == record.items["done"]  # type: ignore[index]
    total, done, skipped, failed = ran.counts()
    assert total == COUNT and done + skipped == COUNT and done >= 20 and failed == 0
    assert record.iterations == 3 and record.relion["extra"] == words.split()
    assert ran.code == 0, ran.reasons
    assert pictures("J") == {"slices", "surface"}


def test_refine3d_joins_the_halves_at_the_most_iterations(work: Path) -> None:
    ran = job(*REFINE3D, "--reference", "truth.mrc", "--iterations", 1, out="J")
    passed(ran)
    record = ran.record
    assert record is not None and record.resources["ranks"] == 3
    assert record.metrics["iterations"] == 2
    assert ran.counts()[1] == COUNT and any("not converged after 1 iterations" in warning for warning in record.warnings)
    first, second = record.facts["relion_commands"]
    assert "relion_refine_mpi" in first and "--auto_iter_max 1" in first and "--force_converge" in second
    # the leader and two workers: each alone takes about 40 MB
    assert record.usage["peak_memory_bytes"] > 8e7 and record.usage["cpu_s"] > 1
    assert pictures("J") == {"fsc", "slices", "surface", "directions"}


def test_mask_and_postprocess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their figures are those of our own curves from the same maps."""
    monkeypatch.chdir(tmp_path)
    size, pixel = 48, 4.0
    truth = simulate_particles(2, size, pixel)[2].numpy()
    noise = np.random.default_rng(1).normal(0, 0.4 * truth.std(), (2, *truth.shape))
    write_map("truth.mrc", truth, pixel)
    for half in (1, 2):
        write_map(f"half{half}.mrc", (truth + noise[half - 1]).astype(np.float32), pixel)
    mask = job("MaskCreate", *COMMON, "--map", "truth.mrc", "--inimask-threshold", float(truth.max()) / 8, out="M")
    passed(mask)
    assert mask.record is not None and mask.record.metrics["threshold"] == pytest.approx(float(truth.max()) / 8)
    words = ("--half1", "half1.mrc", "--mask", "M/mask.mrc", "--adhoc-bfac", -50)
    ran = job("PostProcess", "--engine", "relion", *words, out="P")
    passed(ran)
    general = dict(read_star("P/postprocess.star")["general"])
    assert ran.record is not None
    found = ran.record.metrics
    assert found["resolution"] == float(general["rlnFinalResolution"]) and found["bfactor"] == -50
    assert found["mask_share"] == mask.record.metrics["mask_share"]
    maps = [torch.from_numpy(read_map(name)[0]) for name in ("half1.mrc", "half2.mrc", "M/mask.mrc")]
    curves = fsc_curves(maps[0], maps[1], maps[2], pixel)
    assert found["shell"] == pytest.approx(curves.shell, abs=1)
    assert pictures("M") == {"slices", "surface"} and pictures("P") == {"fsc", "slices", "surface"}
    assert found["randomised_from"] == pytest.approx(size * pixel / curves.randomised_from, abs=0.01)
