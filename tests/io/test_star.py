import locale
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from verglas.errors import FileFormatError, InputError
from verglas.io.star import integers, list_table, numbers, read_star, write_star

PLAIN = """
data_particles

loop_
_rlnMicrographName #1
_rlnDefocusU #2
_rlnClassNumber #3
01 11000.5 1
1e5 12000.25 2
nan 13000 3
"""
LAYOUTS = {
    "no blank line before loop_": PLAIN.replace("particles\n\n", "particles\n"),
    "no numbers": PLAIN.replace(" #1", "").replace(" #2", "").replace(" #3", ""),
    "tabs": PLAIN.replace("01 11000.5 1", "01\t11000.5\t1").replace("Name #1", "Name\t#1"),
    "CRLF": PLAIN.replace("\n", "\r\n"),
    "byte-order mark": "\ufeff" + PLAIN,
    "comment in loop": PLAIN.replace("1e5 ", "# a comment\n1e5 "),
    "blank line in loop": PLAIN.replace("1e5 ", " \n1e5 "),
    "no newline at the end": PLAIN.rstrip("\n"),
}
RELION_READS_LESS = {"CRLF", "blank line in loop", "comment in loop"}


def write(folder: Path, text: str) -> Path:
    path = folder / "table.star"
    path.write_bytes(text.encode())
    return path


