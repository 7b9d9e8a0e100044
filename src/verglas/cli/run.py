"""`verglas run`: a recipe from the command line."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from verglas.cli.submission import take_extras
from verglas.errors import InputError

if TYPE_CHECKING:
    from verglas.workflow.cluster import Cluster
    from verglas.workflow.steps import Engine


def take_words(words: list[str]) -> tuple[str, dict[str, str]]:
    """The recipe, and the values of --extra1, --extra2, … among the words that no other option took."""
    extras, rest = take_extras(words)
    names = [word for word in rest if not word.startswith("-")]
    odd = [word for word in rest if word.startswith("-")] + names[1:]
    if odd or not names:
        raise InputError(odd[0] if odd else "verglas run", "is not understood" if odd else "names no recipe", "See: verglas run --help")
    return names[0], extras


def run_command(
    name: str,
    settings: list[str],
    *,
    plan: bool,
    as_json: bool,
    until: str | None = None,
    cluster: Cluster | None = None,
    threads: int | None = None,
    engine: Engine | None = None,
) -> int:
    """Run or plan a recipe, or a part of it; the exit code of the step that failed, else 0."""
    from verglas.records.table import ending
    from verglas.workflow.ranks import refuse_many
    from verglas.workflow.recipe import load_recipe
    from verglas.workflow.screen import Screen
    from verglas.workflow.steps import Engine, run_recipe

    refuse_many("verglas run")
    recipe = load_recipe(name, settings_of(settings))
    recipe = recipe.until(until) if until else recipe
    screen = Screen(sys.stderr if as_json else sys.stdout)
    told: list[dict[str, Any]] = []
    code = 0
    for result in run_recipe(recipe, screen, plan=plan, cluster=cluster, threads=threads, engine=engine or Engine()):
        code = result.exit_code if result.what == "failed" else code
        verdict = result.record.verdict if result.record else None
        folder = str(result.folder or "")
        facts = {"folder": folder, "verdict": verdict, "engine": result.record.engine if result.record else None}
        told.append({"step": result.step.name, "job": result.step.job, "what": result.what, **facts})
        if result.what in ("done", "failed") and result.record and result.folder:
            screen.say(ending(result.record, result.folder))
        else:
            screen.say(f"── {result.step.name}: {result.what}" + (f", {result.folder}" if result.folder else ""))
    if as_json:
        print(json.dumps({"recipe": recipe.name, "steps": told, "exit_code": code}, indent=1))
    return code


def to_engine_of_run(name: str | None, ranks: int | None) -> Engine:
    """Who does the steps. Raises InputError for an engine that nobody knows."""
    from verglas.workflow.request import check_engine
    from verglas.workflow.steps import Engine

    return Engine(check_engine(name, ranks), ranks)


def settings_of(words: list[str]) -> dict[str, str]:
    """`name=value` words as a table."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"--set {word}", "has no =", "Write --set name=value")
        found[name.strip()] = value
    return found
