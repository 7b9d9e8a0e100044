"""The sign of cryoSPARC's shifts and poses, proven by a reconstruction (CASES.md, 10).

The `.cs` file is written as cryoSPARC means it, by the converters of the field (pyem, cryodrgn): `pose` is the rotation vector of
the transpose of RELION's matrix, `shift` the shift that centres the particle in pixels of `alignments3D/psize_A`.
"""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.transform import Rotation

from command_line import job
from refine.sets import DIAMETER
from verglas.io.mrc import read_map, write_stack
from verglas.particles import Micrographs, ParticleSet, StackImages, read_particles, write_micrographs, write_particles
from verglas.refine.assignments import from_particles
from verglas.refine.observations import Observations
from verglas.simulate.particles import simulate_particles
from verglas.volume.fsc import fsc
from verglas.volume.reconstruct import reconstruct
from verglas.volume.rotations import euler_to_matrix
from verglas.volume.slices import FourierSums, pixel_list

BOX, PIXEL, COUNT, SHELLS = 32, 5.0, 300, 12
ALIGNED_AT = 4 * PIXEL  # the refinement was of images binned by four


def write_cs(path: Path, table: ParticleSet) -> None:
    """The particles' truth as a cryoSPARC refinement would leave it."""
    matrices = euler_to_matrix(torch.as_tensor(table.angles())).numpy()
    columns: dict[str, np.ndarray] = {
        "uid": np.arange(COUNT, dtype=np.uint64),
        "blob/path": np.array([b"images.mrc"] * COUNT),
        "blob/idx": np.arange(COUNT, dtype=np.uint32),
        "blob/shape": np.full((COUNT, 2), BOX, np.uint32),
        "blob/psize_A": np.full(COUNT, PIXEL, np.float32),
        "ctf/accel_kv": np.full(COUNT, 200, np.float32),
        "ctf/cs_mm": np.full(COUNT, 2.7, np.float32),
        "ctf/amp_contrast": np.full(COUNT, 0.1, np.float32),
        "ctf/df1_A": table.column("defocus_u").astype(np.float32),
        "ctf/df2_A": table.column("defocus_v").astype(np.float32),
        "ctf/df_angle_rad": np.deg2rad(table.column("defocus_angle")).astype(np.float32),
        "ctf/phase_shift_rad": np.zeros(COUNT, np.float32),
        "alignments3D/pose": Rotation.from_matrix(matrices.transpose(0, 2, 1)).as_rotvec().astype(np.float32),
        "alignments3D/shift": (table.origins() / ALIGNED_AT).astype(np.float32),
        "alignments3D/psize_A": np.full(COUNT, ALIGNED_AT, np.float32),
        "location/micrograph_path": np.array([b"0012_mic.mrc"] * COUNT),
    }
    array = np.zeros(COUNT, [(name, values.dtype, values.shape[1:]) for name, values in columns.items()])
    for name, values in columns.items():
        array[name] = values
    with path.open("wb") as file:
        np.save(file, array)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ParticleSet, ParticleSet, torch.Tensor]:
    """Folder, imported particles, true particles, true map; shifts of some 15 Å."""
    images, table, truth = simulate_particles(COUNT, BOX, PIXEL, snr=1.0, offset_sigma=15.0)
    folder = tmp_path_factory.mktemp("cs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_stack("images.mrc", images.numpy(), PIXEL)
        write_cs(folder / "refined.cs", table)
        assert job("Import", "--kind", "particles", "--files", "refined.cs", out="job").code == 0
        return folder, read_particles("job/particles.star"), table, truth


def agreement(particles: ParticleSet, truth: torch.Tensor) -> float:
    """Mean FSC with the true map, over the first shells, of the map made from the particles as they say that they lie."""
    seen = Observations(particles, StackImages(particles), mask_diameter=DIAMETER)
    known, pixels = from_particles(particles, len(seen.micrographs)), pixel_list(BOX, SHELLS, min_shell=0)
    batch = seen.batch(torch.arange(COUNT), known, torch.ones(1, seen.shells), pixels, exact_origins=True)
    sums = FourierSums(BOX, 3, SHELLS)
    sums.add(known.matrices, pixels, batch.unmasked * batch.ctf, batch.ctf.square())
    return float(fsc(reconstruct(sums)[0], truth)[2:SHELLS].mean())


def test_case_10_shifts_in_angstrom_are_the_true_ones(imported: tuple[Path, ParticleSet, ParticleSet, torch.Tensor]) -> None:
    """Case 10: pixels of the alignment, not of the images."""
    _, found, table, _ = imported
    assert np.abs(table.origins()).max() > 30
    np.testing.assert_allclose(found.origins(), table.origins(), atol=1e-4)
    turned = euler_to_matrix(torch.as_tensor(found.angles())) - euler_to_matrix(torch.as_tensor(table.angles()))
    assert turned.abs().max() < 1e-5


def test_case_10_a_reconstruction_proves_the_sign(
    imported: tuple[Path, ParticleSet, ParticleSet, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 10: with the shifts as imported the map is the true one; with either sign turned, or none, it is not."""
    folder, found, _, truth = imported
    monkeypatch.chdir(folder)
    right = agreement(found, truth)
    assert right > 0.95
    x, y = found.origins().T
    for wrong in ((-x, -y), (-x, y), (x, -y), (0 * x, 0 * y)):
        assert agreement(found.with_columns(origin_x=wrong[0], origin_y=wrong[1]), truth) < right - 0.3


def test_case_10_fields_and_micrographs_through_import(
    imported: tuple[Path, ParticleSet, ParticleSet, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 10: a missing field is named with the option that replaces it; micrographs are known without cryoSPARC's prefix."""
    folder, found, _, _ = imported
    monkeypatch.chdir(folder)
    array = np.load("refined.cs")
    with Path("bare.cs").open("wb") as file:
        np.save(file, array[[name for name in array.dtype.names if name != "blob/shape"]])
    ran = job("Import", "--kind", "particles", "--files", "bare.cs", out="bare")
    assert ran.code == 2 and "bare.cs: has no field blob/shape" in ran.reasons and "--new-box" in ran.reasons
    optics = found.optics.with_columns(pixel_size=None, box_size=None, movie_pixel_size=PIXEL)
    write_micrographs("mics.star", Micrographs(optics, pd.DataFrame({"micrograph_name": ["mics/mic.mrc"], "optics_group": 1})))
    words = ("--kind", "particles", "--files", "bare.cs", "--new-box", BOX, "--micrographs", "mics.star")
    assert job("Import", *words, out="whole").code == 0
    table = read_particles("whole/particles.star")
    assert set(table.column("micrograph_name")) == {"mics/mic.mrc"} and table.optics.box_size == BOX


@pytest.mark.relion
def test_case_10_relion_reconstructs_the_same_map(
    imported: tuple[Path, ParticleSet, ParticleSet, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 10: RELION reads what was imported, and its map is the true one too; not so with the signs turned."""
    folder, found, _, truth = imported
    monkeypatch.chdir(folder)
    (folder / "images.mrcs").symlink_to("images.mrc")  # RELION takes stacks only under this suffix
    found = found.with_columns(image_name=[str(name) + "s" for name in found.column("image_name")])
    write_particles("right.star", found)
    write_particles("turned.star", found.with_columns(origin_x=-found.origins()[:, 0], origin_y=-found.origins()[:, 1]))
    agreed = []
    for star in ("right.star", "turned.star"):
        command = ["relion_reconstruct", "--i", star, "--o", "theirs.mrc", "--ctf", "--j", "1"]
        subprocess.run(command, check=True, capture_output=True)
        agreed.append(float(fsc(torch.from_numpy(read_map("theirs.mrc")[0]), truth)[2:SHELLS].mean()))
    assert agreed[0] > 0.95 and agreed[1] < agreed[0] - 0.3, agreed
