"""kill -9 in the middle of every job, twice; then the same command goes on and ends as if nothing had happened (CASES.md, 19)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from command_line import job
from micrograph.test_ctf_estimation import SCOPE, made_micrograph
from refine.sets import DIAMETER, particles
from synthetic_micrographs import CTF, micrograph
from synthetic_micrographs import PIXEL as PICKED_PIXEL
from verglas.io.atomic import is_temporary
from verglas.io.coordinates import write_coordinates
from verglas.io.movie import write_movie
from verglas.io.mrc import read_stack, write_image, write_map, write_stack
from verglas.jobs.registry import job_type
from verglas.particles import Micrographs, OpticsGroups, read_micrographs, write_micrographs, write_particles
from verglas.volume.masks import solvent_mask
from workflow.commands import wait_until_free
from workflow.killed import KILLED, run_and_kill

ENGINE = ("--particles", "particles.star", "--mask-diameter", DIAMETER, "--threads", 1)
FIRST = ("--starts", 2, "--iterations", 4, "--refine-iterations", 1, "--sgd-fin-resol", 25)
BY_MICROGRAPH = ("--micrographs", "picked.star", "--threads", 1)


@dataclass(frozen=True)
class Killable:
    """A job's command, and the files that tell that an item of it (or an iteration) is finished."""

    words: tuple[object, ...]
    finished: str = ""  # pattern of the file that is written last for an item
    beside: str = "none"  # pattern of files that belong to it, with {stem} for what the first one's * stood for


JOBS = {
    "Import": Killable(("--files", "m/*.tif", "--pixel-size", 2.0)),
    "MotionCorr": Killable(
        ("--movies", "movies.star", "--patch-x", 1, "--patch-y", 1, "--ps-size", 64, "--threads", 1), "m/*.star", "m/{stem}*"
    ),
    "CtfFind": Killable(("--micrographs", "mics.star", "--box", 256, "--threads", 1), "c/*_ctf.star", "c/{stem}.ctf"),
    "AutoPick": Killable((*BY_MICROGRAPH, "--log-diam-min", 90, "--log-diam-max", 120, "--no-log-refine"), "candidates/p/*.star"),
    "Extract": Killable(
        (*BY_MICROGRAPH, "--coordinates", "picks/coords_suffix_autopick.star", "--box-size", 48), "p/*_extract.star", "p/{stem}.mrcs"
    ),
    "Class2D": Killable((*ENGINE, "--classes", 2, "--iterations", 3, "--psi-step", 24), "run_it*_optimiser.star", "run_it{stem}_data.star"),
    "Class3D": Killable(
        (*ENGINE, "--reference", "map.mrc", "--classes", 1, "--iterations", 3, "--symmetry", "D2", "--healpix-order", 1),
        "run_it*_optimiser.star",
        "run_it{stem}_data.star",
    ),
    "Refine3D": Killable(
        (*ENGINE, "--reference", "map.mrc", "--symmetry", "D2", "--healpix-order", 1, "--iterations", 3),
        "run_it*_optimiser.star",
        "run_it{stem}_data.star",
    ),
    "InitialModel": Killable(
        (*ENGINE, "--symmetry", "D2", *FIRST, "--write-every", 1),
        "start*/run_it002_class001.mrc",
    ),
    "Select": Killable(("--action", "split", "--particles", "particles.star", "--nr-split", 3)),
    "JoinStar": Killable(("--files", "particles.star", "other.star")),
    "MaskCreate": Killable(("--map", "map.mrc", "--inimask-threshold", 0.2)),
    "PostProcess": Killable(("--half1", "run_half1_class001_unfil.mrc", "--mask", "mask.mrc")),
}


def listed(names: list[str], pixel: float, **columns: object) -> Micrographs:
    """A table of micrographs of one microscope."""
    optics: dict[str, object] = {"name": "opticsGroup1", "optics_group": 1, "movie_pixel_size": pixel, "micrograph_pixel_size": pixel}
    optics |= {"voltage": 200.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}
    return Micrographs(OpticsGroups(pd.DataFrame([optics])), pd.DataFrame({"micrograph_name": names, "optics_group": 1, **columns}))


def make_movies() -> None:
    from micrograph.made_movies import make_movie

    Path("m").mkdir()
    counts = make_movie(shape=(128, 128), frames=4, blobs=200, drift_px=3).counts.numpy().astype(np.uint8)
    for number in range(3):
        write_movie(f"m/{number}.tif", counts, 2.5)
    table = listed([f"m/{number}.tif" for number in range(3)], 2.5)
    movies = Micrographs(
        table.optics.with_columns(micrograph_pixel_size=None), table.table.rename(columns={"micrograph_name": "movie_name"})
    )
    write_micrographs("movies.star", movies)


def make_micrographs() -> None:
    rings = made_micrograph(15000.0, 14500.0, 35.0, 1.4, SCOPE, size=512).numpy()
    for number in range(3):
        write_image(f"c/{number}.mrc", rings, 1.4)
    table = listed([f"c/{number}.mrc" for number in range(3)], 1.4)
    write_micrographs("mics.star", Micrographs(table.optics.with_columns(voltage=300.0), table.table))
    names = [f"p/{number}.mrc" for number in range(3)]
    for number, name in enumerate(names):
        scene = micrograph(number, (400, 420), 12)
        write_image(name, scene.image.numpy(), PICKED_PIXEL)
        picks = pd.DataFrame({"coordinate_x": scene.xy[:, 0], "coordinate_y": scene.xy[:, 1]})
        write_coordinates(f"picks/p/{number}_autopick.star", picks)
    lens = {name: CTF[name] for name in ("defocus_u", "defocus_v", "defocus_angle")}
    write_micrographs("picked.star", listed(names, PICKED_PIXEL, **lens))
    Path("picks/coords_suffix_autopick.star").write_text("picked.star\n")


