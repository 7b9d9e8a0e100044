import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from verglas.errors import InputError, ItemError
from verglas.io.movie import open_movie, write_movie
from verglas.io.mrc import read_image
from verglas.io.star import write_star

COUNTS = np.random.default_rng(0).poisson(0.8, (5, 96, 130)).astype(np.uint8)


@pytest.mark.parametrize("name", ["m.tif", "m.TIFF", "m.mrc", "m.mrcs", "m.eer"])
def test_counts_come_back(tmp_path: Path, name: str) -> None:
    internal = write_movie(tmp_path / name, COUNTS, 1.4)
    movie = open_movie(tmp_path / name, eer_grouping=internal)
    assert (movie.frames, movie.shape, movie.notes) == (5, (96, 130), ())
    assert movie.internal_frames == (internal,) * 5
    assert movie.read(3).dtype == np.float32
    np.testing.assert_array_equal(movie.read_all(), COUNTS)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float16", "float32"])
@pytest.mark.parametrize("suffix", [".mrcs", ".tif"])
def test_other_types_come_back(tmp_path: Path, dtype: str, suffix: str) -> None:
    write_movie(tmp_path / f"m{suffix}", COUNTS.astype(dtype), 1.4)
    np.testing.assert_array_equal(open_movie(tmp_path / f"m{suffix}").read_all(), COUNTS)


@pytest.mark.parametrize("compression", [None, "zlib", "zstd", "lzw"])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "f4"])
@pytest.mark.parametrize("layout", [{}, {"predictor": True}, {"tile": (32, 32)}, {"rowsperstrip": 7}])
def test_every_tiff_layout_is_the_same_movie(tmp_path: Path, compression: str | None, dtype: str, layout: dict[str, object]) -> None:
    if compression is None and "predictor" in layout:
        pytest.skip("a predictor needs a compression")
    order = ">" if dtype[0] == ">" else "<"
    stored = COUNTS.astype(dtype)
    tifffile.imwrite(tmp_path / "m.tif", stored, photometric="minisblack", compression=compression, byteorder=order, **layout)
    np.testing.assert_array_equal(open_movie(tmp_path / "m.tif").read_all(), COUNTS[:, ::-1])


def test_frames_are_read_from_threads(tmp_path: Path) -> None:
    for name in ("m.tif", "m.mrcs", "m.eer"):
        internal = write_movie(tmp_path / name, COUNTS, 1.4)
        movie = open_movie(tmp_path / name, eer_grouping=internal)
        with ThreadPoolExecutor(4) as pool:
            frames = list(pool.map(movie.read, [*range(5)] * 8))
        np.testing.assert_array_equal(frames, np.concatenate([COUNTS] * 8))


def damage(path: Path, frame: int, seed: int) -> None:
    """Overwrite 40 bytes of one strip."""
    random = np.random.default_rng(seed)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[frame]
        offset, size = page.dataoffsets[0], page.databytecounts[0]
    raw = bytearray(path.read_bytes())
    at = offset + int(random.integers(0, size - 40))
    raw[at : at + 40] = random.integers(0, 256, 40).astype(np.uint8).tobytes()
    path.write_bytes(raw)


def test_one_damaged_movie_of_five(tmp_path: Path) -> None:
    """Case 13."""
    paths = [tmp_path / f"m{i}.tif" for i in range(5)]
    for path in paths:
        write_movie(path, COUNTS, 1.4)
    write_movie(paths[4], COUNTS[:4], 1.4)
    size = paths[1].stat().st_size
    damage(paths[1], frame=2, seed=0)
    assert paths[1].stat().st_size == size
    frames = {}
    for path in paths:
        try:
            movie = open_movie(path)
            movie.read_all()
            frames[path.name] = movie.frames
        except ItemError as error:
            assert (error.item, "frame 3 of 5 is damaged" in error.reason) == (str(paths[1]), True)
    assert frames == {"m0.tif": 5, "m2.tif": 5, "m3.tif": 5, "m4.tif": 4}


