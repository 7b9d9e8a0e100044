import bz2
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from verglas.errors import InputError
from verglas.io.inspect import explain
from verglas.io.movie import write_movie
from verglas.io.mrc import write_image, write_map, write_stack
from verglas.io.mtf import write_mtf
from verglas.io.star import write_star

NOISE = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
COUNTS = np.random.default_rng(0).poisson(0.5, (6, 32, 48)).astype(np.uint8)
OPTICS = pd.DataFrame(
    {
        "rlnOpticsGroupName": ["o"],
        "rlnOpticsGroup": [1],
        "rlnVoltage": [300.0],
        "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1],
        "rlnImagePixelSize": [1.25],
        "rlnImageSize": [16],
    }
)


def test_images_movies_and_maps(tmp_path: Path) -> None:
    write_map(tmp_path / "map.mrc", NOISE, 1.25)
    write_stack(tmp_path / "stack.mrcs", NOISE, 1.25)
    write_image(tmp_path / "mic.mrc", NOISE[0], 1.25)
    write_movie(tmp_path / "movie.tif", COUNTS, 1.4)
    write_movie(tmp_path / "movie.eer", COUNTS > 0, 1.4)
    write_movie(tmp_path / "movie.mrcs", COUNTS, 1.4)
    Image.fromarray(COUNTS[0]).save(tmp_path / "mic.png")
    kinds = {path.name: explain(path).kind for path in tmp_path.iterdir()}
    assert kinds == {
        "map.mrc": "map (MRC)",
        "stack.mrcs": "stack of images (MRC)",
        "mic.mrc": "micrograph or single image (MRC)",
        "movie.tif": "movie (TIFF)",
        "movie.eer": "movie (EER)",
        "movie.mrcs": "movie or stack (MRC)",
        "mic.png": "micrograph (PNG)",
    }
    assert explain(tmp_path / "map.mrc").facts["pixel size"] == "1.25 Å"
    assert explain(tmp_path / "movie.tif").facts["pixel size by the resolution tags"] == "1.4 Å"
    eer = explain(tmp_path / "movie.eer")
    assert eer.facts["internal frames"] == 6
    assert "2, 3 leave no remainder" in eer.use
    assert all(explain(path).oddities == [] for path in tmp_path.glob("*.mrc*"))


def test_odd_images_are_called_odd(tmp_path: Path) -> None:
    holed = NOISE.copy()
    holed[3], holed[5, 0, 0] = 1, np.nan
    write_stack(tmp_path / "a.mrcs", holed, 1.0)
    said = explain(tmp_path / "a.mrcs").oddities
    assert said == ["1 of 4096 values are NaN or infinite", "1 of 16 sections are constant (the first is number 4)"]
    write_map(tmp_path / "odd.mrc", NOISE[:15, :15, :15], 1.0)
    assert explain(tmp_path / "odd.mrc").oddities == ["the box of 15 is odd; jobs work on even boxes"]
    (tmp_path / "cut.mrc").write_bytes((tmp_path / "odd.mrc").read_bytes()[:-100])
    cut = explain(tmp_path / "cut.mrc")
    assert (cut.kind, cut.use) == ("unreadable (by its name: MRC)", "")
    assert "cut short" in cut.oddities[0]
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((8, 8, 3), np.uint8), photometric="rgb")
    assert "unreadable" in explain(tmp_path / "colour.tif").kind
    with pytest.raises(InputError, match="does not exist"):
        explain(tmp_path / "absent.mrc")
    with pytest.raises(InputError, match="folder"):
        explain(tmp_path)


def test_particles_and_what_is_odd_about_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_stack("s.mrcs", NOISE[:5], 1.25)
    table = pd.DataFrame(
        {
            "rlnImageName": ["000000@s.mrcs", "9@s.mrcs", "1@s.mrcs", "1@s.mrcs"],
            "rlnOpticsGroup": [1, 1, 2, 2],
            "rlnDefocusU": ["nan", "1", "2", "3"],
            "rlnRandomSubset": [1, 1, 1, 1],
        }
    )
    write_star("p.star", {"optics": OPTICS, "particles": table})
    found = explain(Path("p.star"))
    assert found.kind == "particles (STAR)"
    said = "\n".join(found.oddities)
    for words in (
        "row 1: image index 0",
        "image 9 of s.mrcs is asked for; it holds 5",
        "2 rows are in optics group 2, which is not defined",
        "row 1: rlnDefocusU is nan",
        "1 images are listed more than once",
        "half sets are not two of like size",
    ):
        assert words in said
    sound = pd.DataFrame({"rlnImageName": ["1@s.mrcs", "2@s.mrcs"], "rlnOpticsGroup": 1, "rlnDefocusU": 1e4, "rlnRandomSubset": [1, 2]})
    write_star("q.star", {"optics": OPTICS, "particles": sound})
    assert explain(Path("q.star")).oddities == []
    write_star("q.star", {"optics": OPTICS, "particles": sound.drop(columns="rlnDefocusU")})
    assert "no rlnDefocusU" in explain(Path("q.star")).oddities[0]
    assert explain(Path("q.star")).use == "verglas job Class2D --particles q.star"
    picked = sound.drop(columns="rlnImageName").assign(rlnMicrographName="m.mrc")
    write_star("q.star", {"optics": OPTICS, "particles": picked})
    assert explain(Path("q.star")).oddities == ["no rlnImageName: the particles are not extracted"]
    assert explain(Path("q.star")).use.startswith("verglas job Extract --particles q.star")


