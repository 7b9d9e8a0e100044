"""Odd names and places of movies from Import to Extract, by the command line (CASES.md, 4 and 5)."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from command_line import job
from verglas.io.coordinates import write_coordinates
from verglas.io.movie import write_movie
from verglas.io.mrc import read_header, read_image
from verglas.io.names import output_names
from verglas.particles import read_micrographs, read_particles

SIZE, PIXEL = 96, 2.0
NAMES = ["m/a b.tif", "m/x.1.tif", "m/x.2.tif", "m/p[-61_00].tif", "m/X+0Y-1.tif", "m/upper.TIF"]
IMPORT = ("--pixel-size", PIXEL)
CORRECT = ("--no-dose-weighting", "--patch-x", 1, "--patch-y", 1, "--ps-size", 64, "--threads", 1)
EXTRACT = ("--box-size", 24, "--threads", 1)


def movie(path: str | Path, number: int) -> None:
    """Three still frames of one picture, whose mean brightness tells which movie it is."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(number)
    picture = gaussian_filter(random.normal(size=(SIZE, SIZE)), 2, mode="wrap")
    picture = 20 * (number + 1) * (1 + 0.3 * (picture - picture.mean()) / picture.std())
    write_movie(path, random.poisson(picture.clip(1), (3, SIZE, SIZE)).astype(np.uint8), PIXEL)


def brightness(paths: list[str]) -> list[int]:
    """Which movie each micrograph comes from, by its mean."""
    return [round(float(read_image(path).mean()) / 60) - 1 for path in paths]


def pick_two(micrographs: list[str], folder: Path, listed: Path) -> Path:
    """Two picks in each micrograph, in files as AutoPick leaves them."""
    picks = pd.DataFrame({"coordinate_x": [30.0, 60.0], "coordinate_y": [40.0, 50.0]})
    for file in output_names(micrographs, folder, "_autopick.star"):
        write_coordinates(file, picks)
    (folder / "coords_suffix_autopick.star").write_text(f"{listed}\n")
    return folder / "coords_suffix_autopick.star"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def from_movies_to_particles(files: str, count: int) -> list[str]:
    """Import, MotionCorr and Extract of `files`; every movie keeps its own micrograph and its own stack, in the jobs' folders."""
    assert job("Import", "--files", files, *IMPORT, out="Import/job001").code == 0
    names = read_micrographs("Import/job001/movies.star").names()
    corrected = job("MotionCorr", "--movies", "Import/job001/movies.star", *CORRECT, out="MotionCorr/job002")
    assert corrected.code == 0 and corrected.counts() == (count, count, 0, 0)
    table = Path("MotionCorr/job002/corrected_micrographs.star")
    micrographs = read_micrographs(table).names()
    assert len(set(micrographs)) == count and brightness(micrographs) == list(range(count))
    coordinates = pick_two(micrographs, Path("AutoPick/job003"), table)
    extracted = job("Extract", "--micrographs", table, "--coordinates", coordinates, *EXTRACT, out="Extract/job004")
    assert extracted.code == 0 and extracted.counts() == (count, count, 0, 0)
    particles = read_particles("Extract/job004/particles.star")
    assert particles.column("micrograph_name").tolist() == [name for name in micrographs for _ in range(2)]
    stacks = list(dict.fromkeys(str(name).partition("@")[2] for name in particles.column("image_name")))
    assert len(stacks) == count and all(read_header(stack).shape == (2, 24, 24) for stack in stacks)
    for path, folder in [(m, "MotionCorr/job002") for m in micrographs] + [(s, "Extract/job004") for s in stacks]:
        assert Path(path).resolve().is_relative_to(Path(folder).resolve()), f"{path} does not lie in {folder}"
    return names


