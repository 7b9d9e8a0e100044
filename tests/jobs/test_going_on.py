"""A run gone on with from any of its iterations ends as it did the first time, to the bit."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from command_line import job
from refine.sets import DIAMETER, particles
from verglas.io.mrc import read_map, write_map, write_stack
from verglas.particles import write_particles
from verglas.records.record import read_record
from workflow.commands import wait_until_free
from workflow.killed import KILLED, run_and_kill

COMMON = ("--particles", "particles.star", "--mask-diameter", DIAMETER, "--threads", 1, "--offset-range", 3)
SPACE = (*COMMON, "--reference", "map.mrc", "--symmetry", "D2", "--healpix-order", 1, "--ini-high", 40)
FIRST = ("--symmetry", "D2", "--starts", 2, "--iterations", 4, "--sgd-fin-resol", 25, "--refine-iterations", 3)
RUNS = {
    "Class2D": (("Class2D", *COMMON, "--classes", 2, "--iterations", 4, "--psi-step", 24), 4),
    "Class3D": (("Class3D", *SPACE, "--classes", 2, "--iterations", 4), 4),
    "Refine3D": (("Refine3D", *SPACE, "--local-search-order", 2, "--iterations", 4), 4),
    "InitialModel": (("InitialModel", *COMMON[:6], *FIRST), 7),
}


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("on")
    images, table, truth = particles(80, 24, 8.0, 0.3)
    write_stack(folder / "images.mrcs", images.numpy(), 8.0)
    bare = table.with_columns(rot=None, tilt=None, psi=None, origin_x=None, origin_y=None, class_number=None)
    write_particles(folder / "particles.star", bare)
    write_map(folder / "map.mrc", truth.numpy(), 8.0)
    return folder


def files(folder: str) -> dict[str, bytes]:
    """Tables and maps that the engine wrote, without the maps' headers, which hold the time."""
    tables = {path.name: path.read_bytes() for path in Path(folder).glob("run_*") if path.suffix in (".star", ".bild")}
    return tables | {path.name: path.read_bytes()[1024:] for path in Path(folder).glob("run_*.mrc*")}


@pytest.mark.parametrize("name", RUNS)
def test_from_any_iteration_to_the_same_end(name: str) -> None:
    words, last = RUNS[name]
    assert job(*words, out=name).code == 0
    whole = files(name)
    written = sorted(int(path.name[6:9]) for path in Path(name).glob("run_it*_optimiser.star"))
    assert name == "Refine3D" or written[-1] == last
    for number in (written[0], written[-2]):
        before = Path(name, f"run_it{number:03d}_data.star").stat().st_mtime_ns
        again = job(name, "--continue", f"{name}/run_it{number:03d}_optimiser.star")
        assert again.code == 0 and f"going on after iteration {number}" in again.said, again.said
        assert Path(name, f"run_it{number:03d}_data.star").stat().st_mtime_ns == before
        assert Path(name, f"run_it{number + 1:03d}_data.star").stat().st_mtime_ns > before
        assert files(name) == whole
    # what is already done stays done
    assert job(name, "--continue", name).code == 0
    assert files(name) == whole


def test_an_iteration_that_is_not_there_is_said_before_anything_is_removed() -> None:
    words, _ = RUNS["Class2D"]
    if not Path("Class2D").exists():
        assert job(*words, out="Class2D").code == 0
    before = files("Class2D")
    missing = job("Class2D", "--continue", "Class2D/run_it009_optimiser.star")
    assert missing.code == 2 and "run_it009_optimiser.star: is not there" in missing.said
    Path("Class2D/run_it002_state.pt").rename("kept.pt")
    gone = job("Class2D", "--continue", "Class2D/run_it002_optimiser.star")
    assert gone.code == 2 and "has no exact state" in gone.said
    Path("kept.pt").rename("Class2D/run_it002_state.pt")
    assert files("Class2D") == before


def test_an_iteration_whose_maps_are_gone_is_passed_over() -> None:
    words, _ = RUNS["Class2D"]
    if not Path("Class2D").exists():
        assert job(*words, out="Class2D").code == 0
    whole = files("Class2D")
    shutil.copytree("Class2D", "torn")
    for name in ("run_it003_classes.mrcs", "run_it004_classes.mrcs"):
        Path("torn", name).unlink()
    again = job("Class2D", "--continue", "torn")
    assert again.code == 0 and "going on after iteration 2" in again.said, again.said
    assert files("torn")["run_it004_classes.mrcs"] == whole["run_it004_classes.mrcs"]


def test_an_iteration_whose_state_is_damaged_is_passed_over() -> None:
    words, _ = RUNS["Class2D"]
    if not Path("Class2D").exists():
        assert job(*words, out="Class2D").code == 0
    shutil.copytree("Class2D", "cut")
    state = Path("cut/run_it004_state.pt")
    state.write_bytes(state.read_bytes()[:-500])
    again = job("Class2D", "--continue", "cut")
    assert again.code == 0 and "going on after iteration 3" in again.said, again.said
    for name in ("run_it004_classes.mrcs", "run_it004_data.star"):
        assert files("cut")[name] == files("Class2D")[name]


def test_fewer_iterations_take_an_earlier_one() -> None:
    words, _ = RUNS["Class3D"]
    if not Path("Class3D").exists():
        assert job(*words, out="Class3D").code == 0
    whole = files("Class3D")
    fewer = job("Class3D", "--continue", "Class3D", "--iterations", 3)
    assert fewer.code == 0 and "going on after iteration 2" in fewer.said, fewer.said
    assert files("Class3D")["run_it003_class001.mrc"] == whole["run_it003_class001.mrc"]
    assert files("Class3D").keys() == {name for name in whole if "it004" not in name}
    record = read_record(Path("Class3D"))
    assert record is not None and record.iterations == 3


def test_a_killed_start_goes_on_to_the_same_bits_and_may_be_refined_further() -> None:
    """SIGKILL in the second iteration of the second start; then more iterations of all particles, but not of the finished starts."""
    words, _ = RUNS["InitialModel"]
    if not Path("InitialModel").exists():
        assert job(*words, out="InitialModel").code == 0
    whole = files("InitialModel")
    shorter = ("--refine-iterations", 1)
    assert run_and_kill(lambda: job(*words, *shorter, out="killed").code, 7)[0] == KILLED
    wait_until_free(Path("killed"))
    again = job(*words, *shorter, out="killed")
    assert again.code == 0 and "start 1: going on after iteration 4" in again.said and "start 2: going on after iteration 1" in again.said
    more = job("InitialModel", "--continue", "killed", "--refine-iterations", 3)
    assert more.code == 0 and "going on after iteration 5" in more.said, more.said
    found = files("killed")
    assert all(found[name] == whole[name] for name in whole if name.endswith(".mrc"))
    assert np.array_equal(*(read_map(f"{folder}/initial_model.mrc")[0] for folder in ("InitialModel", "killed")))
    other = job("InitialModel", "--continue", "killed", "--iterations", 6)
    assert other.code == 2 and "was begun with other parameters: iterations 4 → 6" in other.said
    start = job("InitialModel", "--continue", "killed/start1/run_it004_optimiser.star")
    assert start.code == 2 and "is not there" in start.said
