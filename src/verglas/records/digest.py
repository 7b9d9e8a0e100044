"""Digests that tell whether a file, and what it names, is the one that a job was given."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

_IMAGES = rb"mrcs?|tiff?|eer|gain|png|star|cs"
_QUOTED = re.compile(rb'"([^"\n]+\.(?:' + _IMAGES + rb'))"', re.IGNORECASE)
_PLAIN = re.compile(rb'(?<![^\s@])([^\s@"]+\.(?:' + _IMAGES + rb"))(?!\S)", re.IGNORECASE)
_STACKED = re.compile(rb'"\d+@([^"\n]+)"|(?<!\S)\d+@(\S+)')


def digest(path: Path, whole: bool = True) -> dict[str, Any]:
    """`bytes`, `sha256` and `covers` of a file.

    The file's content is hashed whole. Of the image files that a STAR file names, sizes and modification times go into the digest
    (terabytes can't be read at every start), and `covers` says how many. A STAR file of particles covers its stacks alone, so that
    micrographs can be cleaned away. A picker's `coords_suffix_*.star` covers the coordinate files beside it.
    `whole=False` is for movies, which no start of a job can read through: size and time stand for the content.
    """
    if not whole and path.suffix.lower() != ".star":
        facts = path.stat()
        stamp = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()
        return {"bytes": facts.st_size, "sha256": stamp, "covers": "size and time"}
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            sha.update(piece)
            size += len(piece)
    named = _named_files(path)
    for name in named:
        sha.update(f"{name} {_stamp(name, path)}\n".encode("utf-8", "surrogateescape"))
    covers = "content" + (f"; size and time of {len(named)} files that it names" if named else "")
    return {"bytes": size, "sha256": sha.hexdigest(), "covers": covers}


def _named_files(path: Path) -> list[str]:
    if path.suffix.lower() not in (".star", ".cs"):
        return []
    if path.name.startswith("coords_suffix_"):
        return sorted(str(found) for found in path.parent.rglob("*" + path.name.removeprefix("coords_suffix")))
    text = path.read_bytes()
    names = {quoted or plain for quoted, plain in _STACKED.findall(text)} or {*_PLAIN.findall(text), *_QUOTED.findall(text)}
    return sorted(name.decode("utf-8", "surrogateescape").strip() for name in names)


def _stamp(name: str, beside: Path) -> str:
    for place in (Path(name), beside.parent / name):
        try:
            facts = place.stat()
            return f"{facts.st_size} {facts.st_mtime_ns}"
        except OSError:
            continue
    return "missing"
