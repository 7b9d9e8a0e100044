"""What must not change a result: the order of the rows, and whether the images are kept in memory or read from disk each time."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from helpers import make_job
from refine.sets import DIAMETER, particles
from verglas.io.mrc import read_map, read_stack, write_map, write_stack
from verglas.jobs import class2d, class3d, initialmodel, refine3d
from verglas.jobs.declaration import JobType
from verglas.particles import read_particles, write_particles

COUNT, BOX, PIXEL = 80, 24, 8.0
COMMON = {"mask_diameter": DIAMETER, "threads": 1}
SPACE = {"symmetry": "D2", "ini_high": 40.0, "healpix_order": 1, "offset_range": 3.0}
FIRST = {
    "symmetry": "D2",
    "starts": 1,
    "iterations": 4,
    "sgd_fin_resol": 25.0,
    "sgd_fin_subset": 60,
    "sgd_ini_subset": 40,
    "refine_iterations": 2,
}
RUNS: dict[str, tuple[JobType, dict[str, Any], str]] = {
    "Class2D": (class2d.JOB, {"classes": 2, "iterations": 3, "psi_step": 24.0, "offset_range": 3.0}, "run_it003"),
    "Class2D without alignment": (class2d.JOB, {"classes": 2, "iterations": 3, "skip_align": True}, "run_it003"),
    "Class3D": (class3d.JOB, {**SPACE, "classes": 2, "iterations": 3}, "run_it003"),
    "Class3D near given angles": (class3d.JOB, {**SPACE, "classes": 2, "iterations": 2, "local_search_sigma": 8.0}, "run_it002"),
    "Class3D without alignment": (class3d.JOB, {**SPACE, "classes": 2, "iterations": 3, "skip_align": True}, "run_it003"),
    "Refine3D": (refine3d.JOB, {**SPACE, "iterations": 2}, "run"),
    "InitialModel": (initialmodel.JOB, FIRST, "run_it006"),
}


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("independent")
    images, table, truth = particles(COUNT, BOX, PIXEL, 0.3, 2)
    write_stack(folder / "images.mrcs", images.numpy(), PIXEL)
    write_map(folder / "map.mrc", truth.numpy(), PIXEL)
    posed = table.with_columns(class_number=None)
    order = np.random.default_rng(2).permutation(COUNT)
    write_particles(folder / "plain.star", posed)
    write_particles(folder / "shuffled.star", posed.subset(order))
    return folder


def run(what: str, table: str, out: str) -> dict[str, Any]:
    """The record of a run into the folder `out`."""
    declared, own, _ = RUNS[what]
    given: dict[str, Any] = {"particles": Path(table)}
    if "reference" in [spec.name for spec in declared.inputs]:
        given["reference"] = [Path("map.mrc")] if declared is class3d.JOB else Path("map.mrc")
    job = make_job(declared, COMMON | own, given, Path(out))
    declared.validate(job)
    assert declared.run(job).done == COUNT
    return job.record


def maps(out: str, root: str) -> dict[str, np.ndarray]:
    found = {path.name: read_map(path)[0] for path in Path(out).glob(f"{root}_*.mrc")}
    return found | {path.name: read_stack(path) for path in Path(out).glob(f"{root}_*.mrcs")}


@pytest.mark.parametrize("what", RUNS)
def test_order_of_rows_and_memory_change_nothing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: every map, and every column of every particle, whose rows stand as they were given."""
    root, name = RUNS[what][2], what.replace(" ", "_")
    kept = run(what, "plain.star", f"{name}_kept")
    run(what, "shuffled.star", f"{name}_shuffled")
    monkeypatch.setattr("verglas.jobs.refinement._PRELOAD_BYTES", 0)
    streamed = run(what, "plain.star", f"{name}_streamed")
    assert kept["preloaded"] and not streamed["preloaded"]
    reference = maps(f"{name}_kept", root)
    assert reference
    rows = read_particles(f"{name}_kept/{root}_data.star").table.set_index("image_name")
    for other, given in (("shuffled", "shuffled.star"), ("streamed", "plain.star")):
        found = maps(f"{name}_{other}", root)
        assert found.keys() == reference.keys()
        for file, values in reference.items():
            assert np.array_equal(values, found[file]), (other, file)
        table = read_particles(f"{name}_{other}/{root}_data.star").table
        assert table["image_name"].tolist() == read_particles(given).table["image_name"].tolist()
        pd.testing.assert_frame_equal(rows, table.set_index("image_name").loc[rows.index])
