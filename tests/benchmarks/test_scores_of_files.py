"""Scores from files: perfect for the truth itself, off by the amount that it was spoilt by, the same in every equivalent setting."""

from pathlib import Path

import numpy as np
import pytest
import torch

from comparison.scoring import Truth, score_job
from verglas.errors import InputError
from verglas.io.mrc import write_map
from verglas.particles import ParticleSet, write_particles
from verglas.simulate.particle_sets import particle_set, write_particle_set
from verglas.volume.filters import lowpass
from verglas.volume.resample import flip_hand, rotate_map
from verglas.volume.rotations import axis_rotation, euler_to_matrix, matrix_to_euler

N, BOX, PIXEL = 60, 32, 5.5
HALF = BOX // 2


@pytest.fixture(scope="module")
def d2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("d2")
    write_particle_set(folder, particle_set("d2", n=N, box=BOX, pixel_size=PIXEL))
    return folder


@pytest.fixture(scope="module")
def two_states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_particle_set(folder, particle_set("two_states", n=N, box=BOX, pixel_size=PIXEL))
    return folder


def refined(out: Path, particles: ParticleSet, *halves: torch.Tensor) -> Path:
    """A folder as Refine3D leaves it."""
    out.mkdir(exist_ok=True)
    write_particles(out / "run_data.star", particles)
    for number, density in enumerate(halves, start=1):
        write_map(out / f"run_half{number}_class001_unfil.mrc", density.numpy(), PIXEL)
    return out


def turned(particles: ParticleSet, change: torch.Tensor, *, left: bool = False) -> ParticleSet:
    """Poses A change (or change A) instead of A."""
    matrices = euler_to_matrix(torch.from_numpy(particles.angles()))
    angles = matrix_to_euler(change @ matrices if left else matrices @ change).numpy()
    return particles.with_columns(rot=angles[:, 0], tilt=angles[:, 1], psi=angles[:, 2])


def noise(amount: float, seed: int) -> torch.Tensor:
    return amount * torch.randn(BOX, BOX, BOX, generator=torch.Generator().manual_seed(seed))


def test_truth_is_perfect_in_any_row_order(d2: Path, tmp_path: Path) -> None:
    truth = Truth(d2)
    density, _ = truth.state(1)
    shuffled = truth.particles.subset(np.random.default_rng(0).permutation(N))
    scores = score_job("Refine3D", refined(tmp_path, shuffled, density, density), d2)
    assert scores["pose_median"] < 1e-4 and scores["pose_90"] < 1e-4 and scores["shift_median"] < 1e-9
    assert scores["half_shell"] == HALF and scores["truth_shell"] == HALF and scores["fsc_area"] > 0.998
    assert scores["particles"] == N and scores["within_10_degrees"] == 1


def test_errors_are_those_that_were_made(d2: Path, tmp_path: Path) -> None:
    truth = Truth(d2)
    density, _ = truth.state(1)
    angle, shift = np.random.default_rng(1).permutation(np.linspace(-8, 8, N)), np.full(N, 1.5)
    shift[:12] = 4.0
    spoilt = truth.particles.with_columns(psi=truth.particles.column("psi") + angle, origin_x=truth.particles.column("origin_x") + shift)
    scores = score_job("Refine3D", refined(tmp_path, spoilt, lowpass(density, PIXEL, 22.0), lowpass(density, PIXEL, 22.0)), d2)
    assert scores["pose_median"] == pytest.approx(4.0, abs=0.35) and scores["pose_90"] == pytest.approx(7.2, abs=0.4)
    assert scores["shift_median"] == pytest.approx(1.5) and scores["shift_90"] == pytest.approx(4.0)
    assert abs(scores["truth_shell"] - BOX * PIXEL / 22) <= 1  # cut at 22 Å: shell 8 of 16
    assert scores["fsc_area"] == pytest.approx(0.5, abs=0.07)


def test_other_settings_of_the_group_and_the_mirror_cost_nothing(d2: Path, tmp_path: Path) -> None:
    truth = Truth(d2)
    density, _ = truth.state(1)
    quarter = axis_rotation(torch.tensor([0.0, 0.0, 1.0]).double(), 90.0)  # in the normaliser of D2, not in D2
    moved = rotate_map(density, quarter.T.float())
    scores = score_job("Refine3D", refined(tmp_path / "quarter", turned(truth.particles, quarter), moved, moved), d2)
    assert scores["pose_90"] < 1e-3 and scores["truth_shell"] == HALF
    mirror = torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double()
    scores = score_job("Refine3D", refined(tmp_path / "mirror", turned(truth.particles, mirror, left=True), *[flip_hand(density)] * 2), d2)
    assert scores["pose_90"] < 1e-3 and scores["truth_shell"] == HALF


