"""Command-line options of a job, derived from its declaration; values are checked by the declaration alone."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

from verglas.cli.fields import Parser, given, info_flag, to_model
from verglas.cli.submission import SUBMIT_OPTIONS, take_extras
from verglas.errors import InputError
from verglas.jobs.declaration import InputSpec, JobType
from verglas.workflow.request import JobRequest, check_engine, files_of, option, with_relion

ENGINE_OPTIONS = {
    "engine": ("verglas|relion", "Who does the work: ours, or the RELION 3.1 on the PATH for types that it has a program for"),
    "ranks": ("N", "MPI ranks of RELION; Refine3D takes 3 or more, of which one leads"),
    "relion_args": ("TEXT", 'More options for RELION, such as --relion-args="--maxsig 500"'),
}
RUNNER_OPTIONS = {
    "out": ("DIR", "Folder for the job; inside a project it gets the next number by itself"),
    "continue": (
        "JOB",
        "Go on with a job that was stopped, or do more iterations; JOB/run_it005_optimiser.star: after that one, later ones are removed",
    ),
    "alias": ("NAME", "A second name for the job in the project"),
    "time_limit": ("SECONDS", "Stop gently after this time"),
    **ENGINE_OPTIONS,
    **SUBMIT_OPTIONS,
}
RUNNER_FLAGS = {"json": "Print the record as JSON", "quiet": "Print only the verdict", "help": "Show this"}


def parse(declared: JobType, words: list[str]) -> argparse.Namespace:
    """Values as text (True and False for switches), None where not given. Raises InputError for an unknown or incomplete option."""
    parser = Parser(f"verglas job {declared.name}")
    for name in RUNNER_OPTIONS:
        parser.add_argument(option(name), dest=f"run_{name}")
    for name in RUNNER_FLAGS:
        parser.add_argument(*(["-h"] if name == "help" else []), option(name), dest=f"run_{name}", action="store_true")
    for spec in declared.inputs:
        several: dict[str, Any] = {"action": "extend", "nargs": "+"} if spec.many else {}
        parser.add_argument(option(spec.name), dest=spec.name, **several)
    parser.add_fields(declared.params)
    extras, words = take_extras(join_relion_args(words))
    found, unknown = parser.parse(words)
    found.run_extras = extras
    if unknown:
        names = [*declared.params.model_fields, *(spec.name for spec in declared.inputs), *RUNNER_OPTIONS, *RUNNER_FLAGS]
        relion = {info_flag(info): option(name) for name, info in declared.params.model_fields.items()}
        relion |= {spec.flag: option(spec.name) for spec in declared.inputs}
        parser.refuse(unknown[0], names, {flag: ours for flag, ours in relion.items() if flag})
    return found


def to_inputs(declared: JobType, found: argparse.Namespace) -> dict[str, Any]:
    """Paths of the inputs that are given; a job's name stands for its output of the right kind."""
    paths: dict[str, Any] = {}
    for spec in declared.inputs:
        value = getattr(found, spec.name)
        if value is not None:
            paths[spec.name] = [file for text in value for file in files_of(str(_path(spec, text)))] if spec.many else _path(spec, value)
    return paths


def to_request(declared: JobType, found: argparse.Namespace) -> JobRequest:
    """The job that the command line asks for; with `--continue`, what isn't given is as in the job's record."""
    inputs, base, out, iteration = to_inputs(declared, found), None, None, None
    if found.run_continue:
        job, iteration = _job_and_iteration(found.run_continue)
        out, base, before = _stored(job)
        inputs = {**before, **inputs}
    elif found.run_out:
        out = Path(found.run_out)
    limit = _seconds(found.run_time_limit)
    params = to_model(declared.params, given(found, declared.params), base)
    request = JobRequest(declared, params, inputs, out, bool(found.run_continue), found.run_alias, time_limit=limit, iteration=iteration)
    engine, ranks, extra = found.run_engine, to_ranks(found.run_ranks), found.run_relion_args
    if engine is None and out is not None and found.run_continue:
        engine, ranks, extra = _stored_engine(out, ranks, extra)
    return to_engine(request, engine, ranks, extra)


