"""The directions of RELION's sampling tables, from RELION itself."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from refine.sets import particles
from verglas.io.mrc import write_map, write_stack
from verglas.io.star import list_table, numbers, read_star
from verglas.particles import write_particles
from verglas.refine.relion_directions import places_of, relion_angles, relion_directions
from verglas.volume.rotations import random_rotations
from verglas.volume.sampling import view_directions
from verglas.volume.symmetry import symmetry_operators

GROUPS = ["C1", "C2", "C3", "C4", "C7", "D1", "D2", "D3", "D7", "T", "O", "I1", "I2", "I3", "I4"]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four particles and a map."""
    folder = tmp_path_factory.mktemp("few")
    (folder / "out").mkdir()
    images, table, truth = particles(40, 24, 8.0, 1.0)
    write_stack(folder / "images.mrcs", images.numpy(), 8.0)
    write_map(folder / "map.mrc", truth.numpy(), 8.0)
    write_particles(folder / "particles.star", table.subset(np.arange(4)))
    return folder


@pytest.mark.relion
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("group", GROUPS)
def test_directions_are_those_that_relion_writes(group: str, order: int, few: Path) -> None:
    if (group, order) in (("I2", 1), ("I3", 1)):
        pytest.skip("RELION has no direction in so coarse a unit and stops")
    command = (
        f"relion_refine --i particles.star --o out/{group}_{order} --ref map.mrc --ini_high 60 --iter 1 --K 1 --healpix_order {order} "
        f"--sigma_ang 0.5 --offset_range 0 --offset_step 1 --sym {group} --pad 1 --particle_diameter 140 --oversampling 0 --j 1 "
        "--dont_check_norm --zero_mask --random_seed 1"
    )
    done = subprocess.run(command.split(), cwd=few, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-1000:]
    path = few / f"out/{group}_{order}_it001_sampling.star"
    table = list_table(read_star(path), "sampling_directions", path)
    theirs = np.stack([numbers(table, label, path) for label in ("rlnAngleRot", "rlnAngleTilt")], axis=1)
    ours = torch.stack(relion_angles(order, relion_directions(order, group)), dim=1).numpy()
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("group", GROUPS)
def test_every_pose_has_a_place_and_its_copies_the_same(group: str) -> None:
    """The direction of the place is a neighbour of the view, whichever copy of the pose is given."""
    order = 3
    matrices = random_rotations(200, torch.Generator().manual_seed(1))
    places = places_of(matrices, order, group)
    directions = view_directions(*relion_angles(order, relion_directions(order, group)))
    operators = symmetry_operators(group)
    nearness = torch.stack([(matrices[:, 2] @ operator * directions[places]).sum(1) for operator in operators]).amax(0)
    # half a pixel is 5.1°; at the border of a unit RELION leaves gaps of a pixel
    assert torch.rad2deg(torch.acos(nearness.clamp(-1, 1))).max() < 12.0
    copies = torch.stack([places_of(matrices @ operator, order, group) for operator in operators[:4]])
    assert (copies == places).double().mean() > 0.9
