"""A recipe: a TOML file of steps with variables, and references between steps.

    name = "tiny"
    description = "Join two data sets, keep the first class"
    [variables]
    first = "a.star"
    wanted = 3

    [steps.join]
    job = "JoinStar"
    inputs.files = ["{first}", "b.star"]

    [steps.keep]
    job = "Select"
    when = "{wanted > 0}"
    inputs.particles = "{join.particles}"
    params.classes = "{wanted}"

`{step.output}` is a file that another step declares, `{step.metric}` a number measured from its files. A step whose `when` is false isn't
done, and stands for nothing in `{a.x or b.x}`. A step with `engine = "verglas"` is done by ours also where RELION does the others, and
`relion_args` are options that RELION gets beside the parameters. `base = "aldolase"` takes another recipe's variables and steps, of
which what is given here replaces the like: a recipe for other data is often no more than its variables. Everything is checked before
any work.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from verglas.errors import InputError
from verglas.workflow.expression import references

_OF_ENGINE = {"engine", "relion_args"}
_STEP_KEYS = {"job", "inputs", "params", "alias", "when", "description", *_OF_ENGINE}
_RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Step:
    """One step; its values may hold references. `engine` is None where the step leaves it to the run."""

    name: str
    job: str
    inputs: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    alias: str | None = None
    when: Any = True
    engine: str | None = None
    relion_args: str = ""

    def values(self) -> list[tuple[str, Any]]:
        """Every value with its place in the step."""
        groups = {"inputs": self.inputs, "params": self.params}
        return [(f"{group}.{name}", value) for group, table in groups.items() for name, value in table.items()] + [("when", self.when)]


@dataclass(frozen=True)
class Recipe:
    """Variables, and steps in an order in which each comes after those it refers to."""

    name: str
    path: Path
    description: str
    variables: dict[str, Any]
    steps: tuple[Step, ...]

    def needs(self, step: Step) -> set[str]:
        """Names of the steps that `step` refers to."""
        where = f"{self.path}: step {step.name}"
        return {name.split(".")[0] for place, value in step.values() for name in references(value, f"{where}, {place}") if "." in name}

    def until(self, last: str) -> Recipe:
        """The recipe up to the step `last`. Raises InputError for a step that it doesn't have."""
        names = [step.name for step in self.steps]
        _known({last}, set(names), "--until", f"step of {self.path}")
        return replace(self, steps=self.steps[: names.index(last) + 1])


def load_recipe(name: str, settings: dict[str, str] | None = None) -> Recipe:
    """The recipe `name`, a file or one that ships with the package, with `settings` put in: variables, or `step.parameter`.

    Raises InputError for anything that is not known: job type, parameter, input, variable, step, output or metric, and for a circle.
    """
    path = _find(name, Path())
    content = _content(path, ())
    steps = {key: _step(path, key, table) for key, table in content.get("steps", {}).items()}
    if not steps:
        raise InputError(path, "has no steps", "Each is a table [steps.NAME]")
    variables = dict(content.get("variables", {}))
    for key, text in (settings or {}).items():
        _set(path, variables, steps, key, text)
    recipe = Recipe(content.get("name", path.stem), path, content.get("description", ""), variables, tuple(steps.values()))
    _check_references(recipe)
    return replace(recipe, steps=_ordered(recipe))


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in _RECIPES.glob("*.toml"))


