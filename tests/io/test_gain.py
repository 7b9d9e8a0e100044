import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from verglas.errors import FileFormatError, InputError
from verglas.io.eer import write_eer
from verglas.io.gain import gain_exponent, read_gain
from verglas.io.movie import write_movie
from verglas.io.mrc import read_image, write_image
from verglas.io.star import write_star

MOVIE = (64, 96)
GAIN = np.random.default_rng(0).uniform(0.8, 1.2, MOVIE).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_image(tmp_path / "gain.mrc", GAIN, 1.0)
    return tmp_path / "gain.mrc"


def test_a_gain_of_the_movies_size(path: Path) -> None:
    gain, defects = read_gain(path, MOVIE)
    np.testing.assert_array_equal(gain, GAIN)
    assert not defects.any()


def test_tiff_gains_are_flipped_as_tiff_movies_are(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "gain.tif", GAIN)
    np.testing.assert_array_equal(read_gain(tmp_path / "gain.tif", MOVIE)[0], GAIN[::-1])


def test_zeros_and_nan_are_defects_and_never_infinity(path: Path) -> None:
    """Case 15."""
    marked = GAIN.copy()
    marked[:, 7], marked[3, :], marked[9, 9] = 0, np.nan, -1
    expected = np.zeros(MOVIE, bool)
    expected[:, 7], expected[3, :], expected[9, 9] = True, True, True
    write_image(path, marked, 1.0)
    for reciprocal in (False, True):
        gain, defects = read_gain(path, MOVIE, reciprocal=reciprocal)
        np.testing.assert_array_equal(defects, expected)
        assert np.isfinite(gain).all()
        assert (gain[defects] == 0).all()
        np.testing.assert_allclose(gain[~defects], (1 / GAIN if reciprocal else GAIN)[~defects], rtol=1e-6)
    write_image(path, np.zeros(MOVIE), 1.0)
    with pytest.raises(FileFormatError, match="no positive value"):
        read_gain(path, MOVIE)


def test_a_super_resolution_gain_is_averaged_and_said(path: Path) -> None:
    """Case 15."""
    fine = np.random.default_rng(1).uniform(0.8, 1.2, (128, 192)).astype(np.float32)
    fine[11, 21] = 0
    write_image(path, fine, 1.0)
    with pytest.warns(UserWarning, match="twice the movie's size"):
        gain, defects = read_gain(path, MOVIE)
    assert np.argwhere(defects).tolist() == [[5, 10]]
    mean = (fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]) / 4
    np.testing.assert_allclose(gain[~defects], mean[~defects], rtol=1e-6)


def test_a_gain_of_half_the_size_is_repeated_and_said(path: Path) -> None:
    with pytest.warns(UserWarning, match="half the movie's size"):
        gain, _ = read_gain(path, (128, 192))
    np.testing.assert_array_equal(gain[::2, 1::2], GAIN)


def test_a_transposed_gain_is_refused_and_the_turns_that_fit_are_named(path: Path) -> None:
    """Case 15."""
    with pytest.raises(FileFormatError, match=r"64 x 96 .* the movies are 96 x 64.*Rotation 1 or 3 with flip 0, 1 or 2"):
        read_gain(path, (96, 64))
    with pytest.raises(FileFormatError, match="Rotation 0 or 2"):
        read_gain(path, MOVIE, rotation=1)
    with pytest.raises(FileFormatError, match=r"64 x 96 .* the movies are 60 x 96; no rotation fits"):
        read_gain(path, (60, 96))
    with pytest.raises(InputError, match="rotation 4"):
        read_gain(path, MOVIE, rotation=4)
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_gain(path.with_name("absent.mrc"), MOVIE)


