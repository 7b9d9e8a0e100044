"""`verglas bench`: simulate, run the recipe, score against the truth, tables and one report.

Every repeat is a project of its own beside the simulated data, run by `verglas run` in a process of its own; what is there
already is kept, so that a benchmark that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from verglas.bench.measurement import HEADINGS, as_plain, table
from verglas.errors import InputError
from verglas.records.record import FAIL, QUEUED, read_record
from verglas.records.table import RUNNING, current_verdict


def run_bench(
    recipe: str,
    *,
    tier: str,
    repeat: int,
    out: Path,
    settings: dict[str, str],
    as_json: bool = False,
    engine: str | None = None,
    ranks: int | None = None,
) -> int:
    """Run the benchmark; 0 when every run ended, every job passed and every measurement is in range, else 1.

    With `engine` "relion" the RELION on the PATH refines, on `ranks` MPI ranks; its projects lie beside ours, on the same data.
    Raises InputError, before any work, for a tier, a recipe or an engine that doesn't exist, and for settings that the recipe
    doesn't take.
    """
    from verglas.bench.variables import TIERS
    from verglas.workflow.recipe import load_recipe

    by = _engine_words(engine, ranks)

    if tier not in TIERS:
        raise InputError("--tier", f"{tier!r} is not a tier", f"Known: {', '.join(TIERS)}")
    load_recipe(recipe, settings)
    if Path(recipe).is_file():
        recipe = str(Path(recipe).resolve())
    out.mkdir(parents=True, exist_ok=True)
    simulation, say = out / "simulated", sys.stderr if as_json else sys.stdout
    code = _verglas(["simulate", "--tier", tier, "--out", simulation.name], out, say)
    if code:
        return code
    projects = [out / f"{'relion' if by else 'run'}{number}" for number in range(1, repeat + 1)]
    codes = [_run(recipe, tier, project, simulation, {"seed": str(n), **settings}, say, by) for n, project in enumerate(projects, start=1)]
    title = f"{recipe}, {tier} tier" + (", refined by RELION" if by else "")
    report = out / ("report_relion.html" if by else "report.html")
    return _tell(title, projects, simulation, codes, report, as_json)


def _engine_words(engine: str | None, ranks: int | None) -> list[str]:
    """What `verglas run` is told of the engine. Raises InputError for one that isn't known, or isn't here."""
    from verglas.relion.install import check_ranks, find_version
    from verglas.relion.programs import program_of
    from verglas.workflow.request import check_engine

    if check_engine(engine, ranks) == "verglas":
        return []
    program = program_of("Refine3D")
    find_version(program)
    check_ranks(program, ranks)
    return ["--engine", "relion", *([] if ranks is None else ["--ranks", str(ranks)])]


def _run(recipe: str, tier: str, project: Path, simulation: Path, settings: dict[str, str], say: TextIO, by: Sequence[str] = ()) -> int:
    """One repeat in its own project, which reaches the data through links. `by`: the engine, for `verglas run`."""
    from verglas.bench.variables import recipe_variables

    project.mkdir(exist_ok=True)
    if not (project / "default_pipeline.star").exists():
        _verglas(["new", "."], project, say)
    for name in ("movies", "gain.mrc"):
        if not (project / name).is_symlink():
            (project / name).symlink_to(os.path.relpath(simulation / name, project))
    values = recipe_variables(simulation, tier) | settings
    words = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    return _verglas(["run", recipe, *words, *by], project, say)


def _verglas(words: list[str], where: Path, say: TextIO) -> int:
    """Exit code of a command of ours, run in folder `where`."""
    say.flush()
    return subprocess.run([sys.executable, "-m", "verglas", *words], cwd=where, stdout=say).returncode


def _tell(title: str, projects: Sequence[Path], simulation: Path, codes: list[int], page: Path, as_json: bool) -> int:
    from verglas.bench.repeats import HEADINGS as SPREAD_HEADINGS
    from verglas.bench.repeats import spread_over_repeats
    from verglas.bench.report import write_bench_report
    from verglas.bench.scoring import score_run
    from verglas.records import render
    from verglas.records.table import collect

    folders = [step_folders(project) for project in projects]
    runs = [score_run(steps, simulation) if code == 0 else [] for steps, code in zip(folders, codes)]
    jobs = [collect(project) for project in projects]
    complete = [lines for lines in runs if lines]
    rows = table(complete)
    good = not any(codes) and all(line.passed for lines in runs for line in lines)
    report = write_bench_report(page, title, projects, folders, simulation, rows)
    if as_json:
        content = {"exit_codes": codes, "passed": good, "report": str(report), "measurements": [as_plain(lines) for lines in runs]}
        print(json.dumps(content | {"jobs": [render.as_plain(rows)["jobs"] for rows in jobs]}, indent=1))
        return 0 if good else 1
    tables = [render.as_text(rows) for rows in jobs]
    if len(jobs) > 1:
        tables.append(render.in_columns([SPREAD_HEADINGS, *spread_over_repeats(jobs)]))
    tables.append(render.in_columns([HEADINGS, *rows]))
    verdict = f"{'PASS' if good else 'FAIL'}: {len(complete)} of {len(projects)} runs scored; report: {report}"
    print("\n" + "\n\n".join([*tables, verdict]))
    return 0 if good else 1


def step_folders(project: Path) -> dict[str, Path]:
    """The newest job folder of each step of the recipe that did not fail."""
    found: dict[str, tuple[int, Path]] = {}
    for path in sorted(project.glob("*/job*/record.json")):
        record = read_record(path.parent)
        if record is not None and record.step and current_verdict(path.parent, record)[0] not in (FAIL, RUNNING, QUEUED):
            step, number = record.step.partition("/")[2], int(path.parent.name.removeprefix("job"))
            found[step] = max(found.get(step, (0, path.parent)), (number, path.parent))
    return {step: folder for step, (_, folder) in found.items()}
