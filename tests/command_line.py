"""The command line in this process, as a user types it: exit code, what it said, and the record that it left."""

import contextlib
import importlib
import io
from dataclasses import dataclass
from pathlib import Path
from pkgutil import walk_packages

import verglas
from verglas.records.record import Record, read_record

# imported once here, not by every child process anew
for module in walk_packages(verglas.__path__, "verglas."):
    if not module.name.endswith(("__main__", "_triton")):  # Triton comes with torch only where there are cards
        importlib.import_module(module.name)
for name in ("scipy.ndimage", "matplotlib.backends.backend_agg", "matplotlib.figure", "mpl_toolkits.mplot3d"):
    importlib.import_module(name)


@dataclass
class Ran:
    """How a command ended. `record` is None where the job never got a folder."""

    code: int
    said: str
    record: Record | None

    @property
    def reasons(self) -> str:
        """Why it is no PASS: the record's reasons, or the one line of an error before the start."""
        return "; ".join(self.record.reasons) if self.record else self.said

    def bad(self) -> dict[str, str]:
        """Items that were skipped or failed, with the reasons."""
        assert self.record is not None and self.record.items is not None
        return {problem["item"]: problem["reason"] for problem in self.record.items["problems"]}

    def counts(self) -> tuple[int, int, int, int]:
        """Items in, done, skipped, failed; checked to add up."""
        assert self.record is not None and self.record.items is not None
        total, *parts = (self.record.items[name] for name in ("total", "done", "skipped", "failed"))
        assert total == sum(parts)
        return total, parts[0], parts[1], parts[2]


def job(name: str, *words: object, out: str | Path | None = None) -> Ran:
    """`verglas job NAME WORDS --out OUT` (no folder inside a project: pass None); the record is that of `out`."""
    from verglas.cli.job import run_command
    from verglas.errors import InputError

    given = [str(word) for word in words] + (["--out", str(out)] if out is not None else [])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            code = run_command(name, given)
        except InputError as error:
            print(f"ERROR: {error}")
            code = 2
    record = read_record(Path(out)) if out is not None and Path(out).is_dir() else None
    return Ran(code, said.getvalue(), record)
