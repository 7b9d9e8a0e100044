"""Command-line options of a pydantic model: its fields as `--long-names`, its errors as sentences."""

from __future__ import annotations

import argparse
import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any

from verglas.errors import InputError
from verglas.workflow.request import option

if typing.TYPE_CHECKING:
    from pydantic import BaseModel


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations and without its own way out: whatever is wrong is an InputError. Underscores count as dashes."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog=prog, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> typing.NoReturn:
        """Raise instead of exit."""
        raise InputError(self.prog, message, f"See: {self.prog} --help")

    def add_fields(self, model: type[BaseModel]) -> None:
        """An option for every field; switches get a `--no-` twin."""
        for name, info in model.model_fields.items():
            if bool in kinds_of(info.annotation):
                self.add_argument(option(name), dest=name, nargs="?", const=True)
                self.add_argument("--no-" + name.replace("_", "-"), dest=name, action="store_const", const=False)
            else:
                self.add_argument(option(name), dest=name)

    def parse(self, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """The options found, None where not given, and the words that are none."""
        return self.parse_known_args([_dashes(word) for word in words])

    def refuse(self, word: str, names: Iterable[str], relion: dict[str, str]) -> typing.NoReturn:
        """Raise InputError for `word`, with the option that may have been meant; `relion` maps RELION's flags to ours."""
        if not word.startswith("-"):
            raise InputError(self.prog, f"{word!r} belongs to no option", "Options start with --")
        bare = "--" + word.lstrip("-").split("=")[0]
        known = [option(name) for name in names]
        flags = {flag.replace("_", "-"): ours for flag, ours in relion.items()}
        close = [flags[bare]] if bare in flags else difflib.get_close_matches(bare, known, 1)
        mend = f"Did you mean {close[0]}?" if close else f"See: {self.prog} --help"
        raise InputError(word, f"is not an option of {self.prog}", mend)


def given(found: argparse.Namespace, model: type[BaseModel]) -> dict[str, Any]:
    """The fields of `model` that the command line gives."""
    return {name: getattr(found, name) for name in model.model_fields if getattr(found, name) is not None}


def to_model(model: type[Any], values: dict[str, Any], base: dict[str, Any] | None = None) -> Any:
    """A checked model. Raises InputError with the options, what was found, and what was expected."""
    from pydantic import ValidationError

    texts = {name: _value(model.model_fields[name].annotation, value) for name, value in values.items()}
    try:
        return model(**{**(base or {}), **texts})
    except ValidationError as error:
        (where, what), *others = [_sentence(model, problem) for problem in error.errors()]
        raise InputError(where, "; ".join([what, *(f"{place}: {text}" for place, text in others)])) from None


def info_flag(info: Any) -> str:
    """RELION's flag of a parameter."""
    return str((info.json_schema_extra or {}).get("flag", ""))


def _value(annotation: Any, value: Any) -> Any:
    """Text as the parameter's type takes it: `none` for nothing, commas between the items of a list, a choice that is a number."""
    if not isinstance(value, str):
        return value
    kinds = kinds_of(annotation)
    if type(None) in kinds and value.strip().lower() in ("", "none"):
        return None
    if any(typing.get_origin(kind) in (list, tuple) for kind in kinds):
        return [part.strip() for part in value.split(",") if part.strip()]
    for kind in kinds:
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        for choice in choices:
            if not isinstance(choice, str) and value == str(choice):
                return choice
    return value


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _dashes(word: str) -> str:
    """`--mask_diameter=120` with RELION's underscores as the parser knows it."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _sentence(model: type[BaseModel], problem: Any) -> tuple[str, str]:
    """One pydantic error in words: the option, what was found and what was expected."""
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "missing":
        return option(name), f"is needed: {model.model_fields[name].description}"
    text = _EXPECTED.get(problem["type"]) or problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return (option(name), f"found {problem.get('input')!r}, expected {text}") if name else ("options", text)


_EXPECTED = {
    "float_parsing": "a number, with a point for decimals",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "yes or no",
}