@pytest.mark.parametrize(
    ("tables", "kind"),
    [
        ({"optics": OPTICS, "movies": pd.DataFrame({"rlnMicrographMovieName": ["a.tif"]})}, "movies (STAR)"),
        ({"optics": OPTICS, "micrographs": pd.DataFrame({"rlnMicrographName": ["a.mrc"]})}, "micrographs (STAR)"),
        ({"": pd.DataFrame({"rlnCoordinateX": [1.0], "rlnCoordinateY": [2.0]})}, "coordinates"),
        ({"model_general": {"rlnNrClasses": 3}, "model_classes": pd.DataFrame({"rlnReferenceImage": ["1@x.mrcs"]})}, "model of a"),
        ({"general": {"rlnFinalResolution": 4.5}, "fsc": pd.DataFrame({"rlnSpectralIndex": [0]})}, "post-processing result"),
        ({"general": {"rlnVoltage": 300}, "global_shift": pd.DataFrame({"rlnMicrographShiftX": [0.0]})}, "motion of one movie"),
        ({"pipeline_general": {"rlnPipeLineJobCounter": 1}}, "pipeline of a project"),
        ({"job": {"rlnJobType": 1}, "joboptions_values": pd.DataFrame({"rlnJobOptionVariable": ["x"]})}, "settings of a RELION job"),
        ({"optimiser_general": {"rlnCurrentIteration": 3}}, "state of a running refinement"),
        ({"": pd.DataFrame({"rlnSomething": [1.0]})}, "STAR file of no kind"),
    ],
)
def test_star_files_of_every_kind(tmp_path: Path, tables: dict[str, object], kind: str) -> None:
    write_star(tmp_path / "a.star", tables)  # type: ignore[arg-type]
    assert explain(tmp_path / "a.star").kind.startswith(kind)


def test_other_texts(tmp_path: Path) -> None:
    write_mtf(tmp_path / "mtf.star", np.linspace(0, 0.5, 5), np.linspace(1, 0.5, 5))
    assert explain(tmp_path / "mtf.star").kind == "MTF of a detector (STAR)"
    (tmp_path / "page.star").write_text("<!DOCTYPE html><html></html>")
    assert "web page" in explain(tmp_path / "page.star").oddities[0]
    (tmp_path / "crlf.star").write_bytes(b"data_\r\n\r\nloop_\r\n_rlnCoordinateX\r\n_rlnCoordinateY\r\n1 2\r\n")
    found = explain(tmp_path / "crlf.star")
    assert (found.facts["picks"], found.oddities[0][:17]) == (1, "Windows line ends")
    (tmp_path / "empty.star").write_bytes(b"")
    assert explain(tmp_path / "empty.star").kind == "empty file"
    (tmp_path / "a.box").write_text("1 2 10 10\n")
    assert explain(tmp_path / "a.box").facts["picks"] == 1


def test_real_files(shared_data: Path, tmp_path: Path) -> None:
    stars = {path.name: explain(path) for path in (shared_data / "stars").iterdir()}
    assert {found.kind for found in stars.values()} == {"particles (STAR)", "particles (cryoSPARC)"}
    assert stars["relion31.6opticsgroups.star"].facts["optics groups"] == 6
    assert "pixel size" in stars["relion5.star"].facts
    assert explain(shared_data / "aldolase" / "1ADO_assembly1.pdb").facts["chains"] == 4
    assert explain(shared_data / "apoferritin" / "picks_expert.star").facts["picks"] == 645
    packed = shared_data / "epu" / "epu2.9_example.mrc.bz2"
    assert explain(packed).kind == "compressed file"
    (tmp_path / "epu.mrc").write_bytes(bz2.decompress(packed.read_bytes()))
    epu = explain(tmp_path / "epu.mrc")
    assert (epu.facts["size"], epu.facts["values"], epu.facts["pixel size"]) == ("4096 x 4096", "uint16 (mode 6)", "0.666551 Å")
    assert epu.oddities == []