def make_particles() -> None:
    images, table, truth = particles(120, 24, 8.0, 0.3)
    write_stack("images.mrcs", images.numpy(), 8.0)
    bare = table.with_columns(rot=None, tilt=None, psi=None, origin_x=None, origin_y=None, class_number=None)
    write_particles("particles.star", bare)
    write_particles("other.star", bare.with_optics(voltage=300.0))
    write_map("map.mrc", (truth / truth.max()).numpy(), 8.0)
    random = np.random.default_rng(0)
    for half in (1, 2):
        noise = random.normal(0, 0.3 * float(truth.std()), truth.shape).astype(np.float32)
        write_map(f"run_half{half}_class001_unfil.mrc", truth.numpy() + noise, 8.0)
    write_map("mask.mrc", solvent_mask(truth, 8.0, threshold=0.2 * float(truth.max())).numpy(), 8.0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small inputs for every job."""
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for make in (make_movies, make_micrographs, make_particles):
            make()
    return folder


def stamps(folder: Path, kind: Killable) -> dict[Path, int]:
    """Times of the files of all finished items."""
    found: dict[Path, int] = {}
    if kind.finished:
        before, after = kind.finished.split("*")
        for last in folder.glob(kind.finished):
            stem = str(last.relative_to(folder))[len(before) : -len(after)]
            found |= {path: path.stat().st_mtime_ns for path in [last, *folder.glob(kind.beside.format(stem=stem))]}
    return {path: time for path, time in found.items() if not is_temporary(path)}


def assert_equal_outputs(name: str, one: Path, two: Path, params: object) -> None:
    """Tables are the same to the last letter but for the folder's name, maps and images to summation order."""
    for spec in job_type(name).outputs(params):
        first, second = one / spec.path, two / spec.path
        if spec.path.endswith(".star"):
            assert first.read_text().replace(str(one), "X") == second.read_text().replace(str(two), "X"), spec.path
        elif ".mrc" in spec.path:
            whole, again = read_stack(first), read_stack(second)
            assert np.abs(whole - again).max() <= 1e-5 * whole.std(), spec.path


@pytest.mark.parametrize("name", JOBS)
def test_case_19_killed_twice_and_gone_on(name: str, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 19: SIGKILL to runner and job before a third of the files are in place, again half-way; the same command ends it all."""
    monkeypatch.chdir(inputs)
    monkeypatch.setattr("verglas.pictures.maps.draw_surface", lambda *_, **__: None)  # takes longer than all the rest
    kind, whole, killed = JOBS[name], Path(f"{name}_whole"), Path(f"{name}_killed")

    def command(out: Path) -> Callable[[], int]:
        return lambda: job(name, *kind.words, out=out).code

    code, files = run_and_kill(command(whole))
    assert code == 0, job(name, *kind.words, out=f"{name}_why").reasons
    assert run_and_kill(command(killed), max(1, files // 3))[0] == KILLED
    wait_until_free(killed)
    before = stamps(killed, kind)
    if files > 2:
        assert run_and_kill(command(killed), max(1, files // 2), after=True)[0] == KILLED
        wait_until_free(killed)
    assert not (killed / "RELION_JOB_EXIT_SUCCESS").exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    finished = stamps(killed, kind)
    assert finished or not kind.finished
    ended = job(name, *kind.words, out=killed)
    assert ended.code == 0 and ended.record is not None and ended.record.verdict == "PASS", ended.reasons
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "finished items were done again"
    assert_equal_outputs(name, whole, killed, job_type(name).params(**ended.record.params))
    assert not [path for path in killed.rglob(".*") if path.name != ".verglas_lock"], "half-written files are left"
    assert len(ended.record.previous) == (2 if files > 2 else 1)


def test_case_19_six_movies_killed_after_three_one_cut_one_without_its_table(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 19: only what is missing or invalid is done; finished files keep their times; the table is that of an undisturbed run."""
    monkeypatch.chdir(inputs)
    Path("six").mkdir()
    for number in range(6):
        Path(f"six/{number}.tif").symlink_to(inputs / f"m/{number % 3}.tif")
    table = read_micrographs("movies.star")
    names = pd.DataFrame({"movie_name": [f"six/{number}.tif" for number in range(6)], "optics_group": 1})
    write_micrographs("six.star", Micrographs(table.optics, names))
    words = ("--movies", "six.star", *JOBS["MotionCorr"].words[2:])
    assert job("MotionCorr", *words, out="six_whole").code == 0
    assert run_and_kill(lambda: job("MotionCorr", *words, out="six_killed").code, 9, after=True)[0] == KILLED
    folder = Path("six_killed/six")
    wait_until_free(folder.parent)
    assert sorted(path.name for path in folder.glob("*.star")) == ["0.star", "1.star", "2.star"]
    times = {path: path.stat().st_mtime_ns for path in folder.glob("0*")}
    (folder / "1.mrc").write_bytes((folder / "1.mrc").read_bytes()[:5000])
    (folder / "2.star").unlink()
    ended = job("MotionCorr", *words, out="six_killed")
    assert ended.code == 0 and ended.counts() == (6, 6, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    one, two = (Path(f"{name}/corrected_micrographs.star").read_text().replace(name, "X") for name in ("six_whole", "six_killed"))
    assert one == two
    for number in range(6):
        assert np.array_equal(*(read_stack(f"{name}/six/{number}.mrc") for name in ("six_whole", "six_killed")))
