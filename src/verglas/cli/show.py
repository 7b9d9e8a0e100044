"""`verglas stats`, `report` and `check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verglas.errors import InputError

if TYPE_CHECKING:
    from verglas.bench.measurement import Measurement
    from verglas.records.table import Row


def stats_command(root: Path, *, as_json: bool, as_csv: bool, html: Path | None, truth: Path | None = None) -> int:
    """Print or write the job table, and with the simulation's folder `truth` what was measured against it; 1 when any of it failed."""
    from verglas.records import render
    from verglas.records.record import FAIL
    from verglas.records.table import collect

    _need_folder(root)
    if as_csv and truth is not None:
        raise InputError("--csv", "holds the job table alone", "Use --json or --html with --truth")
    rows = collect(root)
    measured = None if truth is None else _measured(root, truth)
    if html is not None:
        _write_page(html, root, rows, measured)
    elif as_json:
        print(_json(rows, measured))
    else:
        print((render.as_csv if as_csv else render.as_text)(rows).rstrip("\n"))
        if measured is not None:
            from verglas.bench.measurement import HEADINGS, table

            print("\n" + render.in_columns([HEADINGS, *table([measured])]))
    return int(any(row.verdict == FAIL for row in rows) or not all(line.passed for line in measured or []))


def _measured(root: Path, truth: Path) -> list[Measurement]:
    """The results of the project's jobs, but not of those that failed, against the truth of the simulation in `truth`."""
    from verglas.bench.api import step_folders
    from verglas.bench.scoring import score_run

    if not (truth / "simulation.json").is_file():
        raise InputError("--truth", f"{truth} holds no simulation.json", "Name the folder that verglas simulate wrote")
    return score_run(step_folders(root), truth)


def _json(rows: list[Row], measured: list[Measurement] | None) -> str:
    from verglas.records.render import as_plain

    content = as_plain(rows)
    if measured is not None:
        from verglas.bench import measurement

        content["measurements"] = measurement.as_plain(measured)
    return json.dumps(content, indent=1)


def _write_page(path: Path, root: Path, rows: list[Row], measured: list[Measurement] | None) -> None:
    from verglas.io.atomic import write_text
    from verglas.records.render import html_table
    from verglas.records.report import Section, page

    sections = [Section("Jobs", html_table(rows))]
    if measured is not None:
        from verglas.bench.measurement import table
        from verglas.bench.report import scores_section

        sections.append(scores_section(table([measured])))
    write_text(path, page(root.resolve().name, sections))
    print(path)


def report_command(root: Path, out: Path | None) -> int:
    """Write the report page."""
    from verglas.records.report import write_report

    _need_folder(root)
    path = out or root / "report.html"
    write_report(root, path)
    print(path)
    return 0


def check_command(file: Path, *, as_json: bool) -> int:
    """Print what the file holds."""
    from verglas.io.inspect import explain

    found: Any = explain(file)
    if as_json:
        content = {"file": str(file), "kind": found.kind, "facts": found.facts, "oddities": found.oddities, "use": found.use}
        print(json.dumps(content, indent=1, default=str))
        return 0
    print(f"{file}: {found.kind}")
    for name, value in found.facts.items():
        print(f"  {name}: {value}")
    for oddity in found.oddities:
        print(f"  odd: {oddity}")
    if found.use:
        print(f"  use: {found.use}")
    return 0


def _need_folder(root: Path) -> None:
    if not root.is_dir():
        raise InputError(root, "is not a folder", "Name a project, or a folder with job folders in it")
