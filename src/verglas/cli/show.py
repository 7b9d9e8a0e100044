"""`verglas stats`, `report` and `check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verglas.errors import InputError


def stats_command(root: Path, *, as_json: bool, as_csv: bool, html: Path | None) -> int:
    """Print or write the job table; 1 when a job failed."""
    from verglas.records import render, report
    from verglas.records.record import FAIL
    from verglas.records.table import collect

    _need_folder(root)
    rows = collect(root)
    if html is not None:
        from verglas.io.atomic import write_text

        write_text(html, report.page(root.resolve().name, [report.Section("Jobs", render.html_table(rows))]))
        print(html)
    else:
        print((render.as_json if as_json else render.as_csv if as_csv else render.as_text)(rows).rstrip("\n"))
    return int(any(row.verdict == FAIL for row in rows))


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
