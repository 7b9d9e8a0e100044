import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.transform import Rotation

from verglas.errors import FileFormatError
from verglas.io.cryosparc import match_micrographs, read_cs, rotation_vectors_to_angles
from verglas.volume.rotations import euler_to_matrix


def particles(n: int = 3, **fields: np.ndarray) -> np.ndarray:
    """A particles array with the fields of a refinement; a field given as None is left out."""
    columns: dict[str, object] = {
        "uid": np.arange(100, 100 + n, dtype=np.uint64),
        "blob/path": np.array([b"J1/extract/s.mrc"] * n),
        "blob/idx": np.arange(n, dtype=np.uint32),
        "blob/shape": np.full((n, 2), 48, np.uint32),
        "blob/psize_A": np.ones(n, np.float32),
        "ctf/accel_kv": np.full(n, 300, np.float32),
        "ctf/cs_mm": np.full(n, 2.7, np.float32),
        "ctf/amp_contrast": np.full(n, 0.1, np.float32),
        "ctf/df1_A": np.full(n, 12000, np.float32),
        "ctf/df2_A": np.full(n, 11000, np.float32),
        "ctf/df_angle_rad": np.full(n, np.pi / 6, np.float32),
        "ctf/phase_shift_rad": np.full(n, np.pi / 2, np.float32),
        "alignments3D/pose": np.tile(np.float32([0.3, -0.2, 1.1]), (n, 1)),
        "alignments3D/shift": np.tile(np.float32([3, -2]), (n, 1)),
        "alignments3D/psize_A": np.full(n, 4, np.float32),
        "alignments3D/class": np.zeros(n, np.uint32),
        "alignments3D/split": np.arange(n, dtype=np.uint32) % 2,
    }
    return structured(columns | fields)


def structured(columns: dict[str, object]) -> np.ndarray:
    arrays = {name: np.asarray(values) for name, values in columns.items() if values is not None}
    first = next(iter(arrays.values()))
    out = np.zeros(len(first), [(name, values.dtype, values.shape[1:]) for name, values in arrays.items()])
    for name, values in arrays.items():
        out[name] = values
    return out


def save(path: Path, array: np.ndarray) -> Path:
    with path.open("wb") as file:
        np.save(file, array)
    return path


def test_shifts_are_in_pixels_of_the_alignment(tmp_path: Path) -> None:
    """Case 10."""
    found = read_cs(save(tmp_path / "p.cs", particles()))
    np.testing.assert_allclose(found.particles[["origin_x", "origin_y"]], [[12, -8]] * 3)
    assert found.optics[["pixel_size", "box_size", "voltage"]].to_numpy().tolist() == [[1, 48, 300]]
    table = found.particles
    assert table["image_name"].tolist() == [f"00000{i}@J1/extract/s.mrc" for i in (1, 2, 3)]
    np.testing.assert_allclose(table[["defocus_angle", "phase_shift"]], [[30, 90]] * 3, rtol=1e-6)
    assert table["half"].tolist() == [1, 2, 1]
    assert table["class_number"].tolist() == [1, 1, 1]


def test_rotation_vectors_are_the_transpose_of_relions_matrix() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(200, 3)) * random.uniform(0, 2, (200, 1))
    vectors[:3] = [[0, 0, 0], [0, 0, 0.7], [0, 0, -2.5]]
    vectors[3:6] = [[np.pi, 0, 0], [0, np.pi, 0], [np.pi / np.sqrt(2), np.pi / np.sqrt(2), 0]]  # tilt 180
    angles = rotation_vectors_to_angles(vectors)
    matrices = euler_to_matrix(torch.as_tensor(angles)).numpy()
    np.testing.assert_allclose(matrices, Rotation.from_rotvec(vectors).as_matrix().transpose(0, 2, 1), atol=1e-7)
    np.testing.assert_allclose(angles[1], [0, 0, np.rad2deg(0.7)], atol=1e-9)


def test_locations_are_fractions_of_the_shape(tmp_path: Path) -> None:
    """Case 10."""
    location = {
        "location/center_x_frac": np.full(3, 0.25, np.float32),
        "location/center_y_frac": np.full(3, 0.75, np.float32),
        "location/micrograph_shape": np.tile(np.uint32([3710, 3838]), (3, 1)),
        "location/micrograph_path": np.array([b">J2/imported/0012_mic.mrc"] * 3),
    }
    path = save(tmp_path / "p.cs", particles(**location))
    plain, turned = read_cs(path), read_cs(path, flip_y=True)
    np.testing.assert_allclose(plain.particles[["coordinate_x", "coordinate_y"]], [[0.25 * 3838, 0.75 * 3710]] * 3)
    np.testing.assert_allclose(turned.particles[["coordinate_x", "coordinate_y"]], [[0.25 * 3838, 0.25 * 3710]] * 3)
    assert any("from the first row" in note for note in plain.notes)
    assert any("turned" in note for note in turned.notes)
    assert plain.particles["micrograph_name"].tolist() == ["J2/imported/0012_mic.mrc"] * 3


def test_the_numeric_prefix_is_matched_with_or_without() -> None:
    known = ["MotionCorr/job002/m/mic_a.mrc", "MotionCorr/job002/m/0012_mic_b.mrc", "m/77.mrc"]
    names = ["J1/0099_mic_a.tif", "J1/0012_mic_b.mrc", "J1/5_0012_mic_b.mrc", "J1/77.mrc"]
    assert match_micrographs(names, known) == [known[0], known[1], known[1], known[2]]
    with pytest.raises(FileFormatError, match="matches none of the 3"):
        match_micrographs(["J1/0099_other.mrc"], known)
    with pytest.raises(FileFormatError, match="matches 2 of the 2"):
        match_micrographs(["J1/a.mrc"], ["x/a.mrc", "y/a.mrc"])


