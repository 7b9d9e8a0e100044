import io
import struct
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest

from verglas.errors import FileFormatError, InputError
from verglas.io.mrc import (
    StackWriter,
    read_header,
    read_image,
    read_map,
    read_pixel_size,
    read_stack,
    write_image,
    write_map,
    write_stack,
)

MAP = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)


def edit(path: Path, *changes: tuple[int, str, object]) -> Path:
    """Overwrite header fields: (offset, struct format, value)."""
    raw = bytearray(path.read_bytes())
    for offset, form, value in changes:
        struct.pack_into(form, raw, offset, *(value if isinstance(value, tuple) else (value,)))
    path.write_bytes(raw)
    return path


@pytest.fixture
def map_path(tmp_path: Path) -> Path:
    write_map(tmp_path / "map.mrc", MAP, 1.25)
    return tmp_path / "map.mrc"


def test_map_comes_back(map_path: Path) -> None:
    values, pixel_size = read_map(map_path)
    np.testing.assert_array_equal(values, MAP)
    assert values.dtype == np.float32
    assert pixel_size == 1.25


def test_mrcfile_and_gemmi_read_maps_and_stacks(tmp_path: Path) -> None:
    write_map(tmp_path / "map.mrc", MAP, 1.25)
    write_stack(tmp_path / "stack.mrcs", MAP, 1.25)
    for name, cell_z in (("map.mrc", 4 * 1.25), ("stack.mrcs", 1.25)):
        with mrcfile.open(tmp_path / name) as file:
            np.testing.assert_array_equal(file.data, MAP)
            assert [float(file.voxel_size[axis]) for axis in "xyz"] == [1.25] * 3
            assert [float(file.header.origin[axis]) for axis in "xyz"] == [0] * 3
            assert (int(file.header.mode), int(file.header.ispg)) == (2, 0)
        assert mrcfile.validate(tmp_path / name, print_file=io.StringIO())
        ccp4 = gemmi.read_ccp4_map(str(tmp_path / name))
        np.testing.assert_array_equal(np.array(ccp4.grid, copy=True), MAP.transpose(2, 1, 0))
        assert (ccp4.grid.unit_cell.a, ccp4.grid.unit_cell.b, ccp4.grid.unit_cell.c) == (8 * 1.25, 6 * 1.25, cell_z)
        assert [ccp4.header_i32(word) for word in (4, 5, 6, 7)] == [2, 0, 0, 0]


@pytest.mark.relion
def test_relion_reads_the_same_statistics(tmp_path: Path) -> None:
    write_map(tmp_path / "map.mrc", MAP, 1.25)
    write_stack(tmp_path / "stack.mrcs", MAP, 1.25)

    def statistics(name: str) -> list[list[float]]:
        said = subprocess.run(["relion_image_handler", "--i", name, "--stats"], cwd=tmp_path, capture_output=True, text=True, check=True)
        lines = [line for line in said.stdout.splitlines() if "avg=" in line]
        return [_values(line) for line in lines]

    (whole,) = statistics("map.mrc")
    np.testing.assert_allclose(whole, [MAP.mean(), MAP.std(), MAP.min(), MAP.max(), 1.25], rtol=1e-4)
    images = statistics("stack.mrcs")
    assert len(images) == 4
    for found, image in zip(images, MAP, strict=True):
        np.testing.assert_allclose(found, [image.mean(), image.std(), image.min(), image.max(), 1.25], rtol=1e-4)


def _values(line: str) -> list[float]:
    words = line.replace(";", " ").split()
    return [float(words[words.index(key) + 1]) for key in ("avg=", "stddev=", "minval=", "maxval=")] + [float(words[-1])]


def test_stack_images_by_index(tmp_path: Path) -> None:
    path = tmp_path / "stack.mrcs"
    write_stack(path, MAP, 2.0)
    np.testing.assert_array_equal(read_stack(path), MAP)
    np.testing.assert_array_equal(read_stack(path, [3, 0, 3]), MAP[[3, 0, 3]])
    for index in (4, -1):
        with pytest.raises(FileFormatError, match=f"image {index + 1} was asked for; the stack holds images 1 to 4"):
            read_stack(path, [0, index])