def test_the_mean_of_the_movies_tells_multiply_from_divide(path: Path) -> None:
    """Case 15."""
    slope = 1 + np.arange(MOVIE[1]) / MOVIE[1]  # an uneven beam
    mean = np.random.default_rng(2).poisson(2000 * slope / GAIN) / 2000
    for given, exponent in ({}, -1.0), ({"reciprocal": True}, 1.0), ({"flip": 1}, 0.0):
        found, uncertainty = gain_exponent(*read_gain(path, MOVIE, **given), mean)
        assert found == pytest.approx(exponent, abs=0.05) and uncertainty < 0.05
    few = np.random.default_rng(3).poisson(0.3 / np.tile(GAIN, (20, 20)))  # most pixels have counted nothing yet
    found, uncertainty = gain_exponent(np.tile(GAIN, (20, 20)), np.zeros(few.shape, bool), few)
    assert abs(found + 1) < 3 * uncertainty + 0.05 < 0.2
    assert gain_exponent(np.ones(MOVIE), np.zeros(MOVIE, bool), mean) == (0.0, np.inf)


@pytest.mark.relion
@pytest.mark.parametrize("name", ["g.mrc", "g.tif", "g.gain"])
def test_gains_of_eer_movies_are_taken_as_relion_takes_them(tmp_path: Path, name: str) -> None:
    shape = (4096, 4096)  # the only size that RELION takes
    random = np.random.default_rng(0)
    frames = [np.flatnonzero(random.random(shape, dtype=np.float32) < 0.004) for _ in range(3)]
    write_eer(tmp_path / "m.eer", [(position, np.zeros(len(position), np.uint8)) for position in frames], shape)
    stored = np.ones(shape, np.float32)
    stored[:500, :1000] = 2
    if name == "g.mrc":
        write_image(tmp_path / name, stored, 1.0)
    else:
        tifffile.imwrite(tmp_path / name, stored)
    optics = {"rlnOpticsGroupName": "o", "rlnOpticsGroup": 1, "rlnMicrographOriginalPixelSize": 1.0, "rlnVoltage": 300.0}
    optics |= {"rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
    tables = {"optics": pd.DataFrame([optics]), "movies": pd.DataFrame([{"rlnMicrographMovieName": "m.eer", "rlnOpticsGroup": 1}])}
    write_star(tmp_path / "movies.star", tables)
    command = ["relion_run_motioncorr", "--i", "movies.star", "--o", "out/", "--use_own", "--j", "1", "--patch_x", "1", "--patch_y", "1"]
    command += ["--eer_grouping", "1", "--eer_upsampling", "1", "--gainref", name, "--skip_defect", "--max_iter", "0"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs = read_image(tmp_path / "out" / "m.mrc")
    gain, _ = read_gain(tmp_path / name, shape, eer=True)
    corners = [np.s_[50:450, 50:950], np.s_[-450:-50, 50:950], np.s_[2000:3000, 2000:3000]]
    seen, ours = ([float(image[corner].mean()) for corner in corners] for image in (theirs, gain))
    np.testing.assert_allclose(np.divide(seen, seen[2]), np.divide(ours, ours[2]), rtol=0.1)


@pytest.mark.relion
@pytest.mark.parametrize(("rotation", "flip"), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 2), (3, 2)])
def test_relion_turns_it_the_same_way(tmp_path: Path, rotation: int, flip: int) -> None:
    stored = GAIN if rotation % 2 == 0 else np.ascontiguousarray(GAIN.T)
    write_image(tmp_path / "gain.mrc", stored, 1.0)
    frames = np.full((3, *MOVIE), 100, np.uint8)
    write_movie(tmp_path / "m.mrcs", frames, 1.0)
    optics = {"rlnOpticsGroupName": "o", "rlnOpticsGroup": 1, "rlnMicrographOriginalPixelSize": 1.0, "rlnVoltage": 300.0}
    optics |= {"rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
    tables = {"optics": pd.DataFrame([optics]), "movies": pd.DataFrame([{"rlnMicrographMovieName": "m.mrcs", "rlnOpticsGroup": 1}])}
    write_star(tmp_path / "movies.star", tables)
    command = ["relion_run_motioncorr", "--i", "movies.star", "--o", "out/", "--use_own", "--j", "1", "--patch_x", "1", "--patch_y", "1"]
    command += ["--gainref", "gain.mrc", "--gain_rot", str(rotation), "--gain_flip", str(flip)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    gain, _ = read_gain(tmp_path / "gain.mrc", MOVIE, rotation, flip)
    theirs = read_image(tmp_path / "out" / "m.mrc")
    assert np.corrcoef(theirs.ravel(), gain.ravel())[0, 1] > 0.98
