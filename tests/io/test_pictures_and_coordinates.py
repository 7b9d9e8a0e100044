from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from verglas.errors import FileFormatError, InputError, ItemError
from verglas.io.coordinates import read_coordinates, write_coordinates
from verglas.io.mrc import write_image, write_stack
from verglas.io.picture import micrograph_shape, read_micrograph

PICTURE = np.random.default_rng(0).integers(0, 250, (40, 50))


def test_the_same_picture_in_every_format(tmp_path: Path) -> None:
    write_image(tmp_path / "p.mrc", PICTURE.astype(np.float32), 1.0)
    tifffile.imwrite(tmp_path / "p.tif", PICTURE[::-1].astype(np.uint16))
    Image.fromarray(PICTURE.astype(np.uint8)).save(tmp_path / "p.png")
    Image.fromarray(PICTURE.astype(np.uint16)).save(tmp_path / "p16.png")
    for name in ("p.mrc", "p.tif", "p.png", "p16.png"):
        image = read_micrograph(tmp_path / name)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, PICTURE, err_msg=name)
        assert micrograph_shape(tmp_path / name) == (40, 50)


def test_what_is_no_micrograph_is_an_item_that_fails(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "colour.png")
    write_stack(tmp_path / "stack.mrc", np.zeros((2, 5, 5), np.float32), 1.0)
    write_image(tmp_path / "nan.mrc", np.array([[1, np.nan]], np.float32), 1.0)
    (tmp_path / "empty.mrc").write_bytes(b"")
    Image.fromarray(PICTURE.astype(np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:600])
    reasons = {
        "colour.png": "grey",
        "stack.mrc": "2 sections",
        "nan.mrc": "1 of 2 values",
        "empty.mrc": "empty",
        "cut.png": "cannot be read",
    }
    for name, reason in (reasons | {"absent.mrc": "does not exist"}).items():
        with pytest.raises(ItemError, match=reason):
            read_micrograph(tmp_path / name)
    for name in ("empty.mrc", "absent.mrc", "colour.png"):
        with pytest.raises(ItemError):
            micrograph_shape(tmp_path / name)


def test_real_micrographs_are_dark_where_the_experts_marked_particles(shared_data: Path) -> None:
    """Proves that rows of a PNG run as the coordinates do."""
    for folder, radius in (("apoferritin", 30), ("ribosome", 20)):
        picks = read_coordinates(shared_data / folder / "picks_expert.star")
        here, flipped = [], []
        for name, marks in picks.groupby("micrograph_name"):
            image = read_micrograph(shared_data / folder / str(name))
            for found, rows in ((here, image), (flipped, image[::-1])):
                for x, y in marks[["coordinate_x", "coordinate_y"]].to_numpy().astype(int):
                    if radius <= x < image.shape[1] - radius and radius <= y < image.shape[0] - radius:
                        patch = rows[y - radius : y + radius, x - radius : x + radius]
                        found.append((patch.mean() - image.mean()) / image.std())
        assert len(here) > 100
        assert np.mean(here) < 3 * np.mean(flipped)
        assert np.mean(here) < -0.1


def test_coordinates_come_back(tmp_path: Path) -> None:
    frame = pd.DataFrame({"coordinate_x": [10.5, 20.25], "coordinate_y": [3.0, 4.0], "pick_score": [0.5, -1.0], "class_number": [1.0, 2.0]})
    write_coordinates(tmp_path / "a.star", frame)
    pd.testing.assert_frame_equal(read_coordinates(tmp_path / "a.star"), frame)
    write_coordinates(tmp_path / "none.star", frame.iloc[:0])
    assert read_coordinates(tmp_path / "none.star").shape == (0, 4)
    with pytest.raises(InputError, match="no coordinate_y"):
        write_coordinates(tmp_path / "b.star", frame.drop(columns="coordinate_y"))


def test_boxes_are_corners_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "a.box").write_text("10 20 100 60\n-30 0 100 100 -3\n\n")
    np.testing.assert_array_equal(read_coordinates(tmp_path / "a.box"), [[60, 50], [20, 50]])
    (tmp_path / "b.box").write_text("10 20 100 60\n10,5 20 100 60\n")
    with pytest.raises(FileFormatError, match="line 2: found '10,5 20 100 60'"):
        read_coordinates(tmp_path / "b.box")
    (tmp_path / "none.box").write_text("")
    assert len(read_coordinates(tmp_path / "none.box")) == 0


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_with_a_header(tmp_path: Path, separator: str) -> None:
    rows = [
        ["Micrograph", "X-Coordinate", "Y-Coordinate", "Diameter", "score"],
        ["01", "10.5", "20", "100", "0.5"],
        ["1e5", "1", "2", "3", "4"],
    ]
    (tmp_path / "a.csv").write_text("\n".join(separator.join(row) for row in rows) + "\n")
    table = read_coordinates(tmp_path / "a.csv")
    assert table["micrograph_name"].tolist() == ["01", "1e5"]
    np.testing.assert_array_equal(table[["coordinate_x", "coordinate_y", "pick_score"]], [[10.5, 20, 0.5], [1, 2, 4]])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "x,y\n1,2\n3\n", "row 2: 1 values found, 2 expected"),
        ("a.csv", "x,y\n1,nan\n", "row 1: coordinate_y is nan"),
        ("a.csv", "a,b\n1,2\n", "no column for coordinate_x and coordinate_y"),
        ("a.csv", "", "empty"),
        ("a.csv", "x,y\n\0", "binary"),
        ("a.star", "data_\nloop_\n_rlnAnglePsi\n1\n", "no table with rlnCoordinateX"),
        ("a.star", "MotionCorr/job002/corrected_micrographs.star\n", "not a STAR file"),
        ("a.star", "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 None\n", "row 1: rlnCoordinateY is None"),
        ("a.star", "data_\nloop_\n_rlnCoordinateX\n1\n", "no column rlnCoordinateY"),
    ],
)
def test_garbled_coordinates_are_errors(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FileFormatError, match=message):
        read_coordinates(tmp_path / name)
