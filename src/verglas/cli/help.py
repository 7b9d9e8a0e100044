"""The help page of a job type, made from its declaration."""

from __future__ import annotations

import textwrap
import typing
from typing import Any

from verglas.cli.fields import kinds_of
from verglas.cli.options import RUNNER_FLAGS, RUNNER_OPTIONS
from verglas.jobs.declaration import JobType
from verglas.relion.programs import PROGRAMS
from verglas.workflow.request import option

_WIDTH, _COLUMN = 110, 34


def help_page(declared: JobType) -> str:
    """Summary, examples, inputs, parameters with type, unit, default and RELION's name, and outputs."""
    parts = [f"verglas job {declared.name}: {declared.summary}", "", "Examples:", _indented(declared.examples), ""]
    if declared.inputs:
        parts += ["Inputs:"]
        for spec in declared.inputs:
            facts = ["needed" if spec.required else "optional", "several can be given" if spec.many else "", _relion("", spec.flag)]
            parts.append(entry(option(spec.name), "FILE", spec.help, facts))
    own = [name for name in declared.params.model_fields if name not in _common()]
    for title, names in (("Parameters:", own), ("Parameters of every job:", _common())):
        parts += ["", title, *(field_entry(name, declared.params.model_fields[name]) for name in names)]
    parts += ["", "The run:"]
    parts += [entry(option(name), metavar, text, []) for name, (metavar, text) in RUNNER_OPTIONS.items()]
    parts += [entry(option(name), "", text, []) for name, text in RUNNER_FLAGS.items()]
    parts += ["", *_by_relion(declared)] if declared.name in PROGRAMS else []
    parts += ["", "On a cluster:", f"  verglas job {declared.name} … --submit relion_qsub.sh --queue gpu --extra1 24:00:00 --threads 8"]
    parts += ["", "Underscores may be written for dashes. Exit codes: 0 PASS, 1 FAIL, 2 bad input, 3 stopped, 4 UNCHECKED."]
    return "\n".join(parts)


def _by_relion(declared: JobType) -> list[str]:
    """How RELION carries out the type."""
    program = PROGRAMS[declared.name]
    ranks = f" --ranks {max(2, program.least_ranks)} --threads 1" if program.parallel else ""
    return [f"By RELION ({program.name}):", f"  verglas job {declared.name} … --engine relion{ranks}"]


def _common() -> list[str]:
    from verglas.jobs.declaration import JobParams

    return list(JobParams.model_fields)


def field_entry(name: str, info: Any) -> str:
    """The help of one field of a model."""
    extra = info.json_schema_extra or {}
    facts = [_default(info), _limits(info), _relion(extra.get("label", ""), extra.get("flag", ""))]
    switch = bool in kinds_of(info.annotation)
    metavar = "" if switch else _metavar(info.annotation, extra.get("unit", ""))
    text = (info.description or "") + (f" [{extra['unit']}]" if extra.get("unit") else "")
    return entry(option(name) + (f", --no-{name.replace('_', '-')}" if switch else ""), metavar, text, facts)


def _metavar(annotation: Any, unit: str) -> str:
    kinds = [kind for kind in kinds_of(annotation) if kind is not type(None)]
    choices = [str(choice) for kind in kinds if typing.get_origin(kind) is typing.Literal for choice in typing.get_args(kind)]
    if choices:
        return "|".join(choices)
    first = kinds[0]
    if typing.get_origin(first) in (list, tuple):
        return "A,B,…"
    return {int: "N", float: "X", str: "TEXT"}.get(first, "VALUE")


def _default(info: Any) -> str:
    if info.is_required():
        return "needed"
    value = info.get_default(call_default_factory=True)
    shown = {True: "yes", False: "no", None: "none", "": "empty"}.get(value, value) if isinstance(value, bool | str | None) else value
    return f"default {shown}"


def _limits(info: Any) -> str:
    words = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [f"{sign} {getattr(limit, name):g}" for limit in info.metadata for name, sign in words.items() if hasattr(limit, name)]
    return ", ".join(found)


def _relion(label: str, flag: str) -> str:
    text = " ".join(part for part in (f'"{label}"' if label else "", flag) if part)
    return f"RELION: {text}" if text else ""


def entry(name: str, metavar: str, text: str, facts: list[str]) -> str:
    """An option with its text in a column beside it, and facts in brackets."""
    head = f"  {name} {metavar}".rstrip()
    body = text + (f" ({'; '.join(fact for fact in facts if fact)})" if any(facts) else "")
    lines = textwrap.wrap(body, _WIDTH - _COLUMN) or [""]
    if len(head) >= _COLUMN:
        return "\n".join([head, *(" " * _COLUMN + line for line in lines)])
    return "\n".join([head.ljust(_COLUMN) + lines[0], *(" " * _COLUMN + line for line in lines[1:])])


def _indented(examples: str) -> str:
    return textwrap.indent(textwrap.dedent(examples).strip("\n"), "  ")
