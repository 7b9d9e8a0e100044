"""What a file holds, what is odd about it, and what a job would make of it: for `verglas check`."""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from verglas.errors import InputError, VerglasError

_DAMAGE = (ValueError, RuntimeError, OSError, KeyError, IndexError, TypeError, SyntaxError)


@dataclass
class Explanation:
    """`kind` in a few words; `facts` by name; `oddities`, a sentence each; `use`: what a job would make of it, empty if nothing."""

    kind: str
    facts: dict[str, object] = field(default_factory=dict)
    oddities: list[str] = field(default_factory=list)
    use: str = ""


def explain(path: str | os.PathLike[str]) -> Explanation:
    """Explain a STAR, `.cs`, MRC, TIFF, EER, PNG, PDB/mmCIF or coordinate file, told apart by content.

    A file that cannot be read is explained as such, with the reason among the oddities. Raises InputError where there is no file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "is a folder, a file was expected" if path.is_dir() else "the file does not exist")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found = _explain(path)
        except (VerglasError, *_DAMAGE) as error:
            problem = f"{error.problem}. {error.mend}".rstrip(". ") if isinstance(error, InputError) else str(error)
            found = Explanation(f"unreadable ({_guess(path)})", {"size": file_size(path)}, [problem])
    said = [str(warning.message).removeprefix(f"{path}: ") for warning in warned if issubclass(warning.category, UserWarning)]
    found.oddities = list(dict.fromkeys([*said, *found.oddities]))
    return found


def file_size(path: Path) -> str:
    """Bytes of the file, readable."""
    size = float(path.stat().st_size)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _explain(path: Path) -> Explanation:
    from verglas.io import inspect_images, inspect_tables

    with path.open("rb") as file:
        start = file.read(4096)
    name = path.name.lower()
    if not start:
        return Explanation("empty file", {}, ["the file is empty"])
    if start.startswith(b"\x89PNG"):
        return inspect_images.png(path)
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return inspect_images.tiff(path)
    if start.startswith(b"\x93NUMPY") or name.endswith((".cs", ".cs.gz")):
        return inspect_tables.cryosparc(path)
    if start[:3] in (b"BZh", b"\x1f\x8b\x08"):
        return Explanation(
            "compressed file", {"size": file_size(path)}, ["it is compressed as a whole"], "Uncompress it first (bunzip2, gunzip)"
        )
    if b"\0" in start:
        return inspect_images.mrc(path)
    return _text(path, start.decode("utf-8", "replace"), name)


def _text(path: Path, start: str, name: str) -> Explanation:
    from verglas.io import inspect_images, inspect_tables

    if name.endswith((".pdb", ".ent", ".cif", ".mmcif")) or "_atom_site." in start or start.startswith(("HEADER ", "ATOM  ", "CRYST1")):
        return inspect_images.atoms(path)
    if name.endswith((".box", ".csv", ".tsv")):
        return inspect_tables.coordinates(path)
    return inspect_tables.star(path)


def _guess(path: Path) -> str:
    return f"by its name: {path.suffix.lower().lstrip('.').upper()}" if path.suffix else "a name without an extension"
