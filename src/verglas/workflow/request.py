"""One job as asked for: its type, parameters and inputs; the command that repeats it; the fingerprint by which it is known again."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path
from typing import Any

from verglas.errors import InputError
from verglas.jobs.declaration import InputSpec, JobParams, JobType
from verglas.relion.engine import Relion, by_relion

WITHOUT_EFFECT = ("device", "threads")  # parameters that change no result beyond summation order


@dataclass
class JobRequest:
    """A job to run. `out` is its folder, None for the next number of the project; `go_on` names a job folder to continue in.

    `iteration` is the one to go on after, whatever came later; None for the last.
    `relion` is set where RELION carries it out: make such a request by `with_relion`.
    """

    declared: JobType
    params: JobParams
    inputs: dict[str, Any]  # name → Path, list of Paths, or None
    out: Path | None = None
    go_on: bool = False
    alias: str | None = None
    step: str | None = None
    time_limit: float | None = None
    relion: Relion | None = None
    iteration: int | None = None
    extra_command: tuple[str, ...] = field(default=())

    @property
    def engine(self) -> str:
        """Which engine carries the job out: verglas or relion."""
        return "relion" if self.relion is not None else "verglas"

    def files(self) -> list[tuple[InputSpec, Path]]:
        """Every file given, with the input it was given for."""
        found = []
        for spec in self.declared.inputs:
            given = self.inputs.get(spec.name)
            found += [(spec, path) for path in (given if isinstance(given, list) else [given]) if path is not None]
        return found

    def command(self, folder: Path | None = None) -> list[str]:
        """The command line that repeats the job: inputs, and the parameters that differ from their defaults."""
        words = ["verglas", "job", self.declared.name]
        for spec, path in self.files():
            words += [option(spec.name), str(path)]
        for name, info in type(self.params).model_fields.items():
            value = getattr(self.params, name)
            if info.is_required() or value != info.get_default(call_default_factory=True):
                words += _words(name, value)
        if self.relion is not None:
            words += ["--engine", "relion", "--ranks", str(self.relion.ranks)]
            words += [f"--relion-args={shlex.join(self.relion.extra)}"] if self.relion.extra else []
        return [*words, "--out", str(folder)] if folder is not None else words

    def check_inputs(self) -> None:
        """Raise InputError for an input that is needed and not given, or that isn't there."""
        for spec in self.declared.inputs:
            given = self.inputs.get(spec.name)
            if spec.required and not given:
                job = self.declared.name
                raise InputError(option(spec.name), f"is needed by {job}: {spec.help}", f"See: verglas job {job} --help")
        for spec, path in self.files():
            if not path.exists():
                raise InputError(option(spec.name), f"{path} is not there", f"Paths are relative to {Path.cwd()}")


def check_engine(engine: str | None, ranks: int | None = None, relion_args: str | None = None) -> str:
    """The engine's name, ours by default. Raises InputError for one that nobody knows, and for RELION's options without it."""
    if engine not in (None, "verglas", "relion"):
        raise InputError("--engine", f"{engine!r} is not known", "Give verglas or relion")
    for name, value in (("--ranks", ranks), ("--relion-args", relion_args)):
        if value is not None and engine != "relion":
            raise InputError(name, "is for RELION", "Add --engine relion")
    return engine or "verglas"


def with_relion(request: JobRequest, ranks: int | None = None, extra: str = "") -> JobRequest:
    """The same job carried out by the RELION on the PATH, with so many MPI ranks (None: the fewest) and more options of RELION's own.

    Raises InputError where there is none, where it doesn't do such jobs, and where it cannot express a parameter or an input.
    """
    declared, relion = by_relion(request.declared, request.params, request.inputs, ranks=ranks, extra=extra)
    return replace(request, declared=declared, relion=relion)


def files_of(text: str) -> list[Path]:
    """The file `text`, or, where none has that name, the files that fit it as a pattern, in order; itself if none does."""
    path = Path(text)
    if path.exists() or not any(sign in text for sign in "*?["):
        return [path]
    return [Path(found) for found in sorted(glob(text, recursive=True))] or [path]  # noqa: PTH207  Path.glob takes no absolute pattern


def option(name: str) -> str:
    """`mask_diameter` as it is written on the command line."""
    return "--" + name.replace("_", "-")


def fingerprint(request: JobRequest, digests: list[dict[str, Any]]) -> str:
    """Digest of all that decides a job's result: type, parameters, the content (not the names) of its inputs, and the engine."""
    params = request.params.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))
    inputs = [[entry["name"], entry["sha256"]] for entry in digests]
    work: list[Any] = [request.declared.name, params, inputs]
    if request.relion is not None:
        work.append(request.relion.identity)
    return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [option(name) if value else "--no-" + name.replace("_", "-")]
    if value is None:
        return [option(name), "none"]
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return [f"{option(name)}={text}"] if text.startswith("-") else [option(name), text]