def test_passthrough_rows_in_another_order_are_joined_by_uid(tmp_path: Path) -> None:
    """Case 10."""
    defocus = np.float32([1000, 2000, 3000])
    order = [2, 0, 1]
    main = particles(**dict.fromkeys(("ctf/df1_A", "ctf/df2_A")))
    other = structured({"uid": main["uid"][order], "ctf/df1_A": defocus[order], "blob/psize_A": np.full(3, 9, np.float32)})
    found = read_cs(save(tmp_path / "p.cs", main), [save(tmp_path / "pass.cs", other)])
    assert found.particles["defocus_u"].tolist() == defocus.tolist()
    assert found.optics["pixel_size"].tolist() == [1]  # the first file's own fields stand
    with pytest.raises(FileFormatError, match="lacks 1 of the 3 particles"):
        read_cs(tmp_path / "p.cs", [save(tmp_path / "pass.cs", other[:2])])


def test_a_missing_field_is_named_with_what_replaces_it(tmp_path: Path) -> None:
    """Case 10."""
    path = save(tmp_path / "p.cs", particles(**{"blob/shape": None}))
    with pytest.raises(FileFormatError, match=r"blob/shape\. Give the box size \(box_size\)"):
        read_cs(path)
    assert read_cs(path, box_size=64).optics["box_size"].tolist() == [64]
    path = save(tmp_path / "p.cs", particles(**{"alignments3D/psize_A": None}))
    with pytest.raises(FileFormatError, match="alignments3D/psize_A"):
        read_cs(path)
    path = save(tmp_path / "p.cs", particles(**{"blob/path": None}))
    with pytest.raises(FileFormatError, match="passthrough"):
        read_cs(path)


def test_optics_groups_by_exposure_group_and_values(tmp_path: Path) -> None:
    fields = {"ctf/exp_group_id": np.uint32([7, 3, 7, 3]), "ctf/accel_kv": np.float32([300, 300, 300, 200])}
    found = read_cs(save(tmp_path / "p.cs", particles(4, **fields)))
    assert found.optics["voltage"].tolist() == [200, 300, 300]
    assert found.particles["optics_group"].tolist() == [3, 2, 3, 1]


def test_what_is_not_taken_over_is_said(tmp_path: Path) -> None:
    fields = {"ctf/tilt_A": np.ones((3, 2), np.float32), "blob/sign": -np.ones(3, np.float32), "alignments3D/split": np.zeros(3, np.uint32)}
    found = read_cs(save(tmp_path / "p.cs", particles(**fields)))
    said = "; ".join(found.notes)
    for word in ("beam tilt (ctf/tilt_A)", "dark", "half sets are not taken over"):
        assert word in said
    assert "half" not in found.particles


def test_stacks_that_relion_would_not_read_are_named(tmp_path: Path) -> None:
    stacks = {name: particles(**{"blob/path": np.array([name.encode()] * 3)}) for name in ("J1/a.mrc", "J1/a.mrcs")}
    notes = {name: "; ".join(read_cs(save(tmp_path / "p.cs", table)).notes) for name, table in stacks.items()}
    assert "link them" in notes["J1/a.mrc"] and "link them" not in notes["J1/a.mrcs"]


def test_2d_angles_are_psi(tmp_path: Path) -> None:
    names = [name for name in particles().dtype.names if name.startswith("alignments3D")]
    fields = dict.fromkeys(names) | {"alignments2D/pose": np.float32([0, np.pi / 2, -1])}
    found = read_cs(save(tmp_path / "p.cs", particles(**fields)))
    np.testing.assert_allclose(found.particles["psi"], [0, 90, -np.rad2deg(1)], rtol=1e-5, atol=1e-9)


def test_what_is_no_cs_file(tmp_path: Path) -> None:
    (tmp_path / "a.cs").write_text("hello")
    with pytest.raises(FileFormatError, match="not a cryoSPARC file"):
        read_cs(tmp_path / "a.cs")
    with pytest.raises(FileFormatError, match="without named fields"):
        read_cs(save(tmp_path / "b.cs", np.zeros(3)))
    with pytest.raises(FileFormatError, match="no rows"):
        read_cs(save(tmp_path / "c.cs", particles()[:0]))
    with pytest.raises(FileFormatError, match="does not exist"):
        read_cs(tmp_path / "absent.cs")
    path = save(tmp_path / "d.cs", particles())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FileFormatError, match="not a cryoSPARC file"):
        read_cs(path)


def test_a_real_file(shared_data: Path) -> None:
    path = shared_data / "stars" / "cryosparc_P12_J24_001_particles.cs.gz"
    with gzip.open(path) as file:
        raw = np.lib.format.read_array(file)
    found = read_cs(path)
    assert len(found.particles) == len(raw) == 2019
    assert found.optics[["voltage", "spherical_aberration", "pixel_size", "box_size"]].to_numpy().tolist() == [[200, 2, 2.95, 180]]
    np.testing.assert_allclose(found.particles["origin_x"], raw["alignments3D/shift"][:, 0] * 2.95, rtol=1e-5)
    assert isinstance(found.particles, pd.DataFrame)
    assert np.isfinite(found.particles[["rot", "tilt", "psi"]].to_numpy()).all()
