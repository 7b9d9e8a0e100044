"""Recipes: what is done stays, a change redoes only what depends on it, and mistakes are named before any work."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from verglas.errors import InputError
from verglas.project.project import Project
from verglas.workflow.expression import evaluate, references
from verglas.workflow.recipe import load_recipe
from verglas.workflow.screen import Screen
from verglas.workflow.steps import run_recipe

TINY = """
name = "tiny"
description = "Two branches that are joined"
[variables]
first = "a.star"
seed = 1
parts = 2
more = false

[steps.all]
job = "JoinStar"
inputs.files = ["{left.particles}", "{right.split1}"]

[steps.left]
job = "JoinStar"
inputs.files = ["{first}", "b.star"]

[steps.right]
job = "Select"
inputs.particles = "b.star"
params = { action = "split", nr_split = "{parts}", random_seed = "{seed}" }

[steps.extra]
job = "JoinStar"
when = "{more and left.rows > 3}"
inputs.files = ["{left.particles}", "b.star"]
"""


@pytest.fixture
def recipe(work: Path) -> Path:
    Project.create(work)
    path = work / "tiny.toml"
    path.write_text(TINY)
    return path


def run(path: Path, plan: bool = False, **settings: str) -> dict[str, tuple[str, str]]:
    """What became of each step, and in which folder."""
    loaded = load_recipe(str(path), {key.replace("__", "."): value for key, value in settings.items()})
    return {result.step.name: (result.what, str(result.folder)) for result in run_recipe(loaded, Screen(None), plan=plan)}


def test_steps_run_in_the_order_of_their_references_and_only_once(recipe: Path) -> None:
    first = run(recipe)
    assert list(first) == ["left", "right", "all", "extra"]
    assert first == {
        "left": ("done", "JoinStar/job001"),
        "right": ("done", "Select/job002"),
        "all": ("done", "JoinStar/job003"),
        "extra": ("skipped", "None"),
    }
    again = run(recipe)
    assert {name: what for name, (what, _) in again.items()} == {"left": "kept", "right": "kept", "all": "kept", "extra": "skipped"}
    assert {name: folder for name, (_, folder) in again.items()} == {name: folder for name, (_, folder) in first.items()}
    assert Path("JoinStar/all").resolve() == Path("JoinStar/job003").resolve()


def test_a_part_of_a_recipe(recipe: Path) -> None:
    loaded = load_recipe(str(recipe))
    assert [step.name for step in loaded.until("right").steps] == ["left", "right"]
    with pytest.raises(InputError, match=r"--until: 'rihgt' is no step of .*tiny\.toml"):
        loaded.until("rihgt")


def test_a_changed_parameter_redoes_only_its_descendants(recipe: Path) -> None:
    run(recipe)
    assert run(recipe, plan=True, seed="2") == {
        "left": ("kept", "JoinStar/job001"),
        "right": ("planned", "None"),
        "all": ("planned", "None"),
        "extra": ("skipped", "None"),
    }
    changed = run(recipe, right__random_seed="2")
    assert changed["left"] == ("kept", "JoinStar/job001")
    assert changed["right"] == ("done", "Select/job004")
    # The new split holds the same rows, so nothing changed for the join.
    assert changed["all"] == ("kept", "JoinStar/job003")
    assert run(recipe)["right"] == ("kept", "Select/job002"), "the first result is still known"


def test_changed_content_of_an_input_redoes_its_descendants(recipe: Path, work: Path) -> None:
    run(recipe)
    (work / "a.star").write_text((work / "a.star").read_text().replace("2.7 0.1", "2.7 0.07"))
    changed = run(recipe)
    assert [what for what, _ in changed.values()] == ["done", "kept", "done", "skipped"]
    os.utime(work / "a.star")
    assert [what for what, _ in run(recipe).values()] == ["kept", "kept", "kept", "skipped"], "a touched file has not changed"


def test_a_tampered_output_is_made_again(recipe: Path, work: Path) -> None:
    run(recipe)
    shutil.copy(work / "a.star", work / "JoinStar/job001/join_particles.star")
    again = run(recipe)
    assert again["left"] == ("done", "JoinStar/job004")


def test_a_killed_run_goes_on_in_the_same_folder(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verglas.jobs import joinstar
    from workflow.faults import FAULTS

    sound = joinstar.JOB
    monkeypatch.setattr(joinstar, "JOB", FAULTS["die_write"](sound))
    assert run(recipe) == {"left": ("failed", "JoinStar/job001")}
    monkeypatch.setattr(joinstar, "JOB", sound)
    again = run(recipe)
    assert again["left"] == ("done", "JoinStar/job001")
    assert again["all"] == ("done", "JoinStar/job003")


def test_when_and_metrics(recipe: Path) -> None:
    assert run(recipe, more="yes")["extra"] == ("done", "JoinStar/job004")


def test_a_recipe_on_a_base_replaces_what_it_names(recipe: Path, work: Path) -> None:
    first = run(recipe)
    other = work / "folder" / "other.toml"
    other.parent.mkdir()
    other.write_text('base = "../tiny.toml"\n[variables]\nseed = 7\nhalves = 2\n[steps.right]\nparams.nr_split = "{halves}"\n')
    loaded = load_recipe(str(other))
    assert (loaded.name, loaded.description) == ("other", "Two branches that are joined")
    assert loaded.variables == {"first": "a.star", "seed": 7, "parts": 2, "more": False, "halves": 2}
    right = next(step for step in loaded.steps if step.name == "right")
    assert right.params == {"action": "split", "nr_split": "{halves}", "random_seed": "{seed}"}
    assert right.inputs == {"particles": "b.star"}
    changed = {name: what for name, (what, _) in run(other).items()}
    assert first["left"][0] == "done" and changed["left"] == "kept" and changed["right"] == "done"


@pytest.mark.parametrize(
    "text, words",
    [
        ('base = "tinny"', "tinny: is neither a file nor a recipe"),
        ('base = "other.toml"', "which is built on it"),
        ('base = "back.toml"', "which is built on it"),
        ('base = "tiny.toml"\n[variables]\nsede = 2', "'sede' is no variable of .*tiny.toml or of a step here. Did you mean seed"),
        ('base = "tiny.toml"\n[steps.rihgt]\nparams.nr_split = 3', "step rihgt: names no job"),
    ],
)
def test_mistakes_in_a_recipe_on_a_base(recipe: Path, work: Path, text: str, words: str) -> None:
    (work / "back.toml").write_text('base = "other.toml"')
    (work / "other.toml").write_text(text)
    with pytest.raises(InputError, match=words):
        load_recipe("other.toml")


def test_the_shipped_recipe_begins_with_micrographs_where_they_are_given() -> None:
    def does(**settings: str) -> dict[str, bool]:
        recipe = load_recipe("aldolase", settings)
        return {step.name: bool(evaluate(step.when, recipe.variables.__getitem__, "")) for step in recipe.steps[:3]}

    assert does() == {"import_movies": True, "motion": True, "import_micrographs": False}
    assert does(micrographs="*.mrc") == {"import_movies": False, "motion": False, "import_micrographs": True}


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('job = "Select"', 'job = "Selekt"', ("step right", "Selekt: not a job type")),
        ("nr_split", "nr_spilt", ("step right", "'nr_spilt' is no parameter of Select", "Did you mean nr_split?")),
        ("inputs.particles", "inputs.particle", ("step right", "'particle' is no input of Select")),
        ("{seed}", "{sed}", ("step right, params.random_seed", "'sed' is no variable", "Did you mean seed?")),
        ("{left.particles}", "{lift.particles}", ("step all, inputs.files", "'lift' is no step", "Did you mean left?")),
        ('"{first}"', '"{all.particles}"', ("refer to each other in a circle", "all")),
        ("{parts}", "{parts +}", ("step right, params.nr_split", "{parts +} isn't understood")),
        ("[variables]", "[variable]", ("'variable' is no entry",)),
        ("seed = 1", "seed = ", ("is not a TOML file",)),
    ],
)
def test_mistakes_are_named_before_any_work(recipe: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    recipe.write_text(TINY.replace(old, new))
    with pytest.raises(InputError) as error:
        run(recipe)
    assert all(word in str(error.value) for word in words), error.value
    assert not Path("JoinStar").exists() and not Path("Select").exists()


@pytest.mark.parametrize(
    "key, value, words", [("sed", "1", "is no variable"), ("seed", "x", "expected something like 1"), ("left__kin", "x", "is no param")]
)
def test_bad_settings(recipe: Path, key: str, value: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(recipe, **{key: value})


def test_bad_value_names_file_and_step(recipe: Path) -> None:
    with pytest.raises(InputError, match=r"tiny\.toml: step right, params\.nr_split: found 1"):
        run(recipe, parts="1")


def test_missing_output_of_a_step_is_named(recipe: Path) -> None:
    recipe.write_text(TINY.replace("{left.particles}", "{left.movies}"))
    with pytest.raises(InputError, match=r"step left has no output or metric 'movies'\. It has: rows, "):
        run(recipe)


@pytest.mark.parametrize(
    "text, value",
    [
        ("{box / 4}", 128),
        ("{box * pixel}", 286.72),
        ("{even(box / 3)}", 170),
        ("{-box}", -512),
        ("{min(box, 100) + 1}", 101),
        ("{box // 5 % 7}", 4),
        ("a_{box}_{pixel}.mrc", "a_512_0.56.mrc"),
        ("{step.output or other}", "other"),
        ("{'x' if box > 100 else step.output}", "x"),
        ("{not box == 512}", False),
        (["{box}", "plain"], [512, "plain"]),
        (7, 7),
    ],
)
def test_expressions(text: Any, value: Any) -> None:
    known = {"box": 512, "pixel": 0.56, "step.output": None, "other": "other"}
    found = evaluate(text, known.__getitem__, "here")
    assert found == (pytest.approx(value) if isinstance(value, float) else value)
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["{__import__('os')}", "{box.__class__.__name__}", "{[1][0]}", "{box ** 9}", "{open('x')}", "{lambda: 1}"])
def test_expressions_do_nothing_else(text: str) -> None:
    with pytest.raises((InputError, KeyError)):
        evaluate(text, {"box": 1}.__getitem__, "here")


def test_references() -> None:
    assert references("{a / 4} and {step.x or min(b, step.y)}", "here") == {"a", "b", "step.x", "step.y"}
