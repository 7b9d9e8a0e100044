"""Select and JoinStar: which rows stay, that nothing is lost, and that classes are chosen by what they show (CASES 8, 16)."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import make_job, run_job
from verglas.errors import InputError
from verglas.io.mrc import read_header, write_map, write_stack
from verglas.io.star import write_star
from verglas.jobs.joinstar import JOB as JOINSTAR
from verglas.jobs.select import JOB as SELECT
from verglas.particles import Micrographs, OpticsGroups, ParticleSet, read_particles, write_micrographs, write_particles
from verglas.refine.class_selection import choose_class_averages, choose_volumes
from verglas.simulate.particles import simulate_particles
from verglas.volume.filters import lowpass

SIZE, PIXEL = 32, 5.0


@pytest.fixture
def particles(tmp_path: Path) -> Path:
    optics = pd.DataFrame(
        {"optics_group": [1], "name": ["g"], "voltage": [300.0], "pixel_size": [PIXEL], "movie_pixel_size": [1.0], "box_size": [SIZE]}
    )
    classes = np.repeat([1, 2, 3], [6, 3, 3])
    table = pd.DataFrame({"optics_group": 1, "image_name": [f"{i + 1}@s.mrcs" for i in range(12)], "class_number": classes})
    table = table.assign(micrograph_name="m.mrc", coordinate_x=np.arange(12) * 40.0, coordinate_y=0.0, max_probability=np.arange(12) / 12)
    write_particles(tmp_path / "particles.star", ParticleSet(OpticsGroups(optics), table))
    return tmp_path / "particles.star"


def model(folder: Path, images: list[str], shares: list[float], resolutions: list[float]) -> Path:
    columns = {"rlnReferenceImage": images, "rlnClassDistribution": shares, "rlnEstimatedResolution": resolutions}
    write_star(folder / "model.star", {"model_classes": pd.DataFrame(columns)})
    return folder / "model.star"


def averages() -> torch.Tensor:
    """A sharp blob, noise, and a sharp blob of few particles."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    blob = torch.from_numpy(np.exp(-((x / 5.0) ** 2 + (y / 3.0) ** 2))).float()
    noise = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 0.1
    return torch.stack([blob, noise, blob.T.contiguous()])


def test_rows_in_a_range_by_either_name(tmp_path: Path) -> None:
    optics = OpticsGroups(pd.DataFrame({"optics_group": [1], "name": ["g"], "voltage": [300.0], "micrograph_pixel_size": [1.0]}))
    table = pd.DataFrame({"micrograph_name": list("abc"), "optics_group": 1, "ctf_max_resolution": [4.0, 6.0, 9.0]})
    write_micrographs(tmp_path / "m.star", Micrographs(optics, table))
    for label in ("rlnCtfMaxResolution", "ctf_max_resolution"):
        params = {"select_from": "micrographs", "select_label": label, "select_maxval": 6.0}
        items = run_job(SELECT, params, {"micrographs": tmp_path / "m.star"}, tmp_path / label)
        assert items.notes["kept"] == 2
        assert SELECT.measure(tmp_path / label, SELECT.params(**params))["rows"] == 2
    with pytest.raises(InputError, match="no column defocus"):
        run_job(
            SELECT,
            {"select_from": "micrographs", "select_label": "defocus", "select_maxval": 1.0},
            {"micrographs": tmp_path / "m.star"},
            tmp_path,
        )


def test_classes_by_number(particles: Path, tmp_path: Path) -> None:
    run_job(SELECT, {"action": "classes", "classes": "1,3"}, {"particles": particles}, tmp_path / "out")
    assert set(read_particles(tmp_path / "out" / "particles.star").column("class_number")) == {1, 3}


def test_class_averages_by_rule(particles: Path, tmp_path: Path) -> None:
    write_stack(tmp_path / "c.mrcs", averages().numpy(), PIXEL)
    stars = model(tmp_path, [f"{i + 1:06d}@{tmp_path}/c.mrcs" for i in range(3)], [0.5, 0.25, 0.25], [12.0, 30.0, 13.0])
    params = {"action": "class_averages", "mask_diameter": 90.0}
    run_job(SELECT, params, {"particles": particles, "model": stars}, tmp_path / "out")
    assert set(read_particles(tmp_path / "out" / "particles.star").column("class_number")) == {1, 3}
    assert read_header(tmp_path / "out" / "class_averages.mrcs").shape[0] == 2
    assert SELECT.measure(tmp_path / "out", SELECT.params(**params)) == {"rows": 9, "smallest_part": 9, "classes_kept": 2}
    assert (tmp_path / "out" / "picture_selected.png").exists()