def test_case_4_odd_names_from_import_to_extract(here: Path) -> None:
    """Case 4: every name is imported, keeps its own micrograph and stack, and only its last extension is removed."""
    for number, name in enumerate(NAMES):
        movie(name, number)
    assert from_movies_to_particles(";".join(NAMES), len(NAMES)) == NAMES
    micrographs = read_micrographs("MotionCorr/job002/corrected_micrographs.star").names()
    assert [Path(name).name for name in micrographs] == ["a b.mrc", "x.1.mrc", "x.2.mrc", "p[-61_00].mrc", "X+0Y-1.mrc", "upper.mrc"]


def test_case_4_names_with_spaces_are_written_in_double_quotes(here: Path) -> None:
    """Case 4: and both kinds of quotes are read by the next job."""
    movie("m/a b.tif", 0)
    assert job("Import", "--files", "m/a b.tif", *IMPORT, out="one").code == 0
    text = Path("one/movies.star").read_text()
    assert '"m/a b.tif"' in text
    Path("single.star").write_text(text.replace('"', "'"))
    for number, table in enumerate(("one/movies.star", "single.star")):
        ran = job("MotionCorr", "--movies", table, *CORRECT, out=f"m{number}")
        assert ran.code == 0 and ran.counts() == (1, 1, 0, 0)
        assert (here / f"m{number}/m/a b.mrc").is_file()


def test_case_4_a_name_is_never_used_as_a_pattern(here: Path) -> None:
    """Case 4: p[-61_00].tif, read as a pattern, would mean p6.tif and p1.tif."""
    for number, name in enumerate(("m/p[-61_00].tif", "m/p6.tif", "m/p1.tif")):
        movie(name, number)
    assert job("Import", "--files", "m/p[-61_00].tif", *IMPORT, out="one").code == 0
    assert read_micrographs("one/movies.star").names() == ["m/p[-61_00].tif"]
    assert job("MotionCorr", "--movies", "one/movies.star", *CORRECT, out="corrected").code == 0
    assert brightness(read_micrographs("corrected/corrected_micrographs.star").names()) == [0]


def test_case_5_places_from_import_to_extract(here: Path) -> None:
    """Case 5: ./M, ../M, an absolute path, M//, the same name in two folders and a linked folder: each output in its job, one an input."""
    places = ["work/M/a.tif", "M/a.tif", "absolute/a.tif", "work/N/a.tif", "work/d1/a.tif", "work/d2/a.tif", "real/a.tif"]
    for number, place in enumerate(places):
        movie(place, number)
    (here / "work/link").symlink_to(here / "real")
    os.chdir("work")
    files = f"./M/a.tif;../M/a.tif;{here}/absolute/a.tif;N//a.tif;d1/a.tif;d2/a.tif;link/a.tif"
    names = from_movies_to_particles(files, len(places))
    assert names == ["M/a.tif", "../M/a.tif", f"{here}/absolute/a.tif", "N/a.tif", "d1/a.tif", "d2/a.tif", "link/a.tif"]
    assert {path.name for path in here.iterdir()} == {"work", "M", "absolute", "real"}
    assert [path.name for path in (here / "real").iterdir()] == ["a.tif"]


def test_case_5_the_same_job_twice_leaves_the_first_one_alone(here: Path) -> None:
    """Case 5: in a project the second run has a folder of its own; asked into the first one's folder with other work, it is refused."""
    from verglas.project.project import Project

    movie("d1/a.tif", 0)
    movie("d2/a.tif", 1)
    Project.create(here)
    assert job("Import", "--files", "d1/a.tif;d2/a.tif", *IMPORT).code == 0
    run = ("--movies", "Import/job001/movies.star", *CORRECT)
    assert job("MotionCorr", *run).code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("MotionCorr/job002").rglob("*") if path.is_file()}
    assert job("MotionCorr", *run).code == 0
    one, two = (read_micrographs(f"MotionCorr/job00{n}/corrected_micrographs.star").names() for n in (2, 3))
    assert not set(one) & set(two) and brightness(one) == brightness(two) == [0, 1]
    other = job("MotionCorr", *run, "--bin-factor", 2, out="MotionCorr/job002")
    assert other.code == 2 and "bin_factor" in other.said
    assert before == {path: path.stat().st_mtime_ns for path in before}
