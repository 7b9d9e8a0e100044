"""Bad files and parameters through the jobs that meet them: refused with exit code 2 and one message, or skipped, named and counted.

CASES.md, 3, 6, 11 and 13 to 16, and the list of faults that every job must stand.
"""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

from command_line import Ran, job
from refine.sets import DIAMETER, particles
from verglas.io.coordinates import write_coordinates
from verglas.io.movie import write_movie
from verglas.io.mrc import read_image, write_image, write_map, write_stack
from verglas.io.star import read_star
from verglas.micrograph.motion_files import read_motion
from verglas.particles import (
    Micrographs,
    OpticsGroups,
    StackImages,
    read_micrographs,
    read_particles,
    write_micrographs,
    write_particles,
)

PIXEL, SHAPE, FRAMES = 2.0, (64, 96), 8
CORRECT = ("--no-dose-weighting", "--patch-x", 1, "--patch-y", 1, "--ps-size", 64, "--threads", 1)
ENGINE = ("--mask-diameter", DIAMETER, "--threads", 1)
JOBS: dict[str, tuple[object, ...]] = {
    "Class2D": ("--classes", 2, "--iterations", 2),
    "Class3D": ("--reference", "map.mrc", "--classes", 1, "--iterations", 2),
    "Refine3D": ("--reference", "map.mrc", "--iterations", 2),
    "InitialModel": ("--starts", 1, "--iterations", 3),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(seed: int = 0, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Smooth contrast about 1."""
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2, mode="wrap")
    return np.asarray((1 + 0.3 * (smooth - smooth.mean()) / smooth.std()).clip(0.05))


def counts(seed: int, frames: int = FRAMES, dose: float = 30.0, gain: np.ndarray | float = 1.0) -> np.ndarray:
    """A still movie of the same picture with noise of its own, as a detector of that gain counts it."""
    return np.asarray(np.random.default_rng(seed).poisson(dose * picture() / gain, (frames, *SHAPE)).astype(np.uint8))


def imported(files: str) -> str:
    assert job("Import", "--files", files, "--pixel-size", PIXEL, out="import").code == 0
    return "import/movies.star"


def list_movies(names: list[str]) -> str:
    """A movie table that lists what Import would leave out, as when a file goes bad later."""
    optics = {"name": "opticsGroup1", "optics_group": 1, "movie_pixel_size": PIXEL, "voltage": 300.0}
    table = pd.DataFrame([optics | {"spherical_aberration": 2.7, "amplitude_contrast": 0.1}])
    write_micrographs("movies.star", Micrographs(OpticsGroups(table), pd.DataFrame({"movie_name": names, "optics_group": 1})))
    return "movies.star"


def correct(movies: str, *more: object, out: str = "corrected") -> Ran:
    return job("MotionCorr", "--movies", movies, *CORRECT, *more, out=out)


def one_message(ran: Ran, *words: str) -> None:
    """Exit code 2, and one line that names what is meant."""
    assert ran.code == 2, ran.said
    lines = [line for line in ran.said.splitlines() if line.startswith("ERROR")]
    assert len(lines) == 1 or (ran.record is not None and len(ran.record.reasons) == 1), ran.said
    for word in words:
        assert word in ran.reasons, ran.reasons


# Movies


def test_case_13_a_damaged_and_a_short_movie_of_five(here: Path) -> None:
    """Case 13: three done, the damaged one named and counted, the short one with its own dose and said; the ending shows it."""
    for number in range(5):
        write_movie(f"m/{number}.tif", counts(number, FRAMES - (number == 4)), PIXEL)
    with tifffile.TiffFile("m/1.tif") as tiff:
        strip = tiff.pages[5].dataoffsets[0]
    with Path("m/1.tif").open("r+b") as file:
        file.seek(strip + 20)
        file.write(b"\xff" * 40)
    ran = correct(list_movies([f"m/{number}.tif" for number in range(5)]), "--dose-per-frame", 1.5)
    assert ran.code == 0 and ran.counts() == (5, 4, 0, 1)
    assert list(ran.bad()) == ["m/1.tif"] and "frame 6 of 8 is damaged" in ran.bad()["m/1.tif"]
    assert "4 of 5 movies done, 0 skipped, 1 failed" in ran.said and "m/1.tif" in ran.said
    said = Path("corrected/run.out").read_text()
    assert "m/4.tif: 7 frames, the other movies have 8: dose 10.5 e⁻/Å²" in said
    assert [len(read_motion(f"corrected/m/{number}.star").global_shifts) for number in (0, 2, 3, 4)] == [8, 8, 8, 7]
    shown = job_table()
    assert "1 of 5 movies left out" in shown


def job_table(folder: Path = Path()) -> str:
    """What `verglas stats` says of a folder."""
    import contextlib
    import io

    from verglas.cli.show import stats_command

    with contextlib.redirect_stdout(io.StringIO()) as said:
        stats_command(folder, as_json=False, as_csv=True, html=None)
    return said.getvalue()


BAD_MOVIES = {
    "cut.tif": lambda whole: whole[: len(whole) // 2],
    "cut.mrc": lambda whole: whole[: len(whole) // 2],
    "empty.tif": lambda whole: b"",
    "text.tif": lambda whole: b"<html>not found</html>" * 20,
    "nan.mrc": lambda whole: whole[:-4] + np.float32(np.nan).tobytes(),
}


def test_truncated_empty_constant_and_missing_movies_are_skipped_and_counted(here: Path) -> None:
    write_movie("m/good.tif", counts(0), PIXEL)
    for name, spoil in BAD_MOVIES.items():
        write_movie(f"m/{name}", counts(1).astype(np.float32), PIXEL)
        Path("m", name).write_bytes(spoil(Path("m", name).read_bytes()))
    write_movie("m/flat.mrc", np.full((FRAMES, *SHAPE), 3, np.float32), PIXEL)
    bad = [f"m/{name}" for name in (*BAD_MOVIES, "flat.mrc", "gone.tif")]
    ran = correct(list_movies(["m/good.tif", *bad]))
    assert ran.code == 0 and ran.counts() == (8, 1, 0, 7) and sorted(ran.bad()) == sorted(bad)
    alone = correct(list_movies(bad), out="none")
    one_message(alone, "none of 7 movies could be processed")
    ran = job("Import", "--files", "m/*", "--pixel-size", PIXEL, out="import")
    assert ran.code == 0 and ran.counts()[3] == 4, ran.bad()  # content is not read: a NaN and a constant one come to light later
    assert {"m/cut.tif", "m/cut.mrc", "m/empty.tif", "m/text.tif"} == set(ran.bad())


def test_case_14_one_movie_too_short_for_a_fraction_is_skipped_and_counted(here: Path) -> None:
    """Case 14: the others are done."""
    for number, frames in enumerate((12, 2, 12)):
        write_movie(f"m/{number}.eer", counts(number, frames, 0.5).clip(max=1), PIXEL)
    ran = correct(list_movies([f"m/{number}.eer" for number in range(3)]), "--eer-grouping", 3, "--dose-per-frame", 3)
    assert ran.counts() == (3, 2, 0, 1) and "3 frames per fraction of 2 internal frames" in ran.bad()["m/1.eer"]


@pytest.mark.parametrize(("grouping", "fractions"), [(4, 3), (10, 1), (20, None)])
def test_case_14_frames_that_do_not_divide(here: Path, grouping: int, fractions: int | None) -> None:
    """Case 14: ten frames by four give 4, 4 and a said 2 with its own dose; by twenty they give an error."""
    write_movie("m/e.eer", counts(0, 10, 0.5).clip(max=1), PIXEL)
    ran = correct(list_movies(["m/e.eer"]), "--eer-grouping", grouping, "--dose-per-frame", grouping, "--dose-weighting")
    if fractions is None:
        one_message(ran, "m/e.eer: eer_grouping: 20 frames per fraction of 10 internal frames. Choose 1 to 10")
        return
    assert ran.record is not None and ran.counts() == (1, 1, 0, 0)
    assert len(read_motion("corrected/m/e.star").global_shifts) == fractions
    assert ("last, shorter fraction of 2" in Path("corrected/run.out").read_text()) == (grouping == 4)


def test_case_14_the_help_says_frames_per_fraction() -> None:
    """Case 14: not the number of fractions."""
    from verglas.cli.help import help_page
    from verglas.jobs.registry import job_type

    line = next(line for line in help_page(job_type("MotionCorr")).splitlines() if "internal frames" in line)
    assert "per fraction" in line and "not the number of fractions" in line


GAIN = np.random.default_rng(7).uniform(0.7, 1.4, SHAPE).astype(np.float32)


def with_gain(gain: np.ndarray, *more: object, out: str = "corrected") -> Ran:
    """MotionCorr with this gain on two movies that were counted through GAIN."""
    if not Path("m").exists():
        for number in range(2):
            write_movie(f"m/{number}.tif", counts(number, gain=GAIN), PIXEL)
    write_image("gain.mrc", gain, PIXEL)
    return correct(list_movies(["m/0.tif", "m/1.tif"]), "--gain", "gain.mrc", *more, out=out)


def flatness(out: str) -> float:
    """How well the micrograph is the picture, without the detector's pattern."""
    return float(np.corrcoef(read_image(f"{out}/m/0.mrc").ravel(), picture().ravel())[0, 1])


def test_case_15_gains_that_fit(here: Path) -> None:
    """Case 15: of the movie's size, of twice it (said), with a column of zeros and of NaN, which are never infinity."""
    ran = with_gain(GAIN)
    assert ran.code == 0 and flatness("corrected") > 0.9
    ran = with_gain(np.repeat(np.repeat(GAIN, 2, 0), 2, 1), out="double")
    assert ran.code == 0 and flatness("double") > 0.9
    assert ran.record is not None and any("twice the movie's size (super-resolution)" in text for text in ran.record.warnings)
    for name, value in (("zero", 0.0), ("nan", np.nan)):
        dead = GAIN.copy()
        dead[:, 40] = value
        ran = with_gain(dead, out=name)
        image = read_image(f"{name}/m/0.mrc")
        assert ran.code == 0 and np.isfinite(image).all() and image.max() < 3 * np.median(image)


def test_case_15_gains_that_do_not_fit(here: Path) -> None:
    """Case 15: transposed is refused with the turns that fit; another size too; the reciprocal is found by the movies' mean."""
    one_message(with_gain(GAIN.T, out="a"), "gain.mrc: is 96 x 64", "the movies are 64 x 96", "Rotation 1 or 3 with flip 0, 1 or 2")
    one_message(with_gain(GAIN[:60], out="b"), "gain.mrc: is 60 x 96", "no rotation fits")
    one_message(with_gain(1 / GAIN, out="c"), "--gain", "works the wrong way round", "Give --gain-reciprocal")
    assert not [path for name in "abc" for path in Path(name).rglob("*.mrc")]
    ran = with_gain(1 / GAIN, "--gain-reciprocal", out="d")
    assert ran.code == 0 and flatness("d") > 0.9
    one_message(with_gain(GAIN, "--gain-reciprocal", out="e"), "--gain", "Give --no-gain-reciprocal")
    ran = with_gain(GAIN[::-1], out="f")
    assert ran.record is not None and any("does not even out the movies' mean" in text for text in ran.record.warnings)


def test_case_15_with_eer_movies_a_gain_divides_unless_told(here: Path) -> None:
    """Case 15: RELION's rule, which every gain can be taken out of; the refusal names the option that does it."""
    write_movie("m/0.eer", counts(0, 24, 0.3, GAIN).clip(max=1), PIXEL)
    write_image("divides.mrc", 1 / GAIN, PIXEL)
    write_image("multiplies.mrc", GAIN, PIXEL)
    movies = list_movies(["m/0.eer"])
    for gain, words, mend in (
        ("divides", [], None),
        ("divides", ["--gain-reciprocal"], None),
        ("divides", ["--no-gain-reciprocal"], "Give --gain-reciprocal"),
        ("multiplies", [], "Give --no-gain-reciprocal"),
        ("multiplies", ["--gain-reciprocal"], "Give --no-gain-reciprocal"),
        ("multiplies", ["--no-gain-reciprocal"], None),
    ):
        ran = correct(movies, "--eer-grouping", 6, "--gain", f"{gain}.mrc", *words, out="_".join([gain, *words]))
        if mend is None:
            assert ran.code == 0
        else:
            one_message(ran, "works the wrong way round", mend)


# Micrographs and picks


def list_micrographs(names: list[str]) -> str:
    optics = {"name": "opticsGroup1", "optics_group": 1, "movie_pixel_size": PIXEL, "micrograph_pixel_size": PIXEL, "voltage": 300.0}
    table = pd.DataFrame([optics | {"spherical_aberration": 2.7, "amplitude_contrast": 0.1}])
    write_micrographs("mics.star", Micrographs(OpticsGroups(table), pd.DataFrame({"micrograph_name": names, "optics_group": 1})))
    return "mics.star"


@pytest.fixture
def four(here: Path) -> str:
    for number in range(4):
        write_image(f"c/{number}.mrc", picture(number, (160, 160)).astype(np.float32), PIXEL)
    picks = pd.DataFrame({"coordinate_x": [50.0, 70.0], "coordinate_y": [50.0, 60.0]})
    for number, table in enumerate((picks, picks.iloc[:0], picks, picks + 1000)):
        write_coordinates(f"p/c/{number}_autopick.star", table)
    Path("p/c/2_autopick.star").write_text("data_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n 1 2\n oops 4\n")
    Path("p/coords_suffix_autopick.star").write_text("mics.star\n")
    return list_micrographs([f"c/{number}.mrc" for number in range(4)])


def extract(micrographs: str, box: int = 32, out: str = "extracted") -> Ran:
    words = ("--coordinates", "p/coords_suffix_autopick.star", "--box-size", box, "--threads", 1)
    return job("Extract", "--micrographs", micrographs, *words, out=out)


def test_case_16_nothing_picked_garbled_and_outside(four: str) -> None:
    """Case 16: the job goes on, each is listed and counted; nothing at all in the end is FAIL."""
    ran = extract(four)
    assert ran.code == 0 and ran.counts() == (4, 1, 2, 1)
    bad = ran.bad()
    assert bad["c/1.mrc"] == "nothing picked" and "oops" in bad["c/2.mrc"] and "outside" in bad["c/3.mrc"]
    write_coordinates("p/c/0_autopick.star", pd.DataFrame({"coordinate_x": [], "coordinate_y": []}))
    ran = extract(four, out="nothing")
    assert ran.code == 1 and "none of 4 micrographs done" in ran.reasons


def test_nan_constant_cut_and_missing_micrographs_are_skipped_and_counted(four: str) -> None:
    """Through CtfFind, AutoPick and Extract."""
    bad = np.ones((160, 160), np.float32)
    write_image("c/flat.mrc", bad, PIXEL)
    bad = picture(0, (160, 160)).astype(np.float32)
    bad[5, 5] = np.nan
    write_image("c/nan.mrc", bad, PIXEL)
    Path("c/cut.mrc").write_bytes(Path("c/0.mrc").read_bytes()[:5000])
    names = ["c/flat.mrc", "c/nan.mrc", "c/cut.mrc", "c/gone.mrc"]
    for name in names:
        write_coordinates(f"p/{name[:-4]}_autopick.star", pd.DataFrame({"coordinate_x": [50.0], "coordinate_y": [50.0]}))
    micrographs = list_micrographs(["c/0.mrc", *names])
    found = {
        "Extract": extract(micrographs),
        "AutoPick": job(
            "AutoPick", "--micrographs", micrographs, "--log-diam-min", 30, "--log-diam-max", 40, "--no-log-refine", "--threads", 1, out="a"
        ),
        "CtfFind": job("CtfFind", "--micrographs", micrographs, "--box", 128, "--threads", 1, out="ctf"),
    }
    for name, ran in found.items():
        assert ran.record is not None and ran.record.items is not None, (name, ran.reasons)
        assert ran.counts()[3] == 4 and set(ran.bad()) == set(names), name
        assert "constant" in ran.bad()["c/flat.mrc"] and "NaN" in ran.bad()["c/nan.mrc"], name


def test_a_box_larger_than_the_micrograph_is_refused(four: str) -> None:
    one_message(extract(four, box=162), "--box-size: 162 px do not fit into c/0.mrc of 160 x 160 px", "Give a smaller box")


# Particles


def write_set(**optics: object) -> None:
    images, table, truth = particles(120, 24, 8.0, 0.3)
    write_stack("images.mrcs", images.numpy(), 8.0)
    write_map("map.mrc", truth.numpy(), 8.0)
    write_particles("particles.star", table.with_optics(**optics))


def engine(name: str, *more: object, out: str = "job") -> Ran:
    return job(name, "--particles", "particles.star", *JOBS[name], *ENGINE, *more, out=out)


@pytest.mark.parametrize("name", JOBS)
def test_an_optics_group_that_is_missing_is_refused(name: str) -> None:
    write_set()
    text = Path("particles.star").read_text()
    table = read_star("particles.star")["particles"]
    at = list(table.columns).index("rlnOpticsGroup")
    lines = text.splitlines()
    for row, line in enumerate(lines):
        words = line.split()
        if len(words) == len(table.columns) and words[0].startswith(("000001@", "000002@")):
            words[at] = "2"
            lines[row] = " ".join(words)
    Path("particles.star").write_text("\n".join(lines) + "\n")
    one_message(engine(name), "particles.star: rows refer to group 2 (2 rows)", "Add the group to the optics table")


@pytest.mark.parametrize("name", ["Class3D", "Refine3D", "InitialModel"])
def test_a_typo_in_the_symmetry_is_refused(name: str) -> None:
    write_set()
    ran = engine(name, "--symmetry", "D2x")
    one_message(ran, "D2x")
    assert ran.record is None or not list(Path("job").glob("*.mrc"))


def test_pixel_sizes_that_clash(here: Path) -> None:
    """A mask on another grid is refused; a stack whose header says otherwise is said; half maps of two pixel sizes are refused."""
    write_set()
    write_map("mask.mrc", np.ones((24, 24, 24), np.float32), 5.0)
    one_message(engine("Refine3D", "--mask", "mask.mrc"), "mask.mrc: has 24 voxels of 5 Å, the particles have 24 of 8 Å")
    write_set(pixel_size=7.0)
    ran = engine("Class2D", out="said")
    assert ran.record is not None
    assert any("images.mrcs: its header says 8 Å a pixel, rlnImagePixelSize 7 Å is taken" in text for text in ran.record.warnings)
    values = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    write_map("half1.mrc", values, 8.0)
    write_map("half2.mrc", values[::-1], 7.0)
    one_message(job("PostProcess", "--half1", "half1.mrc", "--mask", "map.mrc", out="post"), "half2.mrc", "7", "8")
    write_image("c.mrc", values[0], 3.0)
    ran = job("Import", "--kind", "micrographs", "--files", "c.mrc", "--pixel-size", 1.5, out="import")
    assert ran.record is not None and any("c.mrc says 3 Å a pixel, 1.5 Å was given and is taken" in t for t in ran.record.warnings)
    assert read_micrographs("import/micrographs.star").pixel_sizes.tolist() == [1.5]


@pytest.mark.parametrize("name", JOBS)
def test_missing_files_are_named(name: str) -> None:
    one_message(engine(name), "--particles: particles.star is not there")
    write_set()
    Path("images.mrcs").unlink()
    one_message(engine(name), "images.mrcs: no such stack, 120 particles refer to it")


@pytest.mark.parametrize("index", ["000000", "9"])
def test_case_6_an_image_outside_its_stack_is_refused_before_work(index: str) -> None:
    """Case 6: with the row and the stack's size."""
    write_set()
    table = read_particles("particles.star").subset(np.arange(5))
    write_stack("five.mrcs", np.random.default_rng(0).normal(size=(5, 24, 24)).astype(np.float32), 8.0)
    names = [f"{number:06d}@five.mrcs" for number in range(1, 6)]
    write_particles("particles.star", table.with_columns(image_name=[*names[:3], f"{index}@five.mrcs", names[4]]))
    ran = engine("Class2D")
    one_message(ran, f"five.mrcs: image {int(index)} asked for, it holds 1 to 5 (row 4)", "the first image is 1")


def test_case_6_a_subset_cut_again_points_at_the_images_that_it_means(here: Path) -> None:
    """Case 6: picked rows, extracted anew into stacks of their own, are the same images as in the whole set."""
    write_image("c.mrc", np.random.default_rng(0).normal(size=(200, 200)).astype(np.float32), PIXEL)
    xy = np.random.default_rng(1).uniform(40, 160, (6, 2))
    write_coordinates("p/c_autopick.star", pd.DataFrame({"coordinate_x": xy[:, 0], "coordinate_y": xy[:, 1]}))
    Path("p/coords_suffix_autopick.star").write_text("mics.star\n")
    assert extract(list_micrographs(["c.mrc"])).code == 0
    everything = read_particles("extracted/particles.star")
    write_particles("some.star", everything.subset(np.array([4, 1, 3])))
    again = ("--micrographs", "mics.star", "--particles", "some.star", "--box-size", 32, "--no-recenter", "--threads", 1)
    assert job("Extract", *again, out="again").code == 0
    subset = read_particles("again/particles.star")
    assert len(subset) == 3 and all("@again/" in str(name) for name in subset.column("image_name"))
    assert StackImages(everything).read(np.array([4, 1, 3])).equal(StackImages(subset).read(np.arange(3)))


@pytest.mark.parametrize("size", [0.0, -1.5])
def test_case_11_a_pixel_size_that_is_none_is_asked_for(size: float, here: Path) -> None:
    """Case 11: Import takes it by the option that the message names; of a cut file nothing is taken."""
    write_map("map.mrc", np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32), 1.5)
    raw = bytearray(Path("map.mrc").read_bytes())
    struct.pack_into("<fff", raw, 40, *[16 * size] * 3)
    Path("map.mrc").write_bytes(raw)
    words = ("--kind", "reference", "--files", "map.mrc")
    one_message(job("Import", *words, out="a"), f"map.mrc: the header's pixel size is {size:g} Å. Give the pixel size")
    assert job("Import", *words, "--pixel-size", 1.5, out="b").code == 0
    Path("map.mrc").write_bytes(raw[: len(raw) // 2])
    one_message(job("Import", *words, "--pixel-size", 1.5, out="c"), "map.mrc", "cut short")


def test_case_3_a_comma_locale_changes_nothing(here: Path) -> None:
    """Case 3: a job under LC_ALL=de_DE.UTF-8 writes the same table as without."""
    write_set()
    write_particles("other.star", read_particles("particles.star").with_optics(voltage=200.5))
    made = subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", str(here / "de_DE.UTF-8")], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no comma locale can be made here: {made.stderr.strip()}")
    code = "import locale; locale.setlocale(locale.LC_ALL, ''); assert locale.localeconv()['decimal_point'] == ','\n"
    code += "from verglas.cli.main import main; main()"
    words = ["job", "JoinStar", "--files", "particles.star", "other.star", "--out"]
    comma = {**os.environ, "LOCPATH": str(here), "LC_ALL": "de_DE.UTF-8"}
    subprocess.run([sys.executable, "-c", code, *words, "comma"], env=comma, check=True, capture_output=True)
    assert job(words[1], *words[2:-1], out="point").code == 0
    assert Path("comma/join_particles.star").read_bytes() == Path("point/join_particles.star").read_bytes()
    assert "200.5" in Path("comma/join_particles.star").read_text()


# Places to write to


def test_a_folder_that_cannot_be_written(here: Path) -> None:
    write_movie("m/a.tif", counts(0), PIXEL)
    one_message(correct(list_movies(["m/a.tif"]), out="/proc/verglas"), "/proc/verglas: cannot be made", "Check permissions and free space")
    Path("file").write_text("x")
    one_message(correct("movies.star", out="file/job"), "file/job: cannot be made")


@pytest.mark.parametrize("room", ["100k", "160k"])  # full within the second movie, and when all are done
def test_a_full_disk_is_no_movies_fault(room: str, here: Path) -> None:
    """A job of many items ends as FAIL with the reason, not with all items failed one by one; with space again it goes on."""
    for number in range(3):
        write_movie(f"m/{number}.tif", counts(number), PIXEL)
    movies = list_movies([f"m/{number}.tif" for number in range(3)])
    disk = here / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        ran = correct(movies, out=str(disk / "job"))
        assert ran.code == 1 and "FAIL" in ran.said and "no space left" in ran.said.lower()
        assert (disk / "job/RELION_JOB_EXIT_FAILURE").exists() and "FAIL" in job_table(disk)
        done = {path: path.stat().st_mtime_ns for path in disk.glob("job/m/0.*")}
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        ran = correct(movies, out=str(disk / "job"))
        assert ran.code == 0 and ran.counts() == (3, 3, 0, 0)
        assert done and {path: path.stat().st_mtime_ns for path in done} == done
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