def to_engine(request: JobRequest, engine: str | None, ranks: int | None, extra: str | None) -> JobRequest:
    """The request for the engine that is named, ours by default. Raises InputError for another, and for RELION's options without it."""
    if check_engine(engine, ranks, extra) == "verglas":
        return request
    request.check_inputs()
    return with_relion(request, ranks, extra or "")


def to_ranks(text: str | None) -> int | None:
    """A number of ranks from 1, or None. Raises InputError."""
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise InputError("--ranks", f"found {text!r}, expected a whole number from 1")
    return int(text)


def join_relion_args(words: list[str]) -> list[str]:
    """`--relion-args TEXT` as one word: its text looks like options, and is not to be read as ours."""
    joined, left = list[str](), iter(words)
    for word in left:
        text = next(left, None) if word.replace("_", "-") == "--relion-args" else None
        joined.append(word if text is None else f"--relion-args={text}")
    return joined


def _job_and_iteration(text: str) -> tuple[str, int | None]:
    """The job that is to go on, and the iteration after which it is to: the one whose optimiser is named, None for the last.

    Raises InputError for an iteration that is not there whole.
    """
    path = Path(text)
    match = re.fullmatch(r"run_it(\d{3,})_optimiser\.star", path.name)
    if not match:
        return text, None
    if not path.is_file():
        raise InputError(text, "is not there", "See the iterations: ls JOB/run_it*_optimiser.star")
    if _stored_engine(path.parent, None, None)[0] == "verglas" and not path.with_name(f"run_it{match[1]}_state.pt").is_file():
        raise InputError(
            text, "has no exact state beside it", "Give an iteration that has a run_itNNN_state.pt, or use its maps and poses anew"
        )
    return str(path.parent), int(match[1])


def _stored_engine(folder: Path, ranks: int | None, extra: str | None) -> tuple[str, int | None, str | None]:
    """Engine, ranks and RELION's further options with which a job that is to go on was begun; what is given now comes first."""
    from verglas.records.record import read_record

    record = read_record(folder)
    if record is None or record.engine != "relion":
        return "verglas", ranks, extra
    before = shlex.join(record.relion["extra"]) or None
    return "relion", ranks or record.relion["ranks"], before if extra is None else extra


def _stored(job: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Folder, parameters and inputs of a job that is to go on."""
    from verglas.cli.tidy import find_folder
    from verglas.records.record import read_record

    folder = find_folder(job)
    record = read_record(folder)
    if record is None:
        raise InputError(folder, "has no record.json, so it can't go on", "Run it with --out instead")
    inputs: dict[str, Any] = {}
    for entry in record.inputs:
        inputs.setdefault(entry["name"], []).append(Path(entry["path"]))
    from verglas.jobs.registry import job_type

    many = {spec.name for spec in job_type(record.type).inputs if spec.many}
    return folder, record.params, {name: paths if name in many else paths[0] for name, paths in inputs.items()}


def _path(spec: InputSpec, text: str) -> Path:
    """A file, or the output of the right kind of the job that is named."""
    from verglas.project.project import Project

    path = Path(text)
    project = None if path.is_file() else Project.here()
    if project is None:
        return path
    try:
        name = project.find(text)
    except InputError:
        return path
    pipeline = project.pipeline()
    fitting = [node for process, node in pipeline.outputs if process == name and pipeline.nodes[node] == int(spec.node)]
    if len(fitting) != 1:
        made = ", ".join(fitting or [node for process, node in pipeline.outputs if process == name])
        raise InputError(option(spec.name), f"{name} has {len(fitting)} outputs of that kind", f"Name a file: {made}")
    return Path(fitting[0])


def _seconds(text: str | None) -> float | None:
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = -1.0
    if value is not None and not value > 0:
        raise InputError("--time-limit", f"found {text!r}, expected a number of seconds above 0")
    return value