def test_stack_writer_in_any_order_and_from_threads(tmp_path: Path) -> None:
    path = tmp_path / "stack.mrcs"
    images = np.random.default_rng(1).normal(size=(40, 6, 8)).astype(np.float32)
    with StackWriter(path, 40, (6, 8), 1.5) as stack, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda start: stack.write(start, images[start : start + 4]), [36, *range(0, 36, 4)]))
        assert not path.exists()
    np.testing.assert_array_equal(read_stack(path), images)
    assert list(tmp_path.iterdir()) == [path]
    with mrcfile.open(path) as file:
        assert (float(file.header.dmin), float(file.header.dmax)) == (images.min(), images.max())


def test_an_unfinished_stack_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "stack.mrcs"
    with pytest.raises(InputError, match="3 of 4 images were never written"), StackWriter(path, 4, (6, 8), 1.5) as stack:
        stack.write(1, MAP[1])
    with pytest.raises(ZeroDivisionError), StackWriter(path, 4, (6, 8), 1.5) as stack:
        stack.write(0, MAP)
        _ = 1 / 0
    with pytest.raises(InputError, match="do not fit"), StackWriter(path, 4, (6, 8), 1.5) as stack:
        stack.write(3, MAP[:2])
    assert list(tmp_path.iterdir()) == []


def test_half_precision(tmp_path: Path) -> None:
    path = tmp_path / "half.mrc"
    write_image(path, MAP[0], 1.5, dtype="float16")
    assert read_header(path).mode == 12
    np.testing.assert_array_equal(read_image(path), MAP[0].astype(np.float16).astype(np.float32))
    with pytest.raises(InputError, match="do not fit float16"):
        write_image(path, MAP[0] * 1e6, 1.5, dtype="float16")
    with pytest.raises(InputError, match="pixel size is 0"):
        write_image(path, MAP[0], 0)


PICTURE = np.random.default_rng(2).integers(0, 120, (6, 8))


@pytest.mark.parametrize(
    ("mode", "dtype", "values"),
    [(0, "i1", PICTURE), (1, "i2", PICTURE * 200), (2, "f4", PICTURE * 0.5), (6, "u2", PICTURE * 500), (12, "f2", PICTURE * 0.25)],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_pixel_type_gives_the_same_picture(tmp_path: Path, mode: int, dtype: str, values: np.ndarray, order: str) -> None:
    """Case 12."""
    path = tmp_path / "p.mrc"
    header = np.zeros(256, f"{order}i4")
    header[:4], header[7:10] = (8, 6, 1, mode), (8, 6, 1)
    header[10:13] = np.array([8, 6, 1], f"{order}f4").view(f"{order}i4")
    header = header.tobytes()
    stamp = b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0"
    header = header[:212] + stamp + header[216:]
    path.write_bytes(header + values.astype(order + dtype).tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path), values.astype(np.float32))
    assert read_pixel_size(path) == 1.0


def test_bytes_are_unsigned_with_imods_stamp(tmp_path: Path) -> None:
    """Case 12."""
    path = tmp_path / "p.mrc"
    write_image(path, np.array([[-1, 127, -128]], np.int8), 1.0, dtype="int8")
    np.testing.assert_array_equal(read_image(path), [[-1, 127, -128]])
    edit(path, (152, "<ii", (1146047817, 0)))
    np.testing.assert_array_equal(read_image(path), [[255, 127, 128]])
    edit(path, (152, "<ii", (1146047817, 1)))
    np.testing.assert_array_equal(read_image(path), [[-1, 127, -128]])


@pytest.mark.parametrize("mode", [3, 4, 101, 77])
def test_an_unsupported_mode_is_named(map_path: Path, mode: int) -> None:
    """Case 12."""
    with pytest.raises(FileFormatError, match=f"MRC mode {mode} "):
        read_map(edit(map_path, (12, "<i", mode)))


