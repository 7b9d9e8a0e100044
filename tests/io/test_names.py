from pathlib import Path

import pytest

from verglas.errors import InputError
from verglas.io.names import output_name, output_names

JOB = Path("MotionCorr/job002")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("movies/a.tif", "movies/a.mrc"),
        ("a b.tif", "a b.mrc"),
        ("x.1.tif", "x.1.mrc"),
        ("p[-61_00].tif", "p[-61_00].mrc"),
        ("X+0Y-1.TIF", "X+0Y-1.mrc"),
        ("./M/a.tif", "M/a.mrc"),
        ("M//a.tif", "M/a.mrc"),
        ("M/../N/a.tif", "N/a.mrc"),
        ("../M/a.tif", "_up/M/a.mrc"),
        ("/data/M/a.tif", "_root/data/M/a.mrc"),
        ("//data/M/a.tif", "_root/data/M/a.mrc"),
        ("d.1/a", "d.1/a.mrc"),
        (".hidden", ".hidden.mrc"),
        ("Import/job001/movies/a.tif", "movies/a.mrc"),
        ("Import/job001", "Import/job001.mrc"),
    ],
)
def test_outputs_lie_in_the_jobs_folder(given: str, expected: str) -> None:
    """Cases 4 and 5."""
    assert output_name(given, JOB, ".mrc") == JOB / expected


def test_every_input_has_its_own_output() -> None:
    """Cases 4 and 5."""
    inputs = ["x.1.tif", "x.2.tif", "d1/a.tif", "d2/a.tif", "../d1/a.tif", "/d1/a.tif", "/p/d1/a.tif", "a.tif", "a.TIF", "a.mrc"]
    inputs += ["MotionCorr/job003/m/a.mrc", "MotionCorr/job004/m/a.mrc", "p[-61_00].tif", "p1.tif"]
    outputs = output_names(inputs, JOB, "_PS.mrc")
    assert len(set(outputs)) == len(inputs)
    for path in outputs:
        assert (JOB in path.parents, ".." in path.parts) == (True, False)
    assert outputs[0] == JOB / "x.1_PS.mrc"
    assert outputs[10] == JOB / "MotionCorr/job003/m/a_mrc_PS.mrc"


def test_alone_and_in_a_list_the_name_is_the_same() -> None:
    inputs = ["movies/a.tif", "/b/c.tif"]
    assert output_names(inputs, JOB, ".mrc") == [output_name(path, JOB, ".mrc") for path in inputs]


def test_an_input_listed_twice_is_refused() -> None:
    with pytest.raises(InputError, match="more than once"):
        output_names(["M/a.tif", "./M//a.tif"], JOB, ".mrc")
