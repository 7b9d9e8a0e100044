"""Digests see what a job's result depends on."""

import os
from pathlib import Path

import pytest

from verglas.records.digest import digest


def test_content_decides(tmp_path: Path) -> None:
    a, b = tmp_path / "a.mrc", tmp_path / "b.mrc"
    a.write_bytes(b"x" * 9_000_000)
    b.write_bytes(b"x" * 9_000_000)
    assert digest(a) == digest(b)
    assert digest(a)["bytes"] == 9_000_000 and digest(a)["covers"] == "content"
    b.write_bytes(b"x" * 8_999_999 + b"y")
    assert digest(a)["sha256"] != digest(b)["sha256"]


def test_a_star_file_covers_the_stacks_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("s 1.mrcs", "s2.mrcs", "m.mrc"):
        Path(name).write_bytes(b"1")
    star = Path("p.star")
    star.write_text(
        'data_particles\n\nloop_\n_rlnImageName #1\n_rlnMicrographName #2\n"1@s 1.mrcs" m.mrc\n000001@s2.mrcs m.mrc\n000002@s2.mrcs m.mrc\n'
    )
    before = digest(star)
    assert before["covers"] == "content; size and beginning of 2 files that it names"
    Path("m.mrc").write_bytes(b"2")
    assert digest(star) == before, "micrographs of extracted particles don't count"
    for name in ("s 1.mrcs", "s2.mrcs"):
        os.utime(name, (1, 1))
        assert digest(star) == before, "a copied project is the same"
        for changed in (b"2", b"22"):
            Path(name).write_bytes(changed)
            assert digest(star) != before
            before = digest(star)
    Path("s2.mrcs").unlink()
    assert digest(star) != before


def test_a_micrograph_list_covers_the_micrographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m1.mrc").write_bytes(b"1")
    star = Path("m.star")
    star.write_text("data_micrographs\n\nloop_\n_rlnMicrographName #1\nm1.mrc\nm2.mrc\n")
    before = digest(star)
    Path("m2.mrc").write_bytes(b"1")
    assert digest(star) != before


def test_where_one_stands_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in a project's files are relative to the project; its table is read from anywhere."""
    job = tmp_path / "project/Extract/job004"
    job.mkdir(parents=True)
    (job / "a_autopick.star").write_text("data_\n")
    (job / "coords_suffix_autopick.star").write_text("m.star\n")
    (job / "s.mrcs").write_bytes(b"1")
    (job / "p.star").write_text("data_particles\n\nloop_\n_rlnImageName #1\n000001@Extract/job004/s.mrcs\n")
    for name in ("p.star", "coords_suffix_autopick.star"):
        monkeypatch.chdir(tmp_path / "project")
        inside = digest(Path("Extract/job004") / name)
        monkeypatch.chdir("/")
        assert digest(job / name) == inside
        monkeypatch.chdir(tmp_path)
        assert digest(Path("project/Extract/job004") / name) == inside
    before = digest(job / "p.star")
    (job / "s.mrcs").write_bytes(b"2")
    assert digest(job / "p.star") != before


def test_a_pickers_list_covers_the_coordinate_files(tmp_path: Path) -> None:
    node = tmp_path / "coords_suffix_autopick.star"
    node.write_text("micrographs.star\n")
    (tmp_path / "movies").mkdir()
    picks = tmp_path / "movies/m1_autopick.star"
    picks.write_text("data_\n")
    before = digest(node)
    picks.write_text("data_\n\n")
    assert digest(node) != before


@pytest.mark.parametrize("other", [b"1" * 8000, b"2" + b"1" * 8191])
def test_movies_are_known_by_size_and_beginning(other: bytes, tmp_path: Path) -> None:
    movie = tmp_path / "m.tif"
    movie.write_bytes(b"1" * 8192)
    before = digest(movie, whole=False)
    assert before["covers"] == "size and beginning"
    os.utime(movie, (1, 1))
    assert digest(movie, whole=False) == before, "a copied project is the same"
    movie.write_bytes(other)
    assert digest(movie, whole=False) != before
