"""How a job type is declared: parameters, inputs, outputs, measurements, checks and the function that does the work.

A job module declares one `JobType` and registers nothing: `jobs.registry` names the modules. Its top level imports only
this module and the standard library, so that `--help` stays quick; `run`, `measure` and `validate` import what they need.

    class Params(JobParams):
        ini_threshold: float = param(0.01, "Density of the surface", label="Initial binarisation threshold:", flag="--ini_threshold")

    JOB = JobType(name="MaskCreate", relion_number=12, params=Params, inputs=(...), outputs=outputs, run=run, ...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from verglas.compute.ranks import Ranks

Metrics = dict[str, float | int | str | None]


class NodeType(IntEnum):
    """Types of files that jobs exchange, with RELION 3.1's numbers (`rlnPipeLineNodeType`)."""

    MOVIES = 0
    MICROGRAPHS = 1
    COORDINATES = 2
    PARTICLES = 3
    REFERENCES_2D = 5
    MAP = 6
    MASK = 7
    MODEL = 8
    OPTIMISER = 9
    HALF_MAP = 10
    FINAL_MAP = 11
    LOCAL_RESOLUTION = 12
    LOGFILE = 13
    POSTPROCESS = 14


def param(default: Any, help: str, *, label: str = "", flag: str = "", unit: str = "", **limits: Any) -> Any:
    """A parameter of a job: `label` and `flag` are RELION's, `unit` is shown in help, `limits` are pydantic's (ge, le, gt …).

    `default=...` makes it required. Choices are a `Literal` annotation; on/off is `bool`; empty is `None`.
    """
    extra: dict[str, Any] = {"label": label, "flag": flag, "unit": unit}
    return Field(default, description=help, json_schema_extra=extra, **limits)


class JobParams(BaseModel):
    """Parameters that every job has. Jobs subclass it; names follow RELION's GUI where one exists."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    random_seed: int = param(1, "Seed of everything random", flag="--random_seed", ge=0)
    device: str = param("auto", "Where to compute: auto, cpu, cuda or cuda:N")
    threads: int = param(0, "CPU threads, 0 for all cores; in refinements on a card, half of them and eight at most", flag="--j", ge=0)


@dataclass(frozen=True)
class InputSpec:
    """An input of a job: its option name, node type, and whether it may be left out or given several times."""

    name: str
    node: NodeType
    help: str
    required: bool = True
    many: bool = False
    flag: str = ""


@dataclass(frozen=True)
class OutputSpec:
    """A file that the job must leave: `name` for references between steps, `path` relative to the job's folder."""

    name: str
    node: NodeType
    path: str


@dataclass(frozen=True)
class Check:
    """A range that a metric of `measure` must fall in; `source` cites where the range comes from."""

    metric: str
    low: float | None
    high: float | None
    source: str


@dataclass(frozen=True)
class Problem:
    """One item that was skipped or failed, and why."""

    item: str
    reason: str


@dataclass
class Items:
    """The job's account of its items; `total == done + skipped + failed` or the verdict is FAIL."""

    unit: str
    total: int
    done: int = 0
    skipped: int = 0
    failed: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def skip(self, item: str, reason: str) -> None:
        """Count an item that was left out on purpose, with the reason."""
        self.skipped += 1
        self.problems.append(Problem(item, reason))

    def fail(self, item: str, reason: str) -> None:
        """Count an item that could not be processed, with the reason."""
        self.failed += 1
        self.problems.append(Problem(item, reason))


class ProgressBar(Protocol):
    """A bar on a terminal, plain lines in a log."""

    def advance(self, n: int = 1) -> None:
        """Count `n` more items as done."""


class Job(Protocol):
    """What a running job is handed by the runner. Paths in files are relative to the working directory (the project)."""

    params: Any
    inputs: dict[str, Any]  # name → Path, list[Path] (many) or None (not given)
    out: Path  # the job's folder; exists
    record: dict[str, Any]  # extra facts for record.json, such as the numerical path taken

    @property
    def ranks(self) -> Ranks:
        """The processes that share the job: all of them run it, the first alone writes. One for types that are not `on_ranks`."""

    def progress(self, what: str, total: int) -> AbstractContextManager[ProgressBar]:
        """Show progress over `total` items: `with job.progress("movies", len(movies)) as bar: bar.advance()`. 0: no one knows how many."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Account the wall time of the block to a phase: `read`, `compute`, `write` (nested phases are not double counted)."""

    def say(self, text: str) -> None:
        """One line to run.out."""

    def warn(self, text: str) -> None:
        """One warning: to run.err, and counted in the record."""

    def check_stop(self) -> None:
        """Raise `JobAborted` if the user asked to stop; call it between items and between iterations."""


def no_validation(job: Job) -> None:
    """The default `validate`: parameters and declared inputs are checked by the runner already."""


def nothing_to_clean(out: Path) -> Iterator[Path]:
    """The default `clean`: the job leaves no intermediate files."""
    return iter(())


@dataclass(frozen=True)
class JobType:
    """One job type, declared once: command line, job.star, docs, pipeline edges, verdict and RELION's command come from it.

    `outputs(params)` lists the files that must be there in the end. `validate(job)` raises `InputError` before work starts.
    `run(job)` does the work and returns its `Items`. `measure(out, params)` reads the files that were left, never what
    `run` returned. `checks(params)` are the ranges of those metrics. `clean(out)` yields intermediate files that a gentle clean removes.
    `grows` names the parameter of which a finished job may be asked for more in its own folder.
    """

    name: str
    relion_number: int
    summary: str
    examples: str
    params: type[JobParams]
    inputs: tuple[InputSpec, ...]
    outputs: Callable[[Any], tuple[OutputSpec, ...]]
    run: Callable[[Job], Items]
    measure: Callable[[Path, Any], Metrics]
    checks: Callable[[Any], tuple[Check, ...]]
    validate: Callable[[Job], None] = no_validation
    clean: Callable[[Path], Iterator[Path]] = nothing_to_clean
    describe: Callable[[Metrics], str] = lambda metrics: ""  # the notes column of the job table
    grows: str = "iterations"
    light: bool = False  # whether job and judge do without torch, whose import takes seconds, or one of them alone needs it
    on_ranks: bool = False  # whether torchrun, srun or mpirun may start it as many processes that share the work
