import subprocess
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile

from verglas.errors import InputError, ItemError
from verglas.io.eer import eer_fractions, write_eer
from verglas.io.eer_codec import COMPRESSION_7BIT, COMPRESSION_8BIT, EerCodec, decode_events, encode_events
from verglas.io.movie import open_movie, write_movie
from verglas.io.star import write_star

CODECS = {
    "7 bits": EerCodec(7),
    "8 bits": EerCodec(8),
    "8 bits, fixed words": EerCodec(8, fixed=True),
    "6 bits": EerCodec(6),
    "7 + 1 + 1 bits": EerCodec(7, 1, 1),
}
SHAPE = (96, 128)


def electrons(density: float, codec: EerCodec, seed: int = 0, shape: tuple[int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    position = np.flatnonzero(random.random(shape) < density)
    return position, random.integers(0, 1 << (codec.x + codec.y), len(position)).astype(np.uint8)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("density", [0, 1e-4, 0.01, 0.3, 1])
def test_events_come_back(name: str, density: float) -> None:
    codec = CODECS[name]
    for seed in range(5):
        position, sub = electrons(density, codec, seed)
        data = encode_events(position, sub, SHAPE[0] * SHAPE[1], codec)
        for reader in (codec, EerCodec(codec.skip, codec.x, codec.y, fixed=True)):  # a stream of either form may come under one tag
            found, found_sub = decode_events(data, SHAPE[0] * SHAPE[1], reader)
            np.testing.assert_array_equal(found, position)
            np.testing.assert_array_equal(found_sub, sub)


@pytest.mark.parametrize("name", ["7 bits", "8 bits", "6 bits", "7 + 1 + 1 bits"])
def test_imagecodecs_reads_the_same(name: str) -> None:
    codec = CODECS[name]
    position, sub = electrons(0.01, codec)
    data = encode_events(position, sub, SHAPE[0] * SHAPE[1], codec)
    theirs = imagecodecs.eer_decode(data, SHAPE, codec.skip, codec.x, codec.y)
    np.testing.assert_array_equal(np.flatnonzero(theirs), position)


@pytest.mark.parametrize("codec", CODECS.values())
def test_a_cut_stream_is_an_error(codec: EerCodec) -> None:
    data = encode_events(*electrons(0.02, codec), SHAPE[0] * SHAPE[1], codec)
    with pytest.raises(ValueError, match=f"covers .* of {SHAPE[0] * SHAPE[1]} pixels"):
        decode_events(data[: len(data) // 2], SHAPE[0] * SHAPE[1], codec)


def test_fractions_and_super_resolution_against_tifffile(tmp_path: Path) -> None:
    counts = (np.random.default_rng(3).random((10, *SHAPE)) < 0.03).astype(np.uint8)
    path = tmp_path / "movie.eer"
    write_movie(path, counts, 1.0)
    with tifffile.TiffFile(path) as tiff:
        np.testing.assert_array_equal(tiff.asarray(), counts)
    with tifffile.TiffFile(path, superres=1) as tiff:
        fine = tiff.asarray().astype(np.float32)
    for upsampling, internal in ((1, counts), (2, fine)):
        movie = open_movie(path, eer_grouping=5, eer_upsampling=upsampling)
        assert movie.frames == 2
        assert movie.shape == internal.shape[1:]
        np.testing.assert_array_equal(movie.read_all(), [internal[:5].sum(0), internal[5:].sum(0)])


def test_frames_that_do_not_divide(tmp_path: Path) -> None:
    path = tmp_path / "movie.eer"
    counts = (np.random.default_rng(3).random((10, *SHAPE)) < 0.03).astype(np.uint8)
    write_movie(path, counts, 1.0)
    left_out = open_movie(path, eer_grouping=4)
    assert left_out.internal_frames == (4, 4)
    assert left_out.notes == ("2 of 10 internal frames are left out (4 per fraction)",)
    kept = open_movie(path, eer_grouping=4, keep_rest=True)
    assert kept.internal_frames == (4, 4, 2)  # at 1 e/Å² an internal frame: doses 4, 4 and 2
    assert "shorter fraction of 2" in kept.notes[0]
    np.testing.assert_array_equal(kept.read(2), counts[8:].sum(0))
    assert open_movie(path, eer_grouping=5).notes == ()
    with pytest.raises(InputError, match="20 frames per fraction of 10 internal frames"):
        open_movie(path, eer_grouping=20)
    with pytest.raises(InputError, match="number of frames per fraction"):
        open_movie(path)
    with pytest.raises(InputError):
        eer_fractions(10, 0)


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "movie.eer"
    counts = (np.random.default_rng(3).random((4, *SHAPE)) < 0.03).astype(np.uint8)
    write_movie(path, counts, 1.0)
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        offset, size = tiff.pages[2].dataoffsets[0], tiff.pages[2].databytecounts[0]
    path.write_bytes(whole[:offset] + b"\xff" * 3 + bytes(size - 3) + whole[offset + size :])
    with pytest.raises(ItemError, match="frame 2 of 2 is damaged"):
        open_movie(path, eer_grouping=2).read_all()
    path.write_bytes(whole[: offset - 20])
    with pytest.raises(ItemError, match=r"cut short|corrupted"):
        open_movie(path, eer_grouping=2)


@pytest.mark.relion
@pytest.mark.parametrize(("compression", "upsampling"), [(COMPRESSION_7BIT, 2), (COMPRESSION_8BIT, 1)])
def test_relion_reads_the_same_counts_in_the_same_place(tmp_path: Path, compression: int, upsampling: int) -> None:
    shape = (4096, 4096)  # the only size that RELION takes
    codec = EerCodec(7)
    frames = [electrons(2e-4, codec, seed, shape) for seed in range(2)]
    write_eer(tmp_path / "m.eer", frames, shape, compression)
    optics = {"rlnOpticsGroupName": "o", "rlnOpticsGroup": 1, "rlnMicrographOriginalPixelSize": 1.0, "rlnVoltage": 300.0}
    optics |= {"rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
    movies = {"rlnMicrographMovieName": "m.eer", "rlnOpticsGroup": 1}
    write_star(tmp_path / "m.star", {"optics": pd.DataFrame([optics]), "movies": pd.DataFrame([movies])})
    command = ["relion_convert_to_tiff", "--i", "m.star", "--o", "out/", "--eer_grouping", "2", "--short"]
    subprocess.run([*command, "--eer_upsampling", str(upsampling)], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    theirs = open_movie(tmp_path / "out" / "m.tif").read(0)
    ours = open_movie(tmp_path / "m.eer", eer_grouping=2, eer_upsampling=upsampling).read(0)
    assert ours.sum() == sum(len(position) for position, _ in frames)
    np.testing.assert_array_equal(theirs, ours)
