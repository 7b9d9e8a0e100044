"""Particles that the engine's jobs must refuse, mend or leave out, by the command line (CASES.md, 8, 9 and 17)."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from command_line import Ran, job
from refine.sets import DIAMETER, particles
from verglas.io.mrc import read_map, read_stack, write_image, write_map, write_stack
from verglas.particles import Micrographs, OpticsGroups, ParticleSet, read_particles, write_micrographs, write_particles
from verglas.refine.assignments import split_halves

BOX, PIXEL, COUNT = 24, 8.0, 200
QUICK = ("--mask-diameter", DIAMETER, "--threads", 1)
JOBS: dict[str, tuple[object, ...]] = {
    "Class2D": ("--classes", 2, "--iterations", 3, "--psi-step", 24, *QUICK),
    "Class3D": ("--reference", "truth.mrc", "--classes", 1, "--iterations", 2, "--symmetry", "D2", "--healpix-order", 1, *QUICK),
    "Refine3D": ("--reference", "truth.mrc", "--symmetry", "D2", "--healpix-order", 1, "--iterations", 2, *QUICK),
    "InitialModel": ("--symmetry", "D2", "--starts", 1, "--iterations", 3, "--sgd-fin-resol", 25, "--refine-iterations", 1, *QUICK),
}
RESULT = {"Class2D": "run_it003", "Class3D": "run_it002", "Refine3D": "run", "InitialModel": "run_it004"}


def write_set(images: torch.Tensor | None = None, count: int = COUNT, **columns: object) -> ParticleSet:
    """Stack, `particles.star` of the first `count` and true map in the working directory."""
    stack, table, truth = particles(COUNT, BOX, PIXEL, 0.3)
    write_stack("images.mrcs", (stack if images is None else images).numpy(), PIXEL)
    write_map("truth.mrc", truth.numpy(), PIXEL)
    bare = table.with_columns(rot=None, tilt=None, psi=None, origin_x=None, origin_y=None, class_number=None)
    written = bare.subset(np.arange(count)).with_columns(**columns)
    write_particles("particles.star", written)
    return written


def engine(name: str, *more: object, given: str = "particles.star", out: str = "job") -> Ran:
    return job(name, "--particles", given, *JOBS[name], *more, out=out)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("verglas.pictures.maps.draw_surface", lambda *_, **__: None)  # takes longer than all the rest
    return tmp_path


@pytest.fixture
def poisoned() -> torch.Tensor:
    """One image constant, one with a NaN, one a thousand times too strong."""
    images = particles(COUNT, BOX, PIXEL, 0.3)[0].clone()
    images[3], images[7, 4, 4], images[9] = 2.0, torch.nan, images[9] * 1000
    return images


@pytest.mark.parametrize("name", JOBS)
def test_case_17_poison_is_left_out_named_and_counted(name: str, here: Path, poisoned: torch.Tensor) -> None:
    """Case 17: and no NaN reaches a map; one image never ends a job of many."""
    write_set(poisoned)
    ran = engine(name)
    assert ran.code == 0, ran.reasons
    assert ran.counts() == (COUNT, COUNT - 3, 0, 3)
    bad = ran.bad()
    words = {"000004@images.mrcs": "is constant", "000008@images.mrcs": "not numbers", "000010@images.mrcs": "times as strong"}
    assert bad.keys() == words.keys() and all(word in bad[item] for item, word in words.items())
    assert len(read_particles(f"job/{RESULT[name]}_data.star")) == COUNT - 3
    maps = [read_stack(path) for path in Path("job").glob("*.mrc*")]
    assert maps and all(np.isfinite(volume).all() for volume in maps)


@pytest.mark.parametrize("name", JOBS)
def test_case_17_a_mask_of_1_2_boxes_is_refused_before_the_start(name: str, here: Path) -> None:
    """Case 17: the message gives what was asked for, the box, and the most that it holds."""
    write_set()
    ran = engine(name, "--mask-diameter", 1.2 * BOX * PIXEL)
    assert ran.code == 2
    assert "--mask-diameter: 230.4 Å does not fit a box of 24 px of 8 Å (192 Å). Give a diameter from 32 to 192 Å" in ran.reasons
    assert not list(here.glob("job/run_it*"))


SPLITS = {
    "all 1": np.ones(COUNT, int),
    "zeros": np.arange(COUNT) % 3,
    "99 % ones": np.where(np.arange(COUNT) % 100, 1, 2),
}


@pytest.mark.parametrize("split", SPLITS)
def test_case_9_a_bad_split_is_made_anew_and_said(split: str, here: Path) -> None:
    """Case 9: no empty half, no FSC from one half; the new split is seeded."""
    write_set(half=SPLITS[split])
    ran = engine("Refine3D")
    assert ran.code == 0, ran.reasons
    assert ran.record is not None and any("half sets in the particle file cannot be used (" in text for text in ran.record.warnings)
    half = read_particles("job/run_data.star").column("half")
    assert sorted(np.bincount(half, minlength=3)) == [0, COUNT // 2, COUNT // 2]
    first, second = (read_map(f"job/run_half{number}_class001_unfil.mrc")[0] for number in (1, 2))
    assert first.std() > 0 and second.std() > 0 and not np.array_equal(first, second)


def test_case_9_without_a_split_a_seeded_one_is_made(here: Path) -> None:
    """Case 9: the same seed gives the same halves, another seed others."""
    table = write_set()
    assert engine("Refine3D", "--random-seed", 5).code == 0
    assert "particles split into random halves" in Path("job/run.out").read_text()
    half = read_particles("job/run_data.star").column("half") - 1
    assert (half == split_halves(table, 5)[0]).all() and not (half == split_halves(table, 6)[0]).all()


def test_case_9_a_valid_split_is_kept_through_every_job(here: Path) -> None:
    """Case 9: uneven as it is, from Class2D to Refine3D, through Select and JoinStar."""
    given = np.where(np.arange(COUNT) % 3 == 0, 1, 2)
    names = write_set(half=given).column("image_name")
    wanted = dict(zip(names, given, strict=True))
    found = "particles.star"
    for number, name in enumerate(("Class2D", "Class3D", "InitialModel", "Refine3D")):
        assert engine(name, given=found, out=f"{number}").code == 0
        found = f"{number}/{RESULT[name]}_data.star"
        assert dict(zip(*(read_particles(found).column(c) for c in ("image_name", "half")), strict=True)) == wanted
    assert job("Select", "--action", "split", "--particles", found, "--nr-split", 2, out="split").code == 0
    parts = ("split/particles_split1.star", "split/particles_split2.star")
    assert job("JoinStar", "--files", *parts, out="joined").code == 0
    table = read_particles("joined/join_particles.star")
    assert dict(zip(table.column("image_name"), table.column("half"), strict=True)) == wanted


def microscope(voltage: float, pixel: float, box: int) -> OpticsGroups:
    """One group, under the name that every program gives."""
    values: dict[str, object] = {"name": "opticsGroup1", "optics_group": 1, "movie_pixel_size": pixel, "voltage": voltage}
    values |= {"spherical_aberration": 2.7, "amplitude_contrast": 0.1, "pixel_size": pixel, "box_size": box, "dimensionality": 2}
    return OpticsGroups(pd.DataFrame([values]))


@pytest.fixture
def two_sets(here: Path) -> Path:
    """300 kV, 1.5 Å, 64 px and 200 kV, 2.0 Å, 48 px: two particles each, with stacks, and the micrographs that they come from."""
    random = np.random.default_rng(0)
    for name, voltage, pixel, box in (("a", 300.0, 1.5, 64), ("b", 200.0, 2.0, 48)):
        write_stack(f"{name}.mrcs", random.normal(size=(2, box, box)).astype(np.float32), pixel)
        places = {"coordinate_x": [100.0, 120.0], "coordinate_y": 110.0, "micrograph_name": f"{name}.mrc"}
        lens = {"defocus_u": 1.5e4, "defocus_v": 1.4e4, "defocus_angle": 0.0}
        table = pd.DataFrame({"image_name": [f"00000{i}@{name}.mrcs" for i in (1, 2)], "optics_group": 1, **places, **lens})
        write_particles(f"{name}.star", ParticleSet(microscope(voltage, pixel, box), table))
        write_image(f"{name}.mrc", random.normal(size=(200, 200)).astype(np.float32), pixel)
    write_map("truth.mrc", random.normal(size=(48, 48, 48)).astype(np.float32), 2.0)
    assert job("JoinStar", "--files", "a.star", "b.star", out="join").code == 0
    return here


def test_case_8_the_join_and_its_subset_keep_their_own_optics(two_sets: Path) -> None:
    """Case 8: RELION makes both the 300 kV, 1.5 Å group."""
    joined = read_particles("join/join_particles.star")
    assert joined.optics_value("voltage").tolist() == [300, 300, 200, 200]
    assert joined.optics_value("pixel_size").tolist() == [1.5, 1.5, 2.0, 2.0]
    assert joined.optics_value("box_size").tolist() == [64, 64, 48, 48]
    assert len(set(joined.optics.table["name"])) == 2
    select = ("--particles", "join/join_particles.star", "--select-label", "rlnCoordinateX")
    for low, high, voltages in ((110, 130, [300, 200]), (90, 110, [300, 200])):
        ran = job("Select", *select, "--select-minval", low, "--select-maxval", high, out=f"part{low}")
        assert ran.code == 0
        assert read_particles(f"part{low}/particles.star").optics_value("voltage").tolist() == voltages


@pytest.mark.parametrize("name", JOBS)
def test_case_8_mixed_boxes_are_refused_before_the_start(name: str, two_sets: Path) -> None:
    """Case 8: with both boxes and pixel sizes in the message."""
    ran = engine(name, given="join/join_particles.star")
    assert ran.code == 2
    assert "64 px of 1.5 Å, 48 px of 2 Å. Extract all particles with one box and pixel size" in ran.reasons
    assert not list(Path("job").glob("run_it*"))


def test_case_8_a_subset_of_one_box_can_be_refined(here: Path) -> None:
    """Case 8: an optics group that no particle is left in is no reason to refuse."""
    write_set(count=40)
    other = pd.DataFrame({"image_name": ["000001@b.mrcs"] * 2, "optics_group": 1, "micrograph_name": "b.mrc"})
    other = other.assign(defocus_u=1.5e4, defocus_v=1.4e4, defocus_angle=0.0, voltage_of_row=0.0)
    ours = read_particles("particles.star").with_columns(voltage_of_row=1.0)
    write_particles("ours.star", ours)
    missing = {name: 0.0 for name in ours.table if name not in other}
    write_particles("other.star", ParticleSet(microscope(300, 2.0, 48), other.assign(**missing)))
    assert job("JoinStar", "--files", "other.star", "ours.star", out="join").code == 0
    table = read_particles("join/join_particles.star")
    write_particles("subset.star", table.subset(table.column("optics_group") == 2))
    ran = engine("Class3D", given="subset.star")
    assert ran.code == 0 and ran.counts() == (40, 40, 0, 0), ran.reasons
    found = read_particles("job/run_it002_data.star")
    assert found.optics_value("voltage").tolist() == [200.0] * 40 and len(found.optics) == 1
    assert np.isfinite(read_map("job/run_it002_class001.mrc")[0]).all()


def test_case_8_micrographs_and_particles_that_disagree_are_found_at_the_start(two_sets: Path) -> None:
    """Case 8: re-extraction from micrographs that say another microscope ends before the first image is cut."""
    optics = microscope(300.0, 1.5, 64).with_columns(micrograph_pixel_size=1.5, box_size=None, pixel_size=None)
    write_micrographs("mics.star", Micrographs(optics, pd.DataFrame({"micrograph_name": ["a.mrc", "b.mrc"], "optics_group": 1})))
    ran = job("Extract", "--micrographs", "mics.star", "--particles", "join/join_particles.star", "--box-size", 32, out="again")
    assert ran.code == 2
    assert "for b.mrc in the micrographs" in ran.reasons and "(2 such particles)" in ran.reasons
    assert not list(Path("again").rglob("*.mrcs"))
