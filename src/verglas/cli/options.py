"""Command-line options of a job, derived from its declaration; values are checked by the declaration alone."""

from __future__ import annotations

import argparse
import difflib
import types
import typing
from pathlib import Path
from typing import Any

from verglas.errors import InputError
from verglas.jobs.declaration import InputSpec, JobParams, JobType
from verglas.workflow.request import JobRequest, option

RUNNER_OPTIONS = {
    "out": ("DIR", "Folder for the job; inside a project it gets the next number by itself"),
    "continue": ("JOB", "Go on with a job that was stopped, or do more iterations"),
    "alias": ("NAME", "A second name for the job in the project"),
    "time_limit": ("SECONDS", "Stop gently after this time"),
}
RUNNER_FLAGS = {"json": "Print the record as JSON", "quiet": "Print only the verdict", "help": "Show this"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise InputError(self.prog, message, f"See: {self.prog} --help")


def parse(declared: JobType, words: list[str]) -> argparse.Namespace:
    """Values as text (True and False for switches), None where not given. Raises InputError for an unknown or incomplete option."""
    words = [_dashes(word) for word in words]
    parser = _Parser(prog=f"verglas job {declared.name}", add_help=False, allow_abbrev=False)
    for name in RUNNER_OPTIONS:
        parser.add_argument(option(name), dest=f"run_{name}")
    for name in RUNNER_FLAGS:
        parser.add_argument(*(["-h"] if name == "help" else []), option(name), dest=f"run_{name}", action="store_true")
    for spec in declared.inputs:
        parser.add_argument(option(spec.name), dest=spec.name, **({"action": "extend", "nargs": "+"} if spec.many else {}))
    for name, info in declared.params.model_fields.items():
        if _is_switch(info.annotation):
            parser.add_argument(option(name), dest=name, nargs="?", const=True)
            parser.add_argument("--no-" + name.replace("_", "-"), dest=name, action="store_const", const=False)
        else:
            parser.add_argument(option(name), dest=name)
    found, unknown = parser.parse_known_args(words)
    if unknown:
        _refuse_unknown(declared, unknown[0])
    return found


def to_params(declared: JobType, given: dict[str, Any], base: dict[str, Any] | None = None) -> JobParams:
    """Checked parameters. Raises InputError with one line an error: option, what was found, what was expected."""
    from pydantic import ValidationError

    values = dict(base or {})
    for name, value in given.items():
        values[name] = _value(declared.params.model_fields[name].annotation, value)
    try:
        return declared.params(**values)
    except ValidationError as error:
        (where, what), *others = [_sentence(declared, problem) for problem in error.errors()]
        raise InputError(where, "; ".join([what, *(f"{place}: {text}" for place, text in others)])) from None


def to_inputs(declared: JobType, found: argparse.Namespace) -> dict[str, Any]:
    """Paths of the inputs that are given; a job's name stands for its output of the right kind."""
    given: dict[str, Any] = {}
    for spec in declared.inputs:
        value = getattr(found, spec.name)
        if value is not None:
            given[spec.name] = [_path(spec, text) for text in value] if spec.many else _path(spec, value)
    return given


def to_request(declared: JobType, found: argparse.Namespace) -> JobRequest:
    """The job that the command line asks for; with `--continue`, what isn't given is as in the job's record."""
    given = {name: getattr(found, name) for name in declared.params.model_fields if getattr(found, name) is not None}
    inputs, base, out = to_inputs(declared, found), None, None
    if found.run_continue:
        out, base, before = _stored(found.run_continue)
        inputs = {**before, **inputs}
    elif found.run_out:
        out = Path(found.run_out)
    limit = _seconds(found.run_time_limit)
    params = to_params(declared, given, base)
    return JobRequest(declared, params, inputs, out, bool(found.run_continue), found.run_alias, time_limit=limit)


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
        made = ", ".join(node for process, node in pipeline.outputs if process == name)
        raise InputError(option(spec.name), f"{name} has {len(fitting)} outputs of that kind", f"Name a file: {made}")
    return Path(fitting[0])


def _dashes(word: str) -> str:
    """`--mask_diameter=120` with RELION's underscores as the parser knows it."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _refuse_unknown(declared: JobType, word: str) -> typing.NoReturn:
    names = [*declared.params.model_fields, *(spec.name for spec in declared.inputs), *RUNNER_OPTIONS, *RUNNER_FLAGS]
    known = {option(name): name for name in names}
    flags = {info_flag(info): option(name) for name, info in declared.params.model_fields.items() if info_flag(info)}
    flags |= {spec.flag: option(spec.name) for spec in declared.inputs if spec.flag}
    wanted = "--" + word.lstrip("-").split("=")[0].replace("_", "-")
    relion = flags.get("--" + word.lstrip("-").split("=")[0])
    close = [relion] if relion else [wanted] if wanted in known else difflib.get_close_matches(wanted, known, 1)
    if not word.startswith("-"):
        raise InputError(f"verglas job {declared.name}", f"{word!r} belongs to no option", "Options start with --")
    raise InputError(word, f"is not an option of {declared.name}", f"Did you mean {close[0]}?" if close else f"See: verglas job {declared.name} --help")


def info_flag(info: Any) -> str:
    """RELION's flag of a parameter."""
    return str((info.json_schema_extra or {}).get("flag", ""))


def _value(annotation: Any, value: Any) -> Any:
    """Text as the parameter's type takes it: `none` for nothing, commas between the items of a list."""
    if not isinstance(value, str):
        return value
    kinds = kinds_of(annotation)
    if type(None) in kinds and value.strip().lower() in ("", "none"):
        return None
    if any(typing.get_origin(kind) in (list, tuple) for kind in kinds):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _is_switch(annotation: Any) -> bool:
    return bool in kinds_of(annotation)


def _seconds(text: str | None) -> float | None:
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = -1.0
    if value is not None and not value > 0:
        raise InputError("--time-limit", f"found {text!r}, expected a number of seconds above 0")
    return value


def _sentence(declared: JobType, problem: Any) -> tuple[str, str]:
    """One pydantic error in words: the option, what was found and what was expected."""
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "missing":
        return option(name), f"is needed: {declared.params.model_fields[name].description}"
    text = _EXPECTED.get(problem["type"]) or problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return (option(name), f"found {problem.get('input')!r}, expected {text}") if name else (declared.name, text)


_EXPECTED = {
    "float_parsing": "a number, with a point for decimals",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "yes or no",
}
