"""Import: every kind of file, odd names and places, damaged files."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from helpers import make_job, run_job
from verglas.errors import FileFormatError, InputError
from verglas.io.coordinates import read_coordinates
from verglas.io.movie import write_movie
from verglas.io.mrc import read_image, read_map, write_image, write_map, write_stack
from verglas.io.names import output_names
from verglas.io.star import write_star
from verglas.jobs.import_data import JOB
from verglas.jobs.import_files import find_files
from verglas.particles import read_micrographs, read_particles


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def movie(path, frames=3, seed=0):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_movie(path, np.random.default_rng(seed).poisson(3, (frames, 24, 32)).astype(np.uint8), 1.0)


def test_names_that_look_like_patterns_and_worse(here):
    """CASES.md, 4: each is imported under its own name."""
    names = ["m/a b.tif", "m/x.1.tif", "m/x.2.tif", "m/p[-61_00].tif", "m/X+0Y-1.tif", "m/upper.TIF"]
    for name in names:
        movie(name)
    listed = "; ".join(names)
    items = run_job(JOB, {"files": listed, "pixel_size": 0.9}, {}, here / "Import/job001")
    found = read_micrographs("Import/job001/movies.star").names()
    assert items.done == 6 and found == names
    assert len(set(output_names(found, "MotionCorr/job002", ".mrc"))) == 6
    assert find_files("m/p[-61_00].tif") == [here.joinpath("m/p[-61_00].tif").relative_to(here)]
    assert len(find_files("m/*.tif")) == 5


def test_movies_of_every_format(here):
    names = ["m/a.tif", "m/b.mrc", "m/c.mrcs", "m/d.eer"]
    for name in names:
        movie(name)
    job = make_job(JOB, {"files": ";".join(names), "pixel_size": 0.9}, {}, here / "Import/job001")
    assert JOB.run(job).done == 4
    assert read_micrographs("Import/job001/movies.star").names() == names
    assert job.record["sizes"].pop("32 x 24 x 3") == 3
    assert [size.startswith("32 x 24 x ") for size in job.record["sizes"]] == [True]  # internal frames of the EER movie


def test_places(here):
    """CASES.md, 5: same names in two folders, a path upwards, an absolute path, a symlinked folder; twice the same job."""
    for name in ("d1/a.tif", "d2/a.tif", "real/b.tif", "work/c.tif"):
        movie(name)
    Path("link").symlink_to("real")
    os.chdir("work")
    files = f"./c.tif;../d1/a.tif;..//d2/a.tif;../link/b.tif;{here}/real/b.tif"
    run_job(JOB, {"files": files, "pixel_size": 0.9}, {}, here / "work/Import/job001")
    names = read_micrographs("Import/job001/movies.star").names()
    assert names == ["c.tif", "../d1/a.tif", "../d2/a.tif", "../link/b.tif", f"{here}/real/b.tif"]
    outputs = output_names(names, "Import/job002", ".mrc")
    assert len(set(outputs)) == 5 and all(".." not in path.parts for path in outputs)
    before = (here / "work/Import/job001/movies.star").stat().st_mtime_ns
    run_job(JOB, {"files": files, "pixel_size": 0.9}, {}, here / "work/Import/job002")
    assert (here / "work/Import/job001/movies.star").stat().st_mtime_ns == before


def test_patterns_in_natural_order_and_what_matches_nothing(here):
    for number in (1, 2, 10):
        movie(f"m/mic_{number}.tif")
    assert [path.name for path in find_files("m/mic_*.tif")] == ["mic_1.tif", "mic_2.tif", "mic_10.tif"]
    with pytest.raises(InputError, match=r"another case, such as m/mic_1.tif"):
        find_files("m/MIC_*.TIF")
    with pytest.raises(InputError, match="is a folder"):
        find_files("m")
    Path("dead.tif").symlink_to("gone.tif")
    with pytest.raises(InputError, match="link"):
        find_files("dead.tif")


def test_damaged_files_are_left_out_named_and_counted(here):
    for number in range(4):
        movie(f"m/{number}.tif", seed=number)
    (here / "m/1.tif").write_bytes((here / "m/1.tif").read_bytes()[:200])
    (here / "m/2.tif").write_bytes(b"")
    items = run_job(JOB, {"files": "m/*.tif", "pixel_size": 1.1}, {}, here / "out")
    assert (items.total, items.done, items.failed) == (4, 2, 2)
    assert [problem.item for problem in items.problems] == ["m/1.tif", "m/2.tif"]
    assert read_micrographs("out/movies.star").names() == ["m/0.tif", "m/3.tif"]
    metrics = JOB.measure(here / "out", JOB.params(files="m/*.tif"))
    assert metrics["count"] == 2 and metrics["pixel_size"] == 1.1


def test_micrographs_of_three_formats_and_their_optics(here):
    values = np.random.default_rng(0).normal(100, 10, (20, 30))
    write_image("a.mrc", values.astype(np.float32), 1.5)
    Image.fromarray(values.astype(np.uint8)).save("b.png")
    write_stack("c.mrc", np.zeros((3, 8, 8), np.float32), 1.5)
    params = {"kind": "micrographs", "files": "a.mrc;b.png;c.mrc", "pixel_size": 1.5, "voltage": 200, "beam_tilt_x": 0.3}
    items = run_job(JOB, params, {}, here / "out")
    assert items.failed == 1 and "3 sections" in items.problems[0].reason
    table = read_micrographs("out/micrographs.star")
    assert table.kind == "micrographs" and table.pixel_sizes.tolist() == [1.5, 1.5]
    assert table.optics.value("voltage")[0] == 200 and table.optics.value("beam_tilt_x")[0] == 0.3


def test_pixel_size_is_asked_for_and_a_list_brings_its_own(here):
    movie("m/a.tif")
    with pytest.raises(InputError, match="pixel-size"):
        run_job(JOB, {"files": "m/a.tif"}, {}, here / "out")
    run_job(JOB, {"files": "m/a.tif", "pixel_size": 0.7}, {}, here / "first")
    run_job(JOB, {"files": "first/movies.star"}, {}, here / "second")
    assert read_micrographs("second/movies.star").pixel_sizes.tolist() == [0.7]
    write_star("bare.star", {"": pd.DataFrame({"rlnMicrographMovieName": ["m/a.tif"]})})
    run_job(JOB, {"files": "bare.star", "pixel_size": 0.8}, {}, here / "third")
    assert read_micrographs("third/movies.star").pixel_sizes.tolist() == [0.8]


def test_coordinates_find_their_micrographs(here):
    for name in ("mic_1", "mic_10", "mic_2", "mic_3"):
        write_image(f"m/{name}.mrc", np.ones((64, 64), np.float32), 1.0)
    run_job(JOB, {"kind": "micrographs", "files": "m/*.mrc", "pixel_size": 1.0}, {}, here / "mics")
    Path("p").mkdir()
    (here / "p/mic_1.box").write_text("10 20 8 8\n30 40 8 8\n")
    (here / "p/mic_10_picked.csv").write_text("x,y\n5,6\n")
    (here / "p/mic_2.box").write_text("10 twenty 8 8\n")
    (here / "p/other.box").write_text("1 1 8 8\n")
    inputs = {"micrographs": here / "mics/micrographs.star"}
    items = run_job(JOB, {"kind": "coordinates", "files": "p/*"}, inputs, here / "out")
    assert (items.total, items.done, items.skipped, items.failed) == (4, 2, 1, 1)
    assert {problem.item for problem in items.problems} == {"m/mic_2.mrc", "m/mic_3.mrc"}
    assert read_coordinates("out/m/mic_1_import.star")["coordinate_x"].tolist() == [14, 34]
    assert read_coordinates("out/m/mic_10_import.star")["coordinate_y"].tolist() == [6]
    assert (here / "out/coords_suffix_import.star").read_text().strip() == str(here / "mics/micrographs.star")
    assert JOB.measure(here / "out", JOB.params(kind="coordinates", files="p/*")) == {"count": 3, "micrographs": 2}


def test_one_coordinate_file_for_all_micrographs(here):
    for name in "ab":
        write_image(f"m/{name}.mrc", np.ones((64, 64), np.float32), 1.0)
    run_job(JOB, {"kind": "micrographs", "files": "m/*.mrc", "pixel_size": 1.0}, {}, here / "mics")
    names = ["a.mrc", "b.mrc", "elsewhere/a.mrc"]
    table = {"rlnMicrographName": names, "rlnCoordinateX": [1.0, 2.0, 3.0], "rlnCoordinateY": [4.0, 5.0, 6.0]}
    write_star("all.star", {"": pd.DataFrame(table)})
    run_job(JOB, {"kind": "coordinates", "files": "all.star"}, {"micrographs": here / "mics/micrographs.star"}, here / "out")
    assert read_coordinates("out/m/a_import.star")["coordinate_x"].tolist() == [1, 3]
    assert read_coordinates("out/m/b_import.star")["coordinate_x"].tolist() == [2]


def particle_star(stacks, path="in.star"):
    optics = {
        "rlnOpticsGroupName": ["g"], "rlnOpticsGroup": [1], "rlnVoltage": [300.0], "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1], "rlnImagePixelSize": [2.0], "rlnImageSize": [16],
    }  # fmt: skip
    names = [f"{i:06d}@{stack}" for stack in stacks for i in (1, 2)]
    write_star(path, {"optics": pd.DataFrame(optics), "particles": pd.DataFrame({"rlnImageName": names, "rlnOpticsGroup": 1})})


def test_particles_with_a_missing_stack(here):
    write_stack("s1.mrcs", np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32), 2.0)
    particle_star(["s1.mrcs", "gone.mrcs"])
    items = run_job(JOB, {"kind": "particles", "files": "in.star"}, {}, here / "out")
    assert (items.total, items.done, items.failed) == (4, 2, 2) and items.problems[0].item == "gone.mrcs"
    assert read_particles("out/particles.star").column("image_name").tolist() == ["000001@s1.mrcs", "000002@s1.mrcs"]


def test_particles_beyond_their_stack_are_refused(here):
    write_stack("s1.mrcs", np.zeros((1, 16, 16), np.float32), 2.0)
    particle_star(["s1.mrcs"])
    with pytest.raises(InputError, match=r"image 2"):
        run_job(JOB, {"kind": "particles", "files": "in.star"}, {}, here / "out")


def test_cryosparc_particles_with_their_stack(here):
    """The stack's path is relative to cryoSPARC's project, two folders above the job's files or beside them."""
    write_stack("project/J1/images.mrc", np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32), 1.5)
    fields = [
        ("uid", "<u8"), ("blob/path", "S40"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4"),
        ("ctf/accel_kv", "<f4"), ("ctf/cs_mm", "<f4"), ("ctf/amp_contrast", "<f4"), ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4"),
        ("ctf/df_angle_rad", "<f4"), ("ctf/phase_shift_rad", "<f4"),
    ]  # fmt: skip
    array = np.zeros(3, fields)
    array["uid"], array["blob/path"], array["blob/idx"], array["blob/shape"] = [7, 8, 9], b"J1/images.mrc", [2, 0, 1], (16, 16)
    array["blob/psize_A"], array["ctf/accel_kv"], array["ctf/cs_mm"], array["ctf/amp_contrast"] = 1.5, 300, 2.7, 0.1
    array["ctf/df1_A"], array["ctf/df2_A"] = 12000, 11000
    with (here / "project/J1/particles.cs").open("wb") as file:
        np.save(file, array)
    items = run_job(JOB, {"kind": "particles", "files": "project/J1/particles.cs"}, {}, here / "out")
    found = read_particles("out/particles.star")
    assert items.done == 3
    assert found.column("image_name").tolist() == [f"{i:06d}@project/J1/images.mrc" for i in (3, 1, 2)]
    assert found.optics.pixel_size == 1.5 and found.optics.box_size == 16


def test_reference_keeps_pixel_box_and_centre_however_often(here):
    """CASES.md, 18: 1.249 Å, 48 px into data of 0.885 Å, 68 px, three times."""
    line = torch.arange(48.0) - 24
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    density = torch.exp(-((x - 4) ** 2 + (y + 3) ** 2 + (z - 2) ** 2) / 18).numpy()
    write_map("ref.mrc", density, 1.249)
    source = "ref.mrc"
    for number in range(3):
        params = {"kind": "reference", "files": source, "new_pixel_size": 0.885, "new_box": 68}
        run_job(JOB, params, {}, here / f"r{number}")
        source = f"r{number}/reference.mrc"
        metrics = JOB.measure(here / f"r{number}", JOB.params(**params))
        assert all(check.low <= metrics[check.metric] for check in JOB.checks(JOB.params(**params)))
    first, pixel = read_map("r0/reference.mrc")
    last, _ = read_map("r2/reference.mrc")
    assert pixel == pytest.approx(0.885, abs=1e-6) and first.shape == (68, 68, 68) and np.array_equal(first, last)
    grid = np.arange(68) - 34
    centre = [(last.sum(tuple(a for a in range(3) if a != axis)) * grid).sum() / last.sum() * 0.885 for axis in (2, 1, 0)]
    assert centre == pytest.approx([4 * 1.249, -3 * 1.249, 2 * 1.249], abs=0.05)
    run_job(JOB, {"kind": "reference", "files": "ref.mrc", "flip_hand": True}, {}, here / "hand")
    flipped, _ = read_map("hand/reference.mrc")
    assert np.unravel_index(flipped.argmax(), flipped.shape) == (26, 21, 20)


def test_mask_and_gain(here):
    write_map("mask.mrc", np.clip(np.random.default_rng(0).normal(0.5, 0.3, (16, 16, 16)), 0, 1).astype(np.float32), 2.0)
    run_job(JOB, {"kind": "mask", "files": "mask.mrc"}, {}, here / "mask")
    assert read_map("mask/mask.mrc")[1] == 2.0
    write_map("map.mrc", np.random.default_rng(0).normal(0, 3, (16, 16, 16)).astype(np.float32), 2.0)
    with pytest.raises(InputError, match="0 to 1"):
        run_job(JOB, {"kind": "mask", "files": "map.mrc"}, {}, here / "bad")
    raw = np.random.default_rng(1).uniform(0.8, 1.2, (24, 32)).astype(np.float32)
    raw[3, 4] = 0
    write_image("gain_in.mrc", raw, 1.0)
    run_job(JOB, {"kind": "gain", "files": "gain_in.mrc", "gain_rotation": 1, "gain_flip": 2}, {}, here / "gain")
    assert np.allclose(read_image("gain/gain.mrc"), np.rot90(raw, -1)[:, ::-1])
    run_job(JOB, {"kind": "gain", "files": "gain_in.mrc", "gain_reciprocal": True}, {}, here / "divides")
    assert np.allclose(read_image("divides/gain.mrc"), np.where(raw > 0, 1 / np.where(raw > 0, raw, 1), 0))
    tifffile.imwrite("camera.gain", raw)  # of an EER camera: multiplies, rows as stored
    run_job(JOB, {"kind": "gain", "files": "camera.gain"}, {}, here / "eer")
    assert np.allclose(read_image("eer/gain.mrc"), raw)


def test_something_that_is_no_mrc(here):
    (here / "ref.mrc").write_text("<html>not found</html>")
    with pytest.raises(FileFormatError):
        run_job(JOB, {"kind": "reference", "files": "ref.mrc"}, {}, here / "out")
