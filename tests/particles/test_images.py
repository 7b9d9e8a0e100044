"""Images found by name: indices counted from 1 and checked before any work (CASES 6)."""

from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch

from verglas.errors import FileFormatError, InputError
from verglas.io.mrc import read_header, write_stack
from verglas.particles import KeptImages, OpticsGroups, ParticleSet, StackImages, ctf_parameters, reading_order
from verglas.particles.duplicates import keep_one_of_duplicates

OPTICS = OpticsGroups(
    pd.DataFrame(
        {
            "optics_group": [1],
            "pixel_size": [2.0],
            "box_size": [8],
            "movie_pixel_size": [1.0],
            "voltage": [300.0],
            "spherical_aberration": [2.7],
            "amplitude_contrast": [0.1],
        }
    )
)


def named(*names: str) -> ParticleSet:
    return ParticleSet(OPTICS, pd.DataFrame({"image_name": list(names), "optics_group": 1}))


@pytest.fixture
def stacks(tmp_path: Path) -> tuple[Path, Path]:
    for number, name in enumerate(("a.mrcs", "b.mrc")):
        images = np.arange(5, dtype=np.float32)[:, None, None] + np.zeros((5, 8, 8), np.float32) + 10 * number
        write_stack(tmp_path / name, images, 2.0)
    return tmp_path / "a.mrcs", tmp_path / "b.mrc"


def test_reads_in_the_order_asked_from_several_stacks(stacks: tuple[Path, Path]) -> None:
    """Case 6."""
    a, b = stacks
    source = StackImages(named(f"000001@{a}", f"5@{b}", f"000003@{a}"))
    assert source.read(np.array([1, 2, 0]))[:, 0, 0].tolist() == [14.0, 2.0, 0.0]
    assert source.preload().read(np.array([1]))[0, 3, 3] == 14.0


@pytest.mark.parametrize("native", ["0", "1"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int16"])
def test_any_images_in_any_order_are_what_the_stacks_hold(tmp_path: Path, dtype: str, native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By compiled code and by the plain one, runs of neighbours and single images, repeated ones too."""
    monkeypatch.setenv("VERGLAS_NATIVE", native)
    draw = np.random.default_rng(1)
    stored = draw.integers(-99, 99, (3, 7, 8, 8)).astype(dtype)
    for number, images in enumerate(stored):
        write_stack(tmp_path / f"{number}.mrcs", images, 2.0, dtype)
    source = StackImages(named(*(f"{image + 1}@{tmp_path}/{number}.mrcs" for number in range(3) for image in range(7))))
    asked = np.concatenate([np.arange(21), draw.integers(0, 21, 40), np.arange(20, -1, -1)])
    assert np.array_equal(source.read(asked).numpy(), stored.reshape(21, 8, 8)[asked].astype(np.float32))
    assert source.read(asked[:0]).shape == (0, 8, 8)


def test_particles_are_read_by_stack_and_by_number() -> None:
    assert reading_order(named("10@b.mrcs", "2@b.mrcs", "000003@a.mrcs", "1@c.mrcs", "11@a.mrcs")).tolist() == [2, 4, 1, 0, 3]


@pytest.mark.parametrize("index", ["000000", "9", "x"])
def test_an_index_outside_the_stack_is_refused_before_work(stacks: tuple[Path, Path], index: str) -> None:
    """Case 6."""
    with pytest.raises(InputError):
        StackImages(named(f"{index}@{stacks[0]}"))


def test_the_error_names_index_and_size(stacks: tuple[Path, Path]) -> None:
    """Case 6."""
    with pytest.raises(InputError, match=r"image 9 asked for, it holds 1 to 5"):
        StackImages(named(f"1@{stacks[0]}", f"9@{stacks[0]}"))


def test_a_missing_stack_is_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such stack, 2 particles"):
        StackImages(named(f"1@{tmp_path}/none.mrcs", f"2@{tmp_path}/none.mrcs"))


def test_missing_or_bad_defocus_is_refused() -> None:
    particles = named("1@a.mrcs", "2@a.mrcs")
    with pytest.raises(InputError, match="defocus_u"):
        ctf_parameters(particles)
    bad = particles.with_columns(defocus_u=[1e4, np.nan], defocus_v=1e4, defocus_angle=0.0)
    with pytest.raises(InputError, match="row 2"):
        ctf_parameters(bad)


def test_of_duplicates_the_better_stays_and_chains_are_not_eaten_whole() -> None:
    particles = named("1@a", "2@a", "3@a", "4@a").with_columns(
        micrograph_name=["m", "m", "m", "other"],
        coordinate_x=[0.0, 20.0, 40.0, 0.0],
        coordinate_y=0.0,
        origin_x=0.0,
        origin_y=0.0,
        max_probability=[0.9, 0.5, 0.4, 0.1],
    )
    # The middle one goes because of the first; the last has then no neighbour that stays.
    assert keep_one_of_duplicates(particles, 25.0).tolist() == [True, False, True, True]


def test_duplicates_are_found_after_the_shift_to_the_aligned_centre() -> None:
    particles = named("1@a", "2@a").with_columns(
        micrograph_name="m", coordinate_x=[100.0, 160.0], coordinate_y=50.0, origin_x=[-30.0, 25.0], origin_y=0.0
    )
    assert keep_one_of_duplicates(particles, 10.0).tolist() == [True, False]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int16", ">f4"])
def test_any_choice_of_images_is_read_in_any_order_from_any_type(tmp_path: Path, dtype: str) -> None:
    random = np.random.default_rng(3)
    values = random.integers(-9, 9, (3, 7, 8, 8)).astype(np.float32)
    names = []
    for number, images in enumerate(values):
        path = tmp_path / f"{number}.mrcs"
        if dtype == ">f4":
            with mrcfile.new(path, images.astype(">f4")) as file:
                file.voxel_size = 2.0
            assert read_header(path).dtype == np.dtype(">f4")
        else:
            write_stack(path, images, 2.0, dtype)
        names += [f"{k + 1}@{path}" for k in range(7)]
    source, flat = StackImages(named(*names)), values.reshape(21, 8, 8)
    for chosen in (np.arange(21), np.array([20, 3, 3, 8, 0, 9, 10]), np.arange(1, 21, 2), np.array([], np.int64)):
        assert np.array_equal(source.read(chosen).float().numpy(), flat[chosen])
    assert source.read(np.arange(2)).dtype == (torch.float16 if dtype == "float16" else torch.float32)
    kept = KeptImages(source)
    for chosen in ([4, 2], [2, 20, 4]):
        assert np.array_equal(kept.read(np.array(chosen)).float().numpy(), flat[chosen])


def test_a_stack_that_shrinks_meanwhile_is_an_error(stacks: tuple[Path, Path]) -> None:
    source = StackImages(named(*(f"{k}@{stacks[0]}" for k in range(1, 6))))
    with stacks[0].open("r+b") as file:
        file.truncate(1024 + 3 * 256)
    assert len(source.read(np.arange(3))) == 3
    with pytest.raises(FileFormatError, match="ends at byte"):
        source.read(np.arange(5))