def long_version(text: str) -> str:
    """The same fault far down a table long enough for the fast parser."""
    row = "mic_0001.mrc 10000.0 1\n"
    return text.replace("01 11000.5 1\n", row * 1000 + "01 11000.5 1\n", 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", ["small", "large"])
def test_every_layout_gives_the_same_table(tmp_path: Path, layout: str, size: str) -> None:
    """Case 1."""
    text, skip = LAYOUTS[layout], 0
    if size == "large":
        end = "\r\n" if layout == "CRLF" else "\n"
        first = "01\t11000.5\t1" if layout == "tabs" else "01 11000.5 1"
        text, skip = text.replace(first, f"mic_0001.mrc 10000.0 1{end}" * 1000 + first), 1000
    path = write(tmp_path, text)
    if layout in RELION_READS_LESS:
        with pytest.warns(UserWarning, match=r"RELION 3.1 would"):
            blocks = read_star(path)
    else:
        blocks = read_star(path)
    table = list_table(blocks, "particles", path).iloc[skip:]
    assert list(blocks) == ["particles"]
    assert list(table.columns) == ["rlnMicrographName", "rlnDefocusU", "rlnClassNumber"]
    assert table["rlnMicrographName"].tolist() == ["01", "1e5", "nan"]
    np.testing.assert_array_equal(numbers(table, "rlnDefocusU", path), [11000.5, 12000.25, 13000])
    np.testing.assert_array_equal(integers(table, "rlnClassNumber", path), [1, 2, 3])


BROKEN = {
    "stray token": (PLAIN.replace("1e5 ", "9\n1e5 "), "line 9: 1 values found, 3 expected"),
    "short row": (PLAIN.replace("12000.25 2", "12000.25"), "line 9: 2 values found, 3 expected"),
    "long row": (PLAIN.replace("12000.25 2", "12000.25 2 7"), "line 9: 4 values found, 3 expected"),
    "much too long row": (PLAIN.replace("12000.25 2", "12000.25 2 7 8 9"), "line 9: 6 values found, 3 expected"),
    "one short, one long": (PLAIN.replace("12000.25 2", "12000.25").replace("13000 3", "13000 3 4"), "line 9: 2 values found"),
    "cut in mid-row": (PLAIN[:-9], "line 10: 1 values found, 3 expected"),
    "open quote": (PLAIN.replace("1e5", '"1e5'), "line 9: quotes do not match"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_rows_name_line_found_and_expected(tmp_path: Path, fault: str) -> None:
    """Case 2."""
    text, message = BROKEN[fault]
    with pytest.raises(FileFormatError, match=message) as error:
        read_star(write(tmp_path, text))
    assert "table.star" in str(error.value)
    line = int(message.split()[1].rstrip(":"))
    with pytest.raises(FileFormatError, match=message.replace(f"line {line}", f"line {line + 1000}")):
        read_star(write(tmp_path, long_version(text)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAIN.replace("_rlnClassNumber", "_rlnDefocusU"), "line 7: label _rlnDefocusU appears twice"),
        ("<!DOCTYPE html>\n<html><body>MTF</body></html>\n", "not a STAR file.*web page"),
        ("<html>\ndata_ \n</html>", "line 1.*before the first data_.*web page"),
        ("1 2 3\n", "not a STAR file"),
        ("", "is empty"),
        ("\0\0\0\0", "binary"),
        (PLAIN + PLAIN, "line 12: a second table data_particles"),
        ("data_\nloop_\n", "no labels"),
        ("data_\nrubbish\n", "line 2: found 'rubbish'"),
        ("data_\n_rlnVoltage 300 200\n", "2 values for _rlnVoltage"),
    ],
)
def test_what_is_not_a_sound_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """Case 2."""
    with pytest.raises(FileFormatError, match=message):
        read_star(write(tmp_path, text))


@pytest.mark.parametrize("bad", ["nan", "inf", "None", "11000,5", "1_000", "0x10"])
@pytest.mark.parametrize("lengthen", [str, long_version])
def test_a_bad_number_is_an_error_with_row_and_label(tmp_path: Path, bad: str, lengthen) -> None:  # type: ignore[no-untyped-def]
    """Case 3."""
    path = write(tmp_path, lengthen(PLAIN.replace("12000.25", bad)))
    table = list_table(read_star(path), "particles", path)
    row = 2 + 1000 * (lengthen is long_version)
    with pytest.raises(FileFormatError, match=f"row {row}: rlnDefocusU is {bad}"):
        numbers(table, "rlnDefocusU", path)


def test_a_fraction_is_no_class_number(tmp_path: Path) -> None:
    path = write(tmp_path, PLAIN.replace("12000.25 2", "12000.25 2.5"))
    with pytest.raises(FileFormatError, match=r"row 2: rlnClassNumber is 2\.5, a whole number"):
        integers(list_table(read_star(path), "particles", path), "rlnClassNumber", path)


def test_the_locale_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 3."""
    names = ["de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"]
    before = locale.setlocale(locale.LC_ALL)
    for name in names:
        try:
            locale.setlocale(locale.LC_ALL, name)
            break
        except locale.Error:
            continue
    else:
        pytest.skip("no comma locale is installed")
    try:
        path = write(tmp_path, long_version(PLAIN))
        table = list_table(read_star(path), "particles", path)
        write_star(tmp_path / "again.star", {"particles": table})
        assert numbers(table, "rlnDefocusU", path)[1001] == 12000.25
        assert "12000.25" in (tmp_path / "again.star").read_text()
    finally:
        locale.setlocale(locale.LC_ALL, before)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    """Cases 3 and 4: names stay text to the last letter."""
    random = np.random.default_rng(1)
    table = pd.DataFrame(
        {
            "rlnMicrographName": ["a b.tif", "01", "", "it's.mrc", 'say"so".mrc', "#1.mrc"],
            "rlnCoordinateX": random.normal(size=6) * 10.0 ** random.integers(-8, 8, 6),
            "rlnCoordinateY": np.float32([0.1, 0, -1e-7, 3e9, 1 / 3, 4096.5]),
            "rlnClassNumber": [0, 1, 2, -3, 10**9, 5],
            "otherTag": ["0010", "1e5", "0.50", "x", "y", "z"],
        }
    )
    general = {"rlnVoltage": 300.0, "rlnIsFlip": True, "rlnReferenceImage": "", "rlnJobOptionValue": "a b"}
    path = tmp_path / "out.star"
    with pytest.warns(UserWarning, match="rlnMicrographName begins with #"):
        write_star(path, {"general": general, "": table}, comment="made by a test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blocks = read_star(path)
    assert blocks["general"] == {"rlnVoltage": "300", "rlnIsFlip": "1", "rlnReferenceImage": "", "rlnJobOptionValue": "a b"}
    again = list_table(blocks, "", path)
    for name in ("rlnMicrographName", "rlnClassNumber", "otherTag"):
        assert again[name].tolist() == table[name].tolist()
    for name in ("rlnCoordinateX", "rlnCoordinateY"):
        np.testing.assert_allclose(again[name], table[name], rtol=5e-7)
    assert list(tmp_path.iterdir()) == [path]


def test_names_stay_text_and_figures_become_numbers(tmp_path: Path) -> None:
    text = ["rlnImageName", "rlnReferenceImage", "rlnMtfFileName", "rlnMicrographMetadata", "rlnCtfPowerSpectrum", "rlnUnfilteredMapHalf1"]
    text += ["rlnOddZernike", "rlnPipeLineProcessAlias", "rlnPipeLineEdgeFromNode", "rlnJobOptionValue", "someTag", "rlnMicrographNameNoDW"]
    figures = [
        "rlnSsnrMap",
        "rlnFourierShellCorrelationUnmaskedMaps",
        "rlnPipeLineNodeType",
        "rlnClassNumber",
        "rlnImageSize",
        "rlnDefocusU",
    ]
    figures += ["rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps", "rlnNrOfFrames", "rlnGroupNrParticles"]
    for rows in (1, 500):
        labels = text + figures
        body = ("007 " * len(labels) + "\n") * rows
        path = write(tmp_path, "data_\nloop_\n" + "".join(f"_{label}\n" for label in labels) + body)
        table = list_table(read_star(path), "", path)
        assert {label: table[label].iloc[-1] for label in labels} == dict.fromkeys(text, "007") | dict.fromkeys(figures, 7)


def test_nothing_unreadable_is_written_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "out.star"
    write_star(path, {"": pd.DataFrame({"rlnDefocusU": [1.0]})})
    old = path.read_text()
    for bad in ([np.nan], [np.inf], ["two\nlines"], [None]):
        with pytest.raises(InputError, match="not written"):
            write_star(path, {"": pd.DataFrame({"rlnDefocusU": bad})})
    assert path.read_text() == old


def test_both_kinds_of_quotes_are_read(tmp_path: Path) -> None:
    """Case 4."""
    text = PLAIN.replace("01 ", "'a b.mrc' ").replace("1e5", '"c d.mrc"').replace("nan", "don't.mrc")
    expected = ["a b.mrc", "c d.mrc", "don't.mrc"]
    for version in (text, text.replace("'a b.mrc' 11000.5 1\n", "m.mrc 1 1\n" * 1000 + "'a b.mrc' 11000.5 1\n")):
        table = list_table(read_star(write(tmp_path, version)), "particles", "")
        assert table["rlnMicrographName"].tolist()[-3:] == expected


def test_a_list_without_rows_is_an_empty_table(tmp_path: Path) -> None:
    table = list_table(read_star(write(tmp_path, PLAIN.split("01 ")[0])), "particles", "")
    assert len(table) == 0
    assert numbers(table, "rlnDefocusU", "").shape == (0,)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"absent\.star: the file does not exist"):
        read_star(tmp_path / "absent.star")


def test_a_missing_table_or_column_lists_what_is_there(tmp_path: Path) -> None:
    path = write(tmp_path, PLAIN)
    with pytest.raises(FileFormatError, match="no table data_optics; found data_particles"):
        list_table(read_star(path), "optics", path)
    with pytest.raises(FileFormatError, match=r"no column rlnDefocusV.*rlnDefocusU"):
        numbers(list_table(read_star(path), "particles", path), "rlnDefocusV", path)


@pytest.mark.relion
def test_relion_reads_every_row_and_value_that_is_written(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    names = ["a b.mrc", "it's.mrc", "01", "1e5", "nan", "x#1.mrc", "p[-61_00].mrc", "é.mrc"] * 5
    values = random.normal(size=(2, len(names))) * 10.0 ** random.integers(-3, 5, (2, len(names)))
    particles = pd.DataFrame({"rlnMicrographName": names, "rlnDefocusU": values[0], "rlnCoordinateX": values[1], "rlnOpticsGroup": 1})
    particles["rlnImageName"] = [f"{number:06d}@s.mrcs" for number in range(1, len(names) + 1)]
    optics = {"rlnOpticsGroupName": "o p", "rlnOpticsGroup": 1, "rlnVoltage": 300.0, "rlnSphericalAberration": 2.7}
    optics |= {"rlnImagePixelSize": 1.25, "rlnImageSize": 64, "rlnImageDimensionality": 2}
    write_star(tmp_path / "in.star", {"optics": pd.DataFrame([optics]), "particles": particles})
    subprocess.run(["relion_star_handler", "--i", "in.star", "--o", "out.star"], cwd=tmp_path, check=True, capture_output=True)
    theirs = list_table(read_star(tmp_path / "out.star"), "particles", "out.star")
    assert theirs["rlnMicrographName"].tolist() == names
    assert theirs["rlnImageName"].tolist() == particles["rlnImageName"].tolist()
    for label in ("rlnDefocusU", "rlnCoordinateX"):
        np.testing.assert_allclose(numbers(theirs, label, ""), particles[label], rtol=1e-5, atol=6e-6)  # RELION writes at least 5 decimals


@pytest.mark.relion
@pytest.mark.parametrize("layout", LAYOUTS)
def test_relion_reads_less_exactly_where_it_is_said(tmp_path: Path, layout: str) -> None:
    """Case 1."""
    optics = "data_optics\n\nloop_\n_rlnOpticsGroupName\n_rlnOpticsGroup\n_rlnVoltage\n_rlnSphericalAberration\n"
    optics += "_rlnImagePixelSize\n_rlnImageSize\n_rlnImageDimensionality\n"
    optics += "".join(f"o{group} {group} 300 2.7 1 64 2\n" for group in (1, 2, 3)) + "\n"
    text = LAYOUTS[layout].replace("_rlnClassNumber", "_rlnOpticsGroup")
    if layout == "CRLF":
        optics = optics.replace("\n", "\r\n")
    mark = "\ufeff" * text.startswith("\ufeff")
    (tmp_path / "in.star").write_bytes((mark + optics + text.removeprefix(mark)).encode())
    done = subprocess.run(["relion_star_handler", "--i", "in.star", "--o", "out.star"], cwd=tmp_path, capture_output=True)
    rows = 0
    if done.returncode == 0 and (tmp_path / "out.star").read_text().strip():
        rows = len(list_table(read_star(tmp_path / "out.star"), "particles", "out.star"))
    assert (rows < 3) == (layout in RELION_READS_LESS)


def test_real_files(shared_data: Path) -> None:
    gemmi = pytest.importorskip("gemmi")
    for path in sorted((shared_data / "stars").glob("*.star")):
        blocks = read_star(path)
        assert list(blocks) == ["optics", "particles"]
        document = gemmi.cif.read(str(path))
        for name, table in blocks.items():
            block = next(block for block in document if block.name.lower() == name)
            loop = block[0].loop
            assert list(table.columns) == [tag[1:] for tag in loop.tags]
            assert len(table) == loop.length()
            for label in table.columns:
                theirs = [gemmi.cif.as_string(value) for value in block.find_loop(f"_{label}")]
                if table[label].dtype == "str":
                    assert table[label].tolist() == theirs
                else:
                    np.testing.assert_array_equal(numbers(table, label, path), np.array(theirs, float))