def test_half_maps_and_truth_are_read_apart(d2: Path, tmp_path: Path) -> None:
    """Halves that share an error agree with each other, and not with the truth."""
    truth = Truth(d2)
    density, _ = truth.state(1)
    wrong = lowpass(density, PIXEL, 30.0) + noise(0.2 * float(density.std()), 3)
    scores = score_job("Refine3D", refined(tmp_path, truth.particles, wrong, wrong), d2)
    assert scores["half_shell"] == HALF and scores["truth_shell"] <= 7
    apart = [density + noise(4.0 * float(density.std()), seed) for seed in (1, 2)]
    scores = score_job("Refine3D", refined(tmp_path, truth.particles, *apart), d2)
    assert scores["half_shell"] < HALF


def classified(out: Path, particles: ParticleSet, maps: list[torch.Tensor]) -> Path:
    out.mkdir(exist_ok=True)
    for iteration in ("005", "012"):
        write_particles(out / f"run_it{iteration}_data.star", particles if iteration == "012" else particles.with_columns(class_number=1))
    for number, density in enumerate(maps, start=1):
        write_map(out / f"run_it012_class{number:03d}.mrc", density.numpy(), PIXEL)
    return out


def test_classes_are_matched_to_states_and_the_last_iteration_counts(two_states: Path, tmp_path: Path) -> None:
    truth = Truth(two_states)
    maps = [truth.state(number)[0] for number in (1, 2)]
    swapped = 3 - truth.particles.column("class_number")
    scores = score_job("Class3D", classified(tmp_path, truth.particles.with_columns(class_number=swapped), maps[::-1]), two_states)
    assert scores["purity"] == 100 and 50 <= scores["chance"] < 80
    assert scores["state1_truth_shell"] == scores["state2_truth_shell"] == HALF
    spoilt = swapped.copy()
    spoilt[:6] = 3 - spoilt[:6]
    scores = score_job("Class3D", classified(tmp_path, truth.particles.with_columns(class_number=spoilt), maps), two_states)
    assert scores["purity"] == pytest.approx(90.0)
    assert scores["state1_fsc_area"] < 0.97  # the classes' maps are those of the other state


def test_views_and_shifts_of_2d_classes(d2: Path, tmp_path: Path) -> None:
    """Particles seen from within 5° of a class's direction; an average that sits off its centre by (3, −2) Å costs nothing."""
    truth, random = Truth(d2), np.random.default_rng(2)
    label = np.arange(N) % 3 + 1
    psi = random.uniform(-180, 180, N)
    c, s = np.cos(np.radians(psi)), np.sin(np.radians(psi))
    own = np.array([[0.0, 0.0], [3.0, -2.0], [-5.0, 1.0]])[label - 1]
    # an average turned by psi shows its own offset d at (c d_x + s d_y, −s d_x + c d_y)
    origins = truth.particles.origins() + np.stack([c * own[:, 0] + s * own[:, 1], -s * own[:, 0] + c * own[:, 1]], axis=1)
    origins[:20, 1] += 30.0  # a third of the particles is far off
    found = truth.particles.with_columns(class_number=label, psi=psi, origin_x=origins[:, 0], origin_y=origins[:, 1], rot=0.0, tilt=0.0)
    scores = score_job("Class2D", classified(tmp_path, found, []), d2)
    assert scores["classes"] == 3 and scores["shift_median"] < 1.0
    assert scores["view_median"] > 15  # labels at random: views all over D2's quarter of the sphere
    one_view = truth.particles.with_columns(rot=30.0, tilt=70.0)
    write_particles(tmp_path / "truth.star", one_view)
    (tmp_path / "set.json").write_bytes((d2 / "set.json").read_bytes())
    scores = score_job("Class2D", tmp_path, tmp_path)
    assert scores["view_90"] < 1e-4 and scores["near_views"] == 100


def test_initial_model_is_found_wherever_it_lies(d2: Path, tmp_path: Path) -> None:
    density, _ = Truth(d2).state(1)
    turn = axis_rotation(torch.tensor([1.0, 2.0, -0.5]), 77.0)
    write_map(tmp_path / "initial_model.mrc", rotate_map(flip_hand(density), turn).numpy(), PIXEL)
    scores = score_job("InitialModel", tmp_path, d2)
    assert scores["mirrored"] == 1 and scores["truth_shell"] >= HALF - 2


def test_a_job_of_another_set_is_refused(d2: Path, tmp_path: Path) -> None:
    density, _ = Truth(d2).state(1)
    names = [name.replace("particles/", "other/") for name in Truth(d2).particles.column("image_name")]
    with pytest.raises(InputError, match="not of"):
        score_job("Refine3D", refined(tmp_path, Truth(d2).particles.with_columns(image_name=names), density, density), d2)
    with pytest.raises(FileNotFoundError, match="no run_it"):
        score_job("Class2D", tmp_path / "nothing", d2)
