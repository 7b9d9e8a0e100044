from pathlib import Path

import numpy as np
import pytest

from verglas.errors import FileFormatError, InputError
from verglas.io.atomic import whole_file, write_json, write_text
from verglas.io.atoms import read_atoms
from verglas.io.mtf import read_mtf, write_mtf
from verglas.io.relion_versions import upgrade_particles
from verglas.io.star import list_table, read_star

RELION30 = """
data_

loop_
_rlnVoltage #1
_rlnSphericalAberration #2
_rlnAmplitudeContrast #3
_rlnMagnification #4
_rlnDetectorPixelSize #5
_rlnImageName #6
_rlnOriginX #7
_rlnOriginY #8
_rlnDefocusU #9
300 2.7 0.1 40000 5 000001@a.mrcs 2 -4 10000
200 2.7 0.1 50000 10 000002@a.mrcs 2 -4 10000
300 2.7 0.1 40000 5 000003@a.mrcs 0 1 11000
"""


def upgrade(tmp_path: Path, text: str):  # type: ignore[no-untyped-def]
    path = tmp_path / "old.star"
    path.write_text(text)
    return upgrade_particles(read_star(path), path)


def test_a_relion_30_file_gets_optics_groups_and_shifts_in_angstrom(tmp_path: Path) -> None:
    """Case 7."""
    optics, particles, notes = upgrade(tmp_path, RELION30)
    assert optics[["rlnOpticsGroup", "rlnVoltage", "rlnImagePixelSize"]].to_numpy().tolist() == [[1, 300, 1.25], [2, 200, 2.0]]
    assert optics["rlnOpticsGroupName"].tolist() == ["opticsGroup1", "opticsGroup2"]
    assert particles["rlnOpticsGroup"].tolist() == [1, 2, 1]
    np.testing.assert_allclose(particles[["rlnOriginXAngst", "rlnOriginYAngst"]], [[2.5, -5], [4, -8], [0, 1.25]])
    assert list(particles.columns) == ["rlnImageName", "rlnOriginXAngst", "rlnOriginYAngst", "rlnDefocusU", "rlnOpticsGroup"]
    assert ("2 optics groups made" in notes[0], "rlnOriginX, rlnOriginY turned" in notes[1]) == (True, True)


def test_what_an_older_file_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no rlnVoltage"):
        upgrade(tmp_path, RELION30.replace("_rlnVoltage", "_rlnOther"))
    with pytest.raises(FileFormatError, match="no pixel size"):
        upgrade(tmp_path, RELION30.replace("_rlnMagnification", "_rlnOther"))
    with pytest.raises(FileFormatError, match="row 1: the pixel size by rlnDetectorPixelSize / rlnMagnification is inf"):
        upgrade(tmp_path, RELION30.replace("40000", "0"))
    with pytest.raises(FileFormatError, match="no particles"):
        upgrade(tmp_path, RELION30.replace("_rlnImageName", "_rlnMicrographName"))


def test_a_table_under_another_name_is_said(tmp_path: Path) -> None:
    text = "data_optics\nloop_\n_rlnOpticsGroup\n1\n\ndata_images\nloop_\n_rlnImageName\n_rlnOpticsGroup\n1@a.mrcs 1\n"
    optics, particles, notes = upgrade(tmp_path, text)
    assert (len(optics), len(particles)) == (1, 1)
    assert "data_images" in notes[0]


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"a": np.float32(1.5), "b": np.arange(2), "c": Path("x")})
    assert path.read_text() == '{\n "a": 1.5,\n "b": [\n  0,\n  1\n ],\n "c": "x"\n}\n'
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("half")
        assert (temporary.suffix, temporary.parent) == (".json", path.parent)
        raise KeyboardInterrupt
    assert "1.5" in path.read_text()
    assert list(path.parent.iterdir()) == [path]
    write_text(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"


def test_mtf(tmp_path: Path) -> None:
    frequency, value = np.linspace(0, 0.5, 11), np.linspace(1, 0.3, 11)
    path = tmp_path / "mtf.star"
    write_mtf(path, frequency, value)
    np.testing.assert_allclose(read_mtf(path), [frequency, value])
    for bad_frequency, bad_value, message in ((frequency[::-1], value, "ascend"), (frequency, value - 0.5, "row 9: rlnMtfValue")):
        write_mtf(path, bad_frequency, bad_value)
        with pytest.raises(FileFormatError, match=message):
            read_mtf(path)
    path.write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(FileFormatError, match="web page"):
        read_mtf(path)


PDB = """\
REMARK 350 BIOMOLECULE: 1
REMARK 350 APPLY THE FOLLOWING TO CHAINS: A
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
REMARK 350   BIOMT1   2 -1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   2  0.000000 -1.000000  0.000000        0.00000
REMARK 350   BIOMT3   2  0.000000  0.000000  1.000000       50.00000
CRYST1   50.000   50.000  100.000  90.00  90.00  90.00 P 1           1
ATOM      1  N   ALA A   1      10.000  20.000  30.000  1.00 15.00           N
ATOM      2  CA AALA A   1      11.000  20.000  30.000  0.30 16.00           C
ATOM      3  CA BALA A   1      12.000  20.000  30.000  0.70 17.00           C
HETATM    4  O   HOH A 101       1.000   2.000   3.000  1.00 40.00           O
END
"""


def test_atoms_of_a_model_and_of_its_assembly(tmp_path: Path) -> None:
    path = tmp_path / "m.pdb"
    path.write_text(PDB)
    atoms = read_atoms(path)
    assert atoms.element.tolist() == ["N", "C"]
    assert atoms.atomic_number.tolist() == [7, 6]
    np.testing.assert_allclose(atoms.position, [[10, 20, 30], [12, 20, 30]])
    np.testing.assert_allclose(atoms.b_factor, [15, 17])
    assert len(read_atoms(path, waters=True)) == 3
    both = read_atoms(path, assembly="1")
    np.testing.assert_allclose(both.position[2:], [[-10, -20, 80], [-12, -20, 80]])
    assert len(set(both.chain.tolist())) == 2
    with pytest.raises(InputError, match="no assembly '2'; it defines 1"):
        read_atoms(path, assembly="2")
    path.write_text("hello\n")
    with pytest.raises(FileFormatError):
        read_atoms(path)
    with pytest.raises(FileFormatError, match="does not exist"):
        read_atoms(tmp_path / "absent.cif")


def test_mmcif_gives_the_same_atoms(tmp_path: Path) -> None:
    import gemmi

    (tmp_path / "m.pdb").write_text(PDB)
    structure = gemmi.read_structure(str(tmp_path / "m.pdb"))
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(tmp_path / "m.cif"))
    pdb, cif = read_atoms(tmp_path / "m.pdb", assembly="1"), read_atoms(tmp_path / "m.cif", assembly="1")
    np.testing.assert_allclose(cif.position, pdb.position, atol=1e-3)
    assert cif.element.tolist() == pdb.element.tolist()


def test_the_real_tetramer(shared_data: Path) -> None:
    atoms = read_atoms(shared_data / "aldolase" / "1ADO_assembly1.pdb")
    assert set(atoms.chain.tolist()) == set("ABCD")
    assert 10_000 < len(atoms) < 15_000
    assert np.linalg.norm(atoms.position - atoms.position.mean(0), axis=1).max() < 70


def test_real_relion_files_need_no_upgrade(shared_data: Path) -> None:
    for path in sorted((shared_data / "stars").glob("*.star")):
        assert "rlnOpticsGroup" in list_table(read_star(path), "optics", path)