def test_no_damage_passes_unseen(tmp_path: Path) -> None:
    """Case 13."""
    path = tmp_path / "m.tif"
    for seed in range(30):
        write_movie(path, COUNTS, 1.4)
        damage(path, seed % 5, seed)
        with pytest.raises(ItemError, match=f"frame {seed % 5 + 1} of 5"):
            open_movie(path).read_all()


@pytest.mark.parametrize("name", ["m.tif", "m.mrcs", "m.eer"])
@pytest.mark.parametrize("part", [0, 3, 0.5, 0.95])
def test_a_cut_movie_is_an_item_that_fails(tmp_path: Path, name: str, part: float) -> None:
    path = tmp_path / name
    write_movie(path, COUNTS, 1.4)
    raw = path.read_bytes()
    path.write_bytes(raw[: part if part in (0, 3) else int(len(raw) * part)])  # type: ignore[misc]
    with pytest.raises(ItemError):
        open_movie(path, eer_grouping=1).read_all()


def test_what_is_no_movie(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("<html></html>" * 100)
    with pytest.raises(ItemError, match="does not begin like a TIFF"):
        open_movie(tmp_path / "text.tif")
    with pytest.raises(ItemError, match="does not exist"):
        open_movie(tmp_path / "absent.mrcs")
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((8, 8, 3), np.uint8), photometric="rgb")
    with pytest.raises(ItemError, match="one channel"):
        open_movie(tmp_path / "colour.tif")
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as tiff:
        tiff.write(COUNTS[0])
        tiff.write(COUNTS[0, :50])
    with pytest.raises(ItemError, match="one size"):
        open_movie(tmp_path / "mixed.tif")
    with pytest.raises(InputError, match="suffix"):
        write_movie(tmp_path / "m.xyz", COUNTS, 1.4)


def test_a_frame_with_nan_is_damaged(tmp_path: Path) -> None:
    frames = COUNTS.astype(np.float32)
    frames[2, 5, 5] = np.nan
    tifffile.imwrite(tmp_path / "m.tif", frames, photometric="minisblack")
    movie = open_movie(tmp_path / "m.tif")
    movie.read(1)
    with pytest.raises(ItemError, match="frame 3 of 5 has values that are NaN"):
        movie.read(2)


def test_a_frame_index_outside_is_refused(tmp_path: Path) -> None:
    write_movie(tmp_path / "m.tif", COUNTS, 1.4)
    with pytest.raises(InputError, match="frame 6 was asked for; the movie has 5"):
        open_movie(tmp_path / "m.tif").read(5)


@pytest.mark.relion
def test_relion_sees_tiff_rows_in_the_same_order(tmp_path: Path) -> None:
    y, x = np.mgrid[:128, :160]
    picture = 100 + 80 * np.exp(-((y - 30) ** 2 + (x - 50) ** 2) / 200) + 40 * np.exp(-((y - 80) ** 2 + (x - 120) ** 2) / 300)
    frames = np.random.default_rng(1).poisson(picture, (4, 128, 160)).astype(np.uint8)
    optics = {"rlnOpticsGroupName": "o", "rlnOpticsGroup": 1, "rlnMicrographOriginalPixelSize": 1.4, "rlnVoltage": 300.0}
    optics |= {"rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
    for name in ("m.tif", "m.mrcs"):
        write_movie(tmp_path / name, frames, 1.4)
        tables = {"optics": pd.DataFrame([optics]), "movies": pd.DataFrame([{"rlnMicrographMovieName": name, "rlnOpticsGroup": 1}])}
        write_star(tmp_path / "movies.star", tables)
        command = ["relion_run_motioncorr", "--i", "movies.star", "--o", "out/", "--use_own", "--j", "1"]
        subprocess.run([*command, "--patch_x", "1", "--patch_y", "1"], cwd=tmp_path, check=True, capture_output=True)
        theirs, ours = read_image(tmp_path / "out" / "m.mrc"), open_movie(tmp_path / name).read_all().sum(0)
        assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.95
        assert np.corrcoef(theirs[::-1].ravel(), ours.ravel())[0, 1] < 0.5
