"""Run a declared job in this process, without the runner: for tests of the jobs themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from verglas.compute.ranks import Ranks
from verglas.errors import JobAborted
from verglas.jobs.declaration import Items, JobType


class _Bar:
    def advance(self, n: int = 1) -> None:
        pass


class PlainJob:
    """The `Job` that a job's functions are handed, with nothing around it."""

    def __init__(self, params: Any, inputs: dict[str, Any], out: Path, stop_after: int | None = None) -> None:
        self.params, self.inputs, self.out = params, inputs, out
        self.ranks = Ranks()
        self.record: dict[str, Any] = {}
        self.said: list[str] = []
        self.warned: list[str] = []
        self._checks_left = stop_after

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[_Bar]:
        yield _Bar()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        yield

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def check_stop(self) -> None:
        if self._checks_left is not None:
            self._checks_left -= 1
            if self._checks_left < 0:
                raise JobAborted("stopped by the test")


def make_job(declared: JobType, params: dict[str, Any], inputs: dict[str, Any], out: Path, stop_after: int | None = None) -> PlainJob:
    """A job ready to run; inputs not given are None, as the runner does it."""
    given = {spec.name: inputs.get(spec.name, [] if spec.many else None) for spec in declared.inputs}
    out.mkdir(parents=True, exist_ok=True)
    return PlainJob(declared.params(**params), given, out, stop_after)


def run_job(declared: JobType, params: dict[str, Any], inputs: dict[str, Any], out: Path) -> Items:
    """Validate and run `declared`, check that the declared outputs are there, and return its items."""
    job = make_job(declared, params, inputs, out)
    declared.validate(job)
    items = declared.run(job)
    missing = [spec.path for spec in declared.outputs(job.params) if not (out / spec.path).exists()]
    assert not missing, f"declared outputs missing: {missing}"
    assert items.total == items.done + items.skipped + items.failed
    return items