def test_the_choice_does_not_depend_on_the_order_of_the_classes() -> None:
    shares, resolutions = np.array([0.5, 0.25, 0.25]), np.array([12.0, 30.0, 13.0])
    straight = choose_class_averages(averages(), shares, resolutions, PIXEL, 90.0).keep
    turned = choose_class_averages(averages().flip(0), shares[::-1], resolutions[::-1], PIXEL, 90.0).keep
    assert straight.tolist() == turned[::-1].tolist() == [True, False, True]


def test_an_empty_or_tiny_class_is_left_out() -> None:
    images = averages() * torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    scores = choose_class_averages(images, np.array([0.95, 0.0, 0.05]), np.array([12.0, np.inf, 12.0]), PIXEL, 90.0)
    assert scores.keep.tolist() == [True, False, False]


@pytest.fixture(scope="module")
def density() -> torch.Tensor:
    return simulate_particles(2, box=SIZE, pixel_size=PIXEL)[2]


def test_equal_volumes_are_joined_and_another_structure_is_not(density: torch.Tensor) -> None:
    other = density.flip(0).roll(3, 1)
    noise = torch.randn(3, *density.shape, generator=torch.Generator().manual_seed(2)) * density.std() * 0.05
    maps = torch.stack([density, other, density]) + noise
    assert choose_volumes(maps, np.array([0.4, 0.25, 0.35]), np.array([12, 12, 11])).tolist() == [True, False, True]


def test_the_better_resolved_volume_wins_over_the_larger_one(density: torch.Tensor, particles: Path, tmp_path: Path) -> None:
    junk = lowpass(density.flip(1).roll(4, 0), PIXEL, 40.0)
    for number, volume in enumerate((junk, density, junk), start=1):
        write_map(tmp_path / f"class{number}.mrc", volume.numpy(), PIXEL)
    stars = model(tmp_path, [f"{tmp_path}/class{i}.mrc" for i in (1, 2, 3)], [0.5, 0.25, 0.25], [30.0, 12.0, 40.0])
    run_job(SELECT, {"action": "best_class"}, {"particles": particles, "model": stars}, tmp_path / "out")
    assert set(read_particles(tmp_path / "out" / "particles.star").column("class_number")) == {2}
    assert read_header(tmp_path / "out" / "best_class.mrc").pixel_size == pytest.approx(PIXEL)


def test_split_keeps_every_row_once(particles: Path, tmp_path: Path) -> None:
    params = {"action": "split", "nr_split": 5, "do_random": True}
    run_job(SELECT, params, {"particles": particles}, tmp_path / "out")
    parts = [read_particles(tmp_path / "out" / f"particles_split{i}.star") for i in range(1, 6)]
    assert sorted(name for part in parts for name in part.column("image_name")) == sorted(read_particles(particles).column("image_name"))


def test_duplicates_go(particles: Path, tmp_path: Path) -> None:
    run_job(SELECT, {"action": "duplicates", "duplicate_threshold": 50.0}, {"particles": particles}, tmp_path / "out")
    assert read_particles(tmp_path / "out" / "particles.star").column("coordinate_x").tolist() == [40.0 * i for i in range(1, 12, 2)]


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"action": "class_averages", "mask_diameter": 90.0}, "--model"),
        ({"action": "values"}, "--select-minval"),
        ({"action": "classes", "classes": "1;2"}, "--classes"),
        ({"select_from": "micrographs", "select_maxval": 1.0}, "--micrographs"),
        ({"action": "duplicates", "select_from": "micrographs"}, "--micrographs"),
    ],
)
def test_what_is_missing_is_said_before_work(particles: Path, tmp_path: Path, params: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        SELECT.validate(make_job(SELECT, params, {"particles": particles}, tmp_path / "out"))


def test_join_keeps_rows_and_optics_groups(particles: Path, tmp_path: Path) -> None:
    other = read_particles(particles).with_optics(voltage=200.0)
    write_particles(tmp_path / "other.star", other)
    items = run_job(JOINSTAR, {}, {"files": [particles, tmp_path / "other.star"]}, tmp_path / "out")
    joined = read_particles(tmp_path / "out" / "join_particles.star")
    assert items.done == len(joined) == 24
    assert joined.optics_value("voltage").tolist() == [300.0] * 12 + [200.0] * 12
    with pytest.raises(InputError, match="different"):
        JOINSTAR.validate(make_job(JOINSTAR, {}, {"files": [particles, particles]}, tmp_path / "again"))