HARMLESS = {
    "false nsymbt": ([(92, "<i", 1024)], "claims an extended header of 1024 bytes"),
    "stamp 44 00 00 00": ([(212, "4B", (0x44, 0, 0, 0))], "machine stamp 44 00 00 00"),
    "stamp 44 20 20 20": ([(212, "4B", (0x44, 0x20, 0x20, 0x20))], "machine stamp 44 20 20 20"),
    "labels": ([(220, "<i", 2), *((224 + 80 * i, "5s", b"label") for i in range(10))], "counts 2 labels and holds 10"),
}


@pytest.mark.parametrize("fault", HARMLESS)
def test_harmless_headers_are_read_with_a_warning(map_path: Path, fault: str) -> None:
    """Case 11."""
    changes, message = HARMLESS[fault]
    edit(map_path, *changes)
    with pytest.warns(UserWarning, match=message):
        values, _ = read_map(map_path)
    np.testing.assert_array_equal(values, MAP)


def test_trailing_bytes_are_ignored_with_a_warning(map_path: Path) -> None:
    map_path.write_bytes(map_path.read_bytes() + b"abc")
    with pytest.warns(UserWarning, match="3 bytes after the data"):
        np.testing.assert_array_equal(read_map(map_path)[0], MAP)


def test_extended_header_of_any_length_is_passed_over(map_path: Path) -> None:
    """Case 11."""
    raw = map_path.read_bytes()
    map_path.write_bytes(raw[:1024] + bytes(range(256)) * 60 + raw[1024:])
    edit(map_path, (92, "<i", 15360), (104, "4s", b"FEI2"))  # 13 frames of 888 bytes, padded
    np.testing.assert_array_equal(read_map(map_path)[0], MAP)


def test_cut_and_contradictory_files_are_refused(map_path: Path) -> None:
    """Case 11."""
    raw = map_path.read_bytes()
    map_path.write_bytes(raw[: 1024 + MAP.nbytes // 2])
    with pytest.raises(FileFormatError, match=r"cut short.*2 of 4 sections"):
        read_map(map_path)
    map_path.write_bytes(raw + MAP[0].tobytes())
    with pytest.raises(FileFormatError, match=r"too long.*contradicts"):
        read_map(map_path)
    map_path.write_bytes(raw[:100])
    with pytest.raises(FileFormatError, match="not an MRC file: 100 bytes"):
        read_map(map_path)
    map_path.write_bytes(b"data_\n\nloop_\n" * 200)
    with pytest.raises(FileFormatError, match="not an MRC file"):
        read_map(map_path)


@pytest.mark.parametrize("cell", [0.0, -12.0, float("nan")])
def test_a_pixel_size_that_is_none_is_asked_for(map_path: Path, cell: float) -> None:
    """Case 11."""
    edit(map_path, (40, "<f", cell))
    with pytest.raises(FileFormatError, match=r"pixel size is .*Give the pixel size"):
        read_map(map_path)
    assert read_map(map_path, pixel_size=1.5)[1] == 1.5


def test_permuted_axes_are_turned(map_path: Path) -> None:
    write_map(map_path, np.ascontiguousarray(MAP.transpose(2, 0, 1)), 1.25)  # sections x, rows z, columns y
    edit(map_path, (64, "<iii", (2, 3, 1)))
    np.testing.assert_array_equal(read_map(map_path)[0], MAP)
    with pytest.raises(FileFormatError, match="axis order"):
        read_map(edit(map_path, (64, "<iii", (2, 2, 1))))


def test_an_image_is_no_map_and_a_map_no_image(map_path: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "image.mrc", MAP[0], 1.0)
    with pytest.raises(FileFormatError, match="one image of 8 x 6, a map was expected"):
        read_map(tmp_path / "image.mrc")
    with pytest.raises(FileFormatError, match="4 sections, one image was expected"):
        read_image(map_path)


def test_values_that_are_no_numbers_are_refused(map_path: Path) -> None:
    edit(map_path, (1024, "<f", float("nan")), (1060, "<f", float("inf")))
    with pytest.raises(FileFormatError, match="2 of 192 values are NaN or infinite"):
        read_map(map_path)
