"""Files that appear whole or not at all: written under a temporary name beside the target, then renamed."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp(\.[^.]*)?")


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in `path`'s folder (made if missing); rename it to `path` when the block ends well.

    The temporary name is hidden and keeps the suffix, since many writers choose the format by it. On any error, an interrupt
    included, it is removed and an older file at `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:100]}.{uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_temporary(path: Path) -> bool:
    """Whether `path` has the name of a file that `whole_file` had not finished when its process was killed."""
    return _TEMPORARY.fullmatch(path.name) is not None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8; bytes of undecodable file names are kept) to `path`, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON; what JSON does not know (paths, numpy scalars) is written as text or number."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
