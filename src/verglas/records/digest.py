"""Digests that tell whether a file, and what it names, is the one that a job was given."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

_IMAGES = rb"mrcs?|tiff?|eer|gain|png|star|cs"
_QUOTED = re.compile(rb'"([^"\n]+\.(?:' + _IMAGES + rb'))"', re.IGNORECASE)
_PLAIN = re.compile(rb'(?<![^\s@])([^\s@"]+\.(?:' + _IMAGES + rb"))(?!\S)", re.IGNORECASE)
_BEGINNING = 4096  # bytes
_DEPTH = 4  # folders above a STAR file that its names may be relative to: a project's jobs lie two or three deep
_STACKED = re.compile(rb'"\d+@([^"\n]+)"|(?<!\S)\d+@(\S+)')


def digest(path: Path, whole: bool = True) -> dict[str, Any]:
    """`bytes`, `sha256` and `covers` of a file.

    The file's content is hashed whole. Of the image files that a STAR file names, sizes and first kilobytes go into the digest
    (terabytes can't be read at every start), and `covers` says how many. A STAR file of particles covers its stacks alone, so that
    micrographs can be cleaned away. A picker's `coords_suffix_*.star` covers the coordinate files beside it.
    `whole=False` is for movies, which no start of a job can read through: size and beginning stand for the content. Modification
    times count nowhere: a project that was copied to another disk is the same project.
    """
    if not whole and path.suffix.lower() != ".star":
        stamp = hashlib.sha256(_size_and_beginning(path)).hexdigest()
        return {"bytes": path.stat().st_size, "sha256": stamp, "covers": "size and beginning"}
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            sha.update(piece)
            size += len(piece)
    named = _named_files(path)
    for name in named:
        sha.update(f"{name} ".encode("utf-8", "surrogateescape") + _stamp(name, path) + b"\n")
    covers = "content" + (f"; size and beginning of {len(named)} files that it names" if named else "")
    return {"bytes": size, "sha256": sha.hexdigest(), "covers": covers}


def _named_files(path: Path) -> list[str]:
    if path.suffix.lower() not in (".star", ".cs"):
        return []
    if path.name.startswith("coords_suffix_"):
        return sorted(str(found.relative_to(path.parent)) for found in path.parent.rglob("*" + path.name.removeprefix("coords_suffix")))
    text = path.read_bytes()
    names = {quoted or plain for quoted, plain in _STACKED.findall(text)} or {*_PLAIN.findall(text), *_QUOTED.findall(text)}
    return sorted(name.decode("utf-8", "surrogateescape").strip() for name in names)


def _stamp(name: str, beside: Path) -> bytes:
    for place in (Path(name), *(folder / name for folder in beside.absolute().parents[:_DEPTH])):
        try:
            return _size_and_beginning(place)
        except OSError:
            continue
    return b"missing"


def _size_and_beginning(path: Path) -> bytes:
    """The size, and the first 4 KiB: a header, which most programs write with the image's statistics, and the first pixels."""
    with path.open("rb", buffering=0) as file:
        return f"{os.fstat(file.fileno()).st_size} ".encode() + file.read(_BEGINNING)
