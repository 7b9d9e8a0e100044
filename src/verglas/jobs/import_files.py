"""The files that a user means: a name, a pattern, several of them, or a STAR file that lists them."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from verglas.errors import InputError

_SEPARATOR = ";"


def find_files(text: str) -> list[Path]:
    """Files of `text`: names or patterns (`*`, `?`, `[…]`), several parted by semicolons; each once, patterns in natural order.

    What exists under its name is that file, whatever characters the name has; only what does not exist is a pattern.
    Raises InputError for a folder, for a name that is not there, and for a pattern that matches nothing.
    """
    parts = [text] if Path(text).exists() else [part.strip() for part in text.split(_SEPARATOR) if part.strip()]
    found = [path for part in parts for path in _of_part(part)]
    if not found:
        raise InputError("--files", "no file is given", "Give a name, a pattern such as 'movies/*.tif', or several parted by ;")
    return list(dict.fromkeys(found))


def one_file(text: str) -> Path:
    """The one file of `text`. Raises InputError for none or several."""
    found = find_files(text)
    if len(found) != 1:
        raise InputError("--files", f"{text!r} means {len(found)} files, one was expected", "Give its name")
    return found[0]


def _of_part(part: str) -> list[Path]:
    path = Path(part)
    if path.is_dir():
        raise InputError("--files", f"{part} is a folder", f"Give a pattern such as '{part.rstrip('/')}/*.tif'")
    if path.exists():
        return [path]
    if path.is_symlink():
        raise InputError("--files", f"{part} is a link to something that is not there", "Mend the link")
    matches = [Path(name) for name in sorted(_glob(part), key=_natural) if Path(name).is_file()]
    if not matches:
        mend = f"Paths are relative to {Path.cwd()}{_hint(part)}"
        raise InputError("--files", f"{part} is not there, and as a pattern it matches no file", mend)
    return matches


def _glob(pattern: str) -> list[str]:
    return glob.glob(pattern, recursive=True)  # noqa: PTH207 (pathlib takes no absolute patterns)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which mic_2 comes before mic_10."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name) if piece]


def _hint(part: str) -> str:
    """Whether the pattern would match in another case."""
    either = "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in part)
    matches = sorted(_glob(either), key=_natural) if "[" not in part else []
    return f"; {len(matches)} files match in another case, such as {matches[0]}" if matches else ""