def _content(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A recipe's file over that of its base. `above`: the recipes that it is the base of."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(path, f"is not a TOML file: {error}") from None
    _known(set(content), {"name", "base", "description", "variables", "steps"}, str(path), "entry")
    if "base" not in content:
        return content
    base = _find(str(content.pop("base")), path.parent)
    if base.resolve() in [known.resolve() for known in (path, *above)]:
        raise InputError(path, f"has {base} as its base, which is built on it")
    below = _content(base, (path, *above))
    known = set(below.get("variables", {})) | references(content.get("steps", {}), str(path))
    _known(set(content.get("variables", {})), known, f"{path}: variables", f"variable of {base} or of a step here")
    return _laid_over(below, {"name": path.stem, **content})


def _laid_over(base: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `content` in place of its own, table by table."""
    both = {
        key: _laid_over(base[key], value) for key, value in content.items() if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | content | both


def _find(name: str, beside: Path) -> Path:
    """A file, seen from the folder `beside`, or a recipe that ships with the package."""
    for path in (beside / name, _RECIPES / f"{name}.toml"):
        if path.is_file():
            return path
    raise InputError(name, "is neither a file nor a recipe that ships with the package", f"Shipped: {', '.join(shipped()) or 'none'}")


def _step(path: Path, name: str, table: Any) -> Step:
    from verglas.jobs.registry import job_type

    where = f"{path}: step {name}"
    if not name.isidentifier() or not isinstance(table, dict):
        raise InputError(where, "is not a step", "A table [steps.NAME], NAME of letters, digits and _")
    _known(set(table), _STEP_KEYS, where, "entry")
    if "job" not in table:
        raise InputError(where, "names no job", 'Add job = "TYPE"')
    try:
        declared = job_type(table["job"])
    except InputError as error:
        raise InputError(where, str(error)) from None
    inputs, params = table.get("inputs", {}), table.get("params", {})
    _known(set(inputs), {spec.name for spec in declared.inputs}, where, f"input of {declared.name}")
    _known(set(params), set(declared.params.model_fields), where, f"parameter of {declared.name}")
    by = {key: _engine_entry(where, key, table[key]) for key in sorted(_OF_ENGINE & set(table))}
    alias, when = table.get("alias", name), table.get("when", True)
    return Step(name, table["job"], inputs, params, alias, when, by.get("engine"), by.get("relion_args", ""))


def _engine_entry(where: str, key: str, value: Any) -> str:
    if key == "engine":
        _known({str(value)}, {"verglas", "relion"}, where, "engine")
    if not isinstance(value, str):
        raise InputError(where, f"{key}: found {value!r}, expected a text")
    return value


def _set(path: Path, variables: dict[str, Any], steps: dict[str, Step], key: str, text: str) -> None:
    """Put in one setting; a variable keeps the type of its default."""
    step, dot, param = key.partition(".")
    if not dot:
        _known({key}, set(variables), f"--set {key}", "variable of the recipe")
        variables[key] = _like(variables[key], text, key)
        return
    _known({step}, set(steps), f"--set {key}", "step of the recipe")
    if param in _OF_ENGINE:
        value = _engine_entry(f"--set {key}", param, text)
        steps[step] = replace(steps[step], engine=value) if param == "engine" else replace(steps[step], relion_args=value)
        return
    from verglas.jobs.registry import job_type

    declared = job_type(steps[step].job)
    if param in {spec.name for spec in declared.inputs}:
        steps[step] = replace(steps[step], inputs={**steps[step].inputs, param: text})
        return
    _known({param}, set(declared.params.model_fields), f"--set {key}", f"parameter of {declared.name}")
    steps[step] = replace(steps[step], params={**steps[step].params, param: text})


def _like(default: Any, text: str, key: str) -> Any:
    try:
        if isinstance(default, bool):
            return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]
        if isinstance(default, int):
            return int(text) if text.lstrip("+-").isdigit() else float(text)
        if isinstance(default, float):
            return float(text)
    except (ValueError, KeyError):
        raise InputError(f"--set {key}", f"found {text!r}, expected something like {default}") from None
    return text.split(",") if isinstance(default, list) else text


def _check_references(recipe: Recipe) -> None:
    """Raise InputError for a reference to what the recipe doesn't have. Metrics are known only when a step has run."""
    names = {step.name: step for step in recipe.steps}
    for step in recipe.steps:
        for place, value in step.values():
            where = f"{recipe.path}: step {step.name}, {place}"
            for name in references(value, where):
                first, dot, _ = name.partition(".")
                if dot:
                    _known({first}, set(names), where, "step")
                else:
                    _known({first}, set(recipe.variables), where, "variable")


def _ordered(recipe: Recipe) -> tuple[Step, ...]:
    """Steps in the order of the file, moved only where a reference asks for it. Raises InputError for a circle."""
    left, done = list(recipe.steps), list[Step]()
    while left:
        names = {step.name for step in done}
        ready = next((step for step in left if recipe.needs(step) <= names), None)
        if ready is None:
            circle = ", ".join(step.name for step in left)
            raise InputError(recipe.path, f"steps refer to each other in a circle: {circle}")
        left.remove(ready)
        done.append(ready)
    return tuple(done)


def _known(found: set[str], known: set[str], where: str, what: str) -> None:
    for name in sorted(found - known):
        close = difflib.get_close_matches(name, known, 1)
        raise InputError(where, f"{name!r} is no {what}", f"Did you mean {close[0]}?" if close else f"Known: {', '.join(sorted(known))}")
