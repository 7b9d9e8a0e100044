"""report.html: the job table, a timeline and every job's pictures in one file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from verglas.records.record import FAIL
from verglas.records.render import html_table
from verglas.records.table import NO_RECORD, Row, collect
from verglas.records.units import duration


@dataclass
class Section:
    """A part of the page: a heading and HTML."""

    title: str
    body: str


def write_report(root: Path, path: Path, title: str = "", extra: Sequence[Section] = ()) -> None:
    """Write the page for the jobs under `root`; `extra` sections, such as scores against truth, come after the table."""
    from verglas.io.atomic import write_text

    table, *rest = project_sections(root)
    write_text(path, page(title or root.resolve().name, [table, *extra, *rest]))


def project_sections(root: Path, prefix: str = "") -> list[Section]:
    """The job table, the timeline, and every job's pictures; `prefix` stands before each heading."""
    rows = collect(root)
    drawn = [section for row in rows if (section := _pictures(root, row))]
    sections = [Section("Jobs", html_table(rows)), Section("Timeline", timeline(rows)), *drawn]
    return [Section(prefix + section.title, section.body) for section in sections]


def page(title: str, sections: Sequence[Section]) -> str:
    """A whole HTML page of `sections`."""
    body = "\n".join(f"<section><h2>{html.escape(s.title)}</h2>\n{s.body}\n</section>" for s in sections)
    name = html.escape(title)
    head = f'<head><meta charset="utf-8"><title>{name}</title>\n<style>{_STYLE}</style></head>'
    return f'<!doctype html>\n<html lang="en">{head}\n<body><h1>{name}</h1>\n{body}\n</body></html>\n'


def picture(path: Path, caption: str = "") -> str:
    """A PNG or SVG file as an element with the file inside."""
    kind = "svg+xml" if path.suffix == ".svg" else "png"
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(caption or path.stem)}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def timeline(rows: Sequence[Row]) -> str:
    """When each job ran, as an SVG drawing; times when nothing ran are kept. A job that went on later shows its last run."""
    ran = [(row, row.runtime_s) for row in rows if row.started and row.runtime_s is not None]
    jobs = [(row, datetime.fromisoformat(row.started).timestamp(), seconds) for row, seconds in ran]
    if not jobs:
        return "<p>Nothing ran.</p>"
    first = min(start for _, start, _ in jobs)
    span = max(max(start + seconds for _, start, seconds in jobs) - first, 1e-3)
    width, left, height = 1000, 210, 22
    bars = []
    for i, (row, start, seconds) in enumerate(sorted(jobs, key=lambda job: job[1])):
        x, wide = left + (start - first) / span * width, max(seconds / span * width, 1.0)
        y, name = i * height, html.escape(f"{row.job} {row.type}")
        bars.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{name}</text>')
        kind = row.verdict.replace(" ", "-")
        bars.append(f'<rect class="{kind}" x="{x:.1f}" y="{y + 3}" width="{wide:.1f}" height="{height - 6}"/>')
        bars.append(f'<text x="{x + wide + 5:.1f}" y="{y + 15}">{duration(seconds)}</text>')
    box = f"0 0 {left + width + 90} {len(jobs) * height}"
    return f'<svg class="timeline" viewBox="{box}" role="img" aria-label="Timeline of the jobs">{"".join(bars)}</svg>'


def _pictures(root: Path, row: Row) -> Section | None:
    """The pictures that a job left. Those of a failed job aren't shown: they could be taken for a result."""
    if not row.folder or row.verdict in (FAIL, NO_RECORD):
        return None
    files = sorted((root / row.folder).glob("*.png"))
    if not files:
        return None
    figures = "".join(picture(file, file.stem.removeprefix("picture_").replace("_", " ")) for file in files)
    return Section(f"{row.job} {row.description}", f"<p>{html.escape(row.notes)}</p>{figures}")


_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: .5em 0; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25em .7em; border-bottom: 1px solid #8884; vertical-align: top }
caption { text-align: left; font-weight: 600 }
td.PASS { color: #178a3a; font-weight: 600 } td.FAIL { color: #d0262d; font-weight: 600 } td.UNCHECKED { color: #b07700; font-weight: 600 }
.totals { display: flex; gap: 3em; flex-wrap: wrap }
figure { margin: 1em 0 } img { max-width: 100% } figcaption { color: #888 }
svg.timeline { width: 100% } svg.timeline text { font-size: 13px; fill: currentColor }
svg.timeline rect { fill: #8888 } svg.timeline rect.PASS { fill: #3a9a5a }
svg.timeline rect.FAIL { fill: #d0262d } svg.timeline rect.UNCHECKED { fill: #d49a1a }
"""
