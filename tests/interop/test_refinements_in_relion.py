"""`relion_refine --continue` from our optimisers: what RELION read is what we wrote, and it goes on from there as we would have."""

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import run_job
from refine.sets import DIAMETER, particles
from verglas.io.mrc import read_map, read_stack, write_map, write_stack
from verglas.io.star import list_table, numbers, read_star
from verglas.jobs import class2d, class3d, initialmodel, refine3d
from verglas.jobs.declaration import JobType
from verglas.particles import read_particles, write_particles
from verglas.scores.poses import pose_errors
from verglas.volume.fsc import fsc
from verglas.volume.masks import soft_sphere

pytestmark = pytest.mark.relion

BOX, PIXEL, COUNT = 28, 7.0, 100
COMMON = {"mask_diameter": DIAMETER, "threads": 1, "offset_range": 3.0}
SPACE = {"symmetry": "D2", "ini_high": 40.0, "healpix_order": 2}
FIRST = {"symmetry": "D2", "starts": 1, "iterations": 12, "refine_iterations": 2, "offset_range": 17.0}
RUNS: dict[str, tuple[JobType, dict[str, Any]]] = {
    "Class2D": (class2d.JOB, {"classes": 2, "iterations": 3}),
    "Class2D without alignment": (class2d.JOB, {"classes": 2, "iterations": 3, "skip_align": True}),
    "Class3D": (class3d.JOB, {**SPACE, "classes": 2, "iterations": 3}),
    "Class3D about given angles": (class3d.JOB, {**SPACE, "classes": 2, "iterations": 3, "local_search_sigma": 5.0}),
    "Class3D without alignment": (class3d.JOB, {**SPACE, "classes": 2, "iterations": 4, "skip_align": True}),
    "Refine3D": (refine3d.JOB, {**SPACE, "iterations": 4, "local_search_order": 3}),
    "InitialModel": (initialmodel.JOB, FIRST),
}
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set with a strong signal, its true map and a mask."""
    folder = tmp_path_factory.mktemp("relion")
    images, table, truth = particles(COUNT, BOX, PIXEL, 1.0, 2)
    write_stack(folder / "images.mrcs", images.numpy(), PIXEL)
    write_map(folder / "truth.mrc", truth.numpy(), PIXEL)
    write_map(folder / "mask.mrc", soft_sphere(BOX, 10.0, 3.0).numpy(), PIXEL)
    bare = table.with_columns(rot=None, tilt=None, psi=None, origin_x=None, origin_y=None, class_number=None)
    write_particles(folder / "particles.star", bare)
    write_particles(folder / "posed.star", table.with_columns(class_number=None))
    return folder


@pytest.fixture(params=list(RUNS))
def continued(request: pytest.FixtureRequest, work: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path, Path]:
    """What ran, our last iteration but for the joined one, and RELION's next; both without their endings."""
    monkeypatch.chdir(work)
    declared, own = RUNS[request.param]
    ours, theirs = Path(request.param.replace(" ", "_")), Path(request.param.replace(" ", "_") + "_on")
    last = own["iterations"] + own.get("refine_iterations", 0) if declared is not refine3d.JOB else 3
    if not theirs.exists():
        posed = own.get("skip_align") or own.get("local_search_sigma")
        inputs: dict[str, Any] = {"particles": Path("posed.star" if posed else "particles.star")}
        if declared in (class3d.JOB, refine3d.JOB):
            inputs["reference"] = [Path("truth.mrc")] if declared is class3d.JOB else Path("truth.mrc")
            inputs["mask"] = Path("mask.mrc")
        run_job(declared, COMMON | own, inputs, ours)
        theirs.mkdir()
        optimiser = f"{ours}/run_it{last:03d}_optimiser.star"
        program, end = "relion_refine", f"--iter {last + 1}"
        if own.get("skip_align"):
            end += " --skip_align"  # that RELION takes from the command line alone
        if declared is refine3d.JOB:
            program = "mpirun -n 3 --oversubscribe --mca mpi_yield_when_idle 1 relion_refine_mpi"
            end = f"--auto_iter_max {last + 1}"
        command = f"{program} --continue {optimiser} --o {theirs}/run {end} --j 1"
        done = subprocess.run(command.split(), capture_output=True, text=True, env={**os.environ, **MPI, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
        assert "is not a valid RELION argument" not in done.stdout + done.stderr
    return request.param, ours / f"run_it{last:03d}", theirs / f"run_it{last + 1:03d}"


def tables(path: Path | str) -> dict[str, pd.DataFrame]:
    return {name: pd.DataFrame([block]) if isinstance(block, dict) else block for name, block in read_star(path).items()}


def models(root: Path) -> list[Path]:
    return sorted(root.parent.glob(f"{root.name}*_model.star"))


def again(ours: Path, theirs: Path, path: Path) -> Path:
    """The file that RELION writes of what it has read, before it goes on."""
    return theirs.parent / path.name


def test_relion_has_read_what_we_wrote(continued: tuple[str, Path, Path]) -> None:
    """It writes the iteration that it begins from once more: every table, column and number of ours is in it."""
    _, ours, theirs = continued
    pairs = [(path, again(ours, theirs, path)) for path in [*models(ours), Path(f"{ours}_optimiser.star"), Path(f"{ours}_data.star")]]
    for mine, found in pairs:
        one, other = tables(mine), tables(found)
        assert set(one) == set(other), mine
        for name, table in other.items():
            assert set(table) | {NOT_OF_ALL} == set(one[name]) | {NOT_OF_ALL}, (mine, name, set(table) ^ set(one[name]))
            if name.startswith("model_pdf") and "without" in str(mine):
                continue  # with no directions to search RELION keeps none
            assert len(table) == len(one[name]), (mine, name)
            for label in table:
                if label.endswith(("Name", "Image", "File", "File2", "Mask")) or label in SAID_ANEW:
                    continue
                np.testing.assert_allclose(
                    numbers(one[name], label, mine), numbers(table, label, found), rtol=2e-5, atol=1e-5, err_msg=f"{mine} {name} {label}"
                )


NOT_OF_ALL = "rlnSpectralOrientabilityContribution"  # RELION leaves it out where it has not estimated the errors of poses
# what RELION sets as it begins
SAID_ANEW = (
    NOT_OF_ALL,
    "rlnMaxNumberOfPooledParticles",
    "rlnOverallFourierCompleteness",
    "rlnCurrentImageSize",
    "rlnCurrentResolution",
    "rlnNumberOfIterations",
    "rlnSymmetryGroup",
    "rlnMaximumCoarseImageSize",
    "rlnOrientationalPriorMode",
    "rlnAdaptiveOversampleOrder",
)


def test_tables_have_what_relions_have(continued: tuple[str, Path, Path]) -> None:
    """Names of files and tables, labels and lengths, against the next iteration, which is RELION's own."""
    what, ours, theirs = continued
    mine = {path.name.removeprefix(ours.name) for path in ours.parent.glob(f"{ours.name}_*")}
    found = {path.name.removeprefix(theirs.name) for path in theirs.parent.glob(f"{theirs.name}_*")}
    if "without" in what:  # RELION has no directions to draw
        mine = {name for name in mine if not name.endswith(".bild")}
    assert mine == found | {"_state.pt", "_state.key"}
    for name in [*(path.name.removeprefix(ours.name) for path in models(ours)), "_optimiser.star", "_sampling.star", "_data.star"]:
        one, other = tables(f"{ours}{name}"), tables(f"{theirs}{name}")
        assert set(one) == set(other), name
        for table in one:
            assert set(one[table]) | {NOT_OF_ALL} == set(other[table]) | {NOT_OF_ALL}, (name, table, set(one[table]) ^ set(other[table]))
            if "without" not in what and not (table.endswith(("directions",)) or "pdf_orient" in table):
                assert len(one[table]) == len(other[table]), (name, table)


def test_relion_goes_on_from_our_maps_and_poses(continued: tuple[str, Path, Path]) -> None:
    """One more iteration changes little: the maps are ours where there is signal, and so are most classes and poses."""
    what, ours, theirs = continued
    one, other = (read_particles(f"{root}_data.star").table.set_index("image_name") for root in (ours, theirs))
    other = other.loc[one.index]
    if what.startswith("Class2D"):
        averages, theirs_averages = (read_stack(f"{root}_classes.mrcs") for root in (ours, theirs))
        assert all(np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9 for a, b in zip(averages, theirs_averages))
        return
    for path in sorted(ours.parent.glob(f"{ours.name}_*class*.mrc")):
        mine, found = (torch.from_numpy(read_map(f"{root}{path.name.removeprefix(ours.name)}")[0]) for root in (ours, theirs))
        assert (fsc(mine, found)[1:6] > 0.95).all(), path
        assert 0.8 < float(found.std() / mine.std()) < 1.25, path
    if "half" in one:
        assert (one["half"] == other["half"]).all()
    if "without" in what:
        pd.testing.assert_frame_equal(one[["rot", "tilt", "psi"]], other[["rot", "tilt", "psi"]], atol=1e-3)
        return
    found, true = (torch.as_tensor(table[["rot", "tilt", "psi"]].to_numpy(float).copy()) for table in (other, one))
    score = pose_errors(found, true, "D2", common_rotation=False).summary()
    assert score["pose_median"] < 12.0, score  # grids of 15 and 7.5 degrees


def test_spectra_are_in_relions_units(continued: tuple[str, Path, Path]) -> None:
    """Noise, prior, weight and SSNR of our iteration against RELION's next one, in shells with signal."""
    what, ours, theirs = continued
    if what.startswith("Class2D"):
        pytest.skip("classes of 50 particles of all views move too much from one iteration to the next")
    for path in models(ours):
        mine, found = tables(path), tables(f"{theirs}{path.name.removeprefix(ours.name)}")
        noise = [numbers(star["model_group_1"], "rlnSigma2Noise", path) for star in (mine, found)]
        np.testing.assert_allclose(noise[0][3:13], noise[1][3:13], rtol=0.5)
        assert noise[0][3:13].mean() == pytest.approx(noise[1][3:13].mean(), rel=0.15)
        for number in range(1, len(mine["model_classes"]) + 1):
            of = f"model_class_{number}"
            for label, near in (("rlnReferenceTau2", 0.3), ("rlnReferenceSigma2", 0.3)):
                ratio = numbers(mine[of], label, path)[2:6] / numbers(found[of], label, path)[2:6]
                assert abs(np.log(ratio)).mean() < near, (path, of, label, ratio)
            ratio = numbers(mine[of], "rlnSsnrMap", path)[3:8] / numbers(found[of], "rlnSsnrMap", path)[3:8]
            assert abs(np.log(ratio)).mean() < 1.0, (path, of, ratio)
    shares = [numbers(tables(path)["model_classes"], "rlnClassDistribution", path) for path in (models(ours)[0], models(theirs)[0])]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.2)  # one iteration moves particles between classes


def test_the_orientation_prior_sums_to_the_class_share(continued: tuple[str, Path, Path]) -> None:
    what, ours, theirs = continued
    if what == "Class2D" or "without" in what:
        pytest.skip("no directions")
    for root in (ours, theirs):
        for path in models(root):
            star = tables(path)
            shares = numbers(star["model_classes"], "rlnClassDistribution", path)
            sums = [numbers(star[f"model_pdf_orient_class_{k + 1}"], "rlnOrientationDistribution", path).sum() for k in range(len(shares))]
            np.testing.assert_allclose(sums, shares, atol=1e-4)


def test_our_maps_in_relions_other_programs(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`relion_mask_create`, `relion_postprocess` and `relion_star_handler` on a refinement's outputs."""
    monkeypatch.chdir(work)
    declared, own = RUNS["Refine3D"]
    if not Path("Refine3D").exists():
        run_job(declared, COMMON | own, {"particles": Path("particles.star"), "reference": Path("truth.mrc")}, Path("Refine3D"))

    def relion(command: str) -> None:
        done = subprocess.run(command.split(), capture_output=True, text=True)
        assert done.returncode == 0 and "is not a valid RELION argument" not in done.stdout + done.stderr, done.stderr[-1000:]

    threshold = float(read_map("Refine3D/run_class001.mrc")[0].max()) / 4
    edges = "--extend_inimask 1 --width_soft_edge 2"
    relion(f"relion_mask_create --i Refine3D/run_class001.mrc --o made.mrc --ini_threshold {threshold} {edges}")
    assert 0.01 < read_map("made.mrc")[0].mean() < 0.6
    Path("post").mkdir(exist_ok=True)
    relion("relion_postprocess --i Refine3D/run_half1_class001_unfil.mrc --mask made.mrc --o post/p --angpix -1 --adhoc_bfac -10")
    path = Path("post/p.star")
    shells = BOX * PIXEL / float(dict(read_star(path)["general"])["rlnFinalResolution"])
    unmasked = numbers(list_table(read_star(path), "fsc", path), "rlnFourierShellCorrelationUnmaskedMaps", path)
    halves = [torch.from_numpy(read_map(f"Refine3D/run_half{half}_class001_unfil.mrc")[0]) for half in (1, 2)]
    np.testing.assert_allclose(unmasked[:12], fsc(*halves).numpy()[:12], atol=0.002)
    assert shells > 8
    relion("relion_star_handler --i Refine3D/run_data.star --o first.star --select rlnRandomSubset --minval 1 --maxval 1")
    whole, first = read_particles("Refine3D/run_data.star"), read_particles("first.star")
    assert first.table["image_name"].tolist() == whole.table["image_name"][whole.column("half") == 1].tolist()
