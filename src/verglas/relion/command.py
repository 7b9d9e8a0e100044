"""RELION's command line for a declared job, from its declaration, parameters and inputs alone.

What the declaration can say and RELION can't is an InputError that names the parameter or input: nothing is dropped.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from verglas.errors import InputError
from verglas.jobs.declaration import JobType
from verglas.relion.programs import Program, program_of

REFERENCES = "references.star"  # in the job's folder, where there are several
_OTHERWISE = "Leave it out, or leave --engine out"


def arguments(
    declared: JobType, params: Any, inputs: Mapping[str, Any], folder: Path, *, threads: int, extra: Sequence[str] = ()
) -> list[str]:
    """RELION's options for a job in `folder`, after the program's name. `inputs`: name → Path, list of Paths or None.

    `extra` are further options for RELION: they replace what its windows always give, and may not repeat what a parameter says.
    Raises InputError for what RELION cannot express.
    """
    program = program_of(declared.name)
    said = [*_inputs(declared, inputs, folder), *_parameters(program, declared, params)]
    reserved = {word for word in said if word.startswith("--")} | {"--o", "--j", "--pipeline_control", "--continue"}
    own = split_options(extra)
    for option in own:
        if option[0] in reserved:
            raise InputError("--relion-args", f"{option[0]} is set by the job itself", "Use the parameter of the job for it")
    given = {option[0] for option in own}
    fixed = [word for option in split_options(program.fixed) if option[0] not in given for word in option]
    threading = ["--j", str(threads)] if program.threaded else []
    output = ["--o", f"{folder / program.output}"]
    return [*output, *said, *fixed, *extra, *threading, "--pipeline_control", f"{folder}/"]


def going_on(program: Program, optimiser: Path, folder: Path, said: Sequence[str], *, finish: bool = False) -> list[str]:
    """Options by which RELION goes on from an iteration, `said` being those of the start; with `finish`, to the end at once.

    Everything that isn't here it takes from the optimiser's table.
    """
    kept = ("--iter", "--auto_iter_max", "--j", "--pool", "--dont_combine_weights_via_disc")
    options = [word for option in split_options(said) if option[0] in kept for word in option if not (finish and option[0] == kept[1])]
    last = ["--force_converge"] if finish else []
    return ["--continue", str(optimiser), "--o", f"{folder / program.output}", *options, *last, "--pipeline_control", f"{folder}/"]


def split_options(words: Sequence[str]) -> list[list[str]]:
    """Options with their values: `--pool 30 --ctf` is [[--pool, 30], [--ctf]]."""
    found: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            found.append([word])
        elif found:
            found[-1].append(word)
        else:
            raise InputError("--relion-args", f"{word!r} belongs to no option", 'Write it as RELION does: --relion-args="--maxsig 500"')
    return found


def value_of(words: Sequence[str], name: str) -> str | None:
    """The value of option `name` among RELION's options; None where it isn't there."""
    return next((option[1] for option in split_options(words) if option[0] == name and len(option) > 1), None)


def extra_options(text: str) -> list[str]:
    """The words of `--relion-args`. Raises InputError for an open quote or a word that belongs to no option."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError("--relion-args", f"{text!r}: {error}") from None
    split_options(words)
    return words


def _inputs(declared: JobType, inputs: Mapping[str, Any], folder: Path) -> list[str]:
    words: list[str] = []
    for spec in declared.inputs:
        value = inputs.get(spec.name)
        if not value:
            continue
        if not spec.flag:
            raise InputError(_option(spec.name), f"cannot be given to RELION: it has no {spec.name} in {declared.name}", _OTHERWISE)
        paths = value if isinstance(value, list) else [value]
        for path in paths:
            if Path(path).suffix == ".cs":
                raise InputError(_option(spec.name), f"{path}: RELION reads no .cs files", "Import it first: verglas job Import")
        words += [spec.flag, str(paths[0] if len(paths) == 1 else folder / REFERENCES)]
    return words


def _parameters(program: Program, declared: JobType, params: Any) -> list[str]:
    words: list[str] = []
    for name, info in declared.params.model_fields.items():
        value, extra = getattr(params, name), cast("dict[str, str]", info.json_schema_extra or {})
        if name == "threads" or name in program.apart:
            continue
        if name in program.own:
            words += program.own[name](params)
        elif extra.get("flag"):
            if extra["flag"] == "--sym" and Path(value).exists():
                problem = f"RELION reads what is called {value} here as a list of operators, and takes none from it"
                raise InputError(_option(name), problem, f"Rename {Path.cwd() / value}")
            words += _words(extra["flag"], value)
        elif value != info.get_default(call_default_factory=True):
            raise InputError(_option(name), f"cannot be given to RELION: {program.name} has no option for it", _OTHERWISE)
    return words


def _words(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag] if value else []
    if value is None:
        return []
    return [flag, f"{value:.10g}" if isinstance(value, float) else str(value)]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
