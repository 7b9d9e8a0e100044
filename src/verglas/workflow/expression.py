"""Values in a recipe: text in which `{…}` holds variables, outputs and metrics of other steps, and arithmetic on them."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

from verglas.errors import InputError

_BRACES = re.compile(r"\{([^{}]+)\}")
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"round": round, "min": min, "max": max, "int": int, "even": lambda x: 2 * round(x / 2)}


def evaluate(value: Any, lookup: Callable[[str], Any], where: str) -> Any:
    """`value` with its braces filled; `lookup` gives the value of a `variable` or a `step.name`.

    A text that is one pair of braces keeps the type of what is in it; otherwise the parts become text. Lists are done item by item.
    Raises InputError, naming `where`, for what isn't understood.
    """
    if isinstance(value, list):
        return [evaluate(item, lookup, where) for item in value]
    if not isinstance(value, str):
        return value
    whole = _BRACES.fullmatch(value.strip())
    try:
        if whole:
            return _value(_parsed(whole[1], where), lookup)
        return _BRACES.sub(lambda found: str(_value(_parsed(found[1], where), lookup)), value)
    except (TypeError, ZeroDivisionError, ValueError) as error:
        raise InputError(where, f"{value!r} can't be worked out: {error}") from None


def references(value: Any, where: str) -> set[str]:
    """Names of variables (`name`) and of other steps' results (`step.name`) in a value, a list or a table of values."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {name for item in value for name in references(item, where)}
    if not isinstance(value, str):
        return set()
    return {name for text in _BRACES.findall(value) for name in _names(_parsed(text, where))}


def _parsed(text: str, where: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise InputError(where, f"{{{text}}} isn't understood", "Use {variable}, {step.output}, or {box_size / 4}") from None


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        yield f"{node.value.id}.{node.attr}"
    elif isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Call):
        for argument in node.args:
            yield from _names(argument)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _names(child)


def _value(node: ast.AST, lookup: Callable[[str], Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() | ast.Attribute(value=ast.Name()):
            return lookup(next(_names(node)))
        case ast.BinOp() if type(node.op) in _BINARY:
            return _tidy(_BINARY[type(node.op)](_value(node.left, lookup), _value(node.right, lookup)))
        case ast.UnaryOp(op=ast.USub()):
            return -_value(node.operand, lookup)
        case ast.UnaryOp(op=ast.Not()):
            return not _value(node.operand, lookup)
        case ast.BoolOp(op=ast.Or()):
            return next((v for part in node.values if (v := _value(part, lookup))), None)
        case ast.BoolOp(op=ast.And()):
            return all(_value(part, lookup) for part in node.values)
        case ast.Compare(ops=[comparison]) if type(comparison) in _COMPARE:
            return _COMPARE[type(comparison)](_value(node.left, lookup), _value(node.comparators[0], lookup))
        case ast.IfExp():
            return _value(node.body if _value(node.test, lookup) else node.orelse, lookup)
        case ast.Call(func=ast.Name(id=name)) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(argument, lookup) for argument in node.args))
    raise ValueError(f"{ast.unparse(node)} is not allowed")  # type: ignore[arg-type]


def _tidy(value: Any) -> Any:
    """512 / 4 is the whole number 128, as a box size must be."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
