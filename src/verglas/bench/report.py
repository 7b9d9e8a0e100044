"""The benchmark's report: scores against truth, the truth's pictures, and the job table of every repeat, in one HTML file."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Sequence
from pathlib import Path

from verglas.bench import repeats
from verglas.bench.measurement import HEADINGS
from verglas.records.report import Section, page, picture, project_sections
from verglas.records.table import collect


def write_bench_report(
    path: Path, title: str, projects: Sequence[Path], folders: Sequence[dict[str, Path]], simulation: Path, rows: Sequence[tuple[str, ...]]
) -> Path:
    """Write the page; a repeat whose final refinement is missing has no truth picture. Returns `path`."""
    from verglas.io.atomic import write_text

    sections = [scores_section(rows)]
    if len(projects) > 1:
        sections.append(_table("Jobs over the repeats", repeats.HEADINGS, repeats.spread_over_repeats([collect(p) for p in projects])))
    for project, steps in zip(projects, folders):
        if "refine_2x" in steps:
            sections.append(Section(f"{project.name}: final map and the true map", _truth_pictures(steps["refine_2x"], simulation)))
        if "pick_template" in steps:
            sections.append(Section(f"{project.name}: picks and the true particles", _pick_picture(steps, simulation)))
        sections += project_sections(project, prefix=f"{project.name}: " if len(projects) > 1 else "")
    write_text(path, page(title, sections))
    return path


def scores_section(rows: Sequence[tuple[str, ...]]) -> Section:
    """The table of measurements."""
    return _table("Measured against the truth", HEADINGS, rows)


def _table(title: str, headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Section:
    """A table of texts; the last column is coloured where it is a verdict."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row[:-1]) + f'<td class="{row[-1]}">{html.escape(row[-1])}</td></tr>'
        for row in rows
    )
    return Section(title, f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _truth_pictures(job: Path, simulation: Path) -> str:
    """FSC of the half maps beside that against the truth, under the same sphere; the map beside the true one, as fine as it is."""
    import torch

    from verglas.bench.scoring import Truth, map_scores
    from verglas.io.mrc import read_map
    from verglas.pictures.curves import draw_fsc
    from verglas.pictures.maps import draw_maps_in_a_row
    from verglas.volume.filters import lowpass
    from verglas.volume.resample import rescale_map

    truth = Truth(simulation)
    against, halves = map_scores(job, truth)
    found, pixel = read_map(job / "run_class001.mrc")
    true, true_pixel = read_map(truth.folder / "map.mrc")
    laid = against.alignment.apply(rescale_map(torch.from_numpy(true), true_pixel, pixel, len(found)))
    curves = {"half maps": halves.numpy(), "against the true map": against.fsc.numpy()}
    mirrored = "the mirror image" if against.mirrored else "not the mirror image"
    with tempfile.TemporaryDirectory() as folder:
        curve, row = Path(folder) / "fsc.png", Path(folder) / "maps.png"
        draw_fsc(curve, curves, len(found), pixel)
        smooth = lowpass(laid, pixel, against.resolution).numpy()
        draw_maps_in_a_row(row, [found, smooth], ["refined", f"true, to {against.resolution:.1f} Å"], f"{mirrored} of the truth")
        return picture(row, "central slices and surfaces") + picture(curve, f"FSC in a soft sphere of {truth.radius:.0f} Å")


def _pick_picture(steps: dict[str, Path], simulation: Path) -> str:
    """The first micrograph with its picks and the true particles."""
    import numpy as np

    from verglas.bench.scoring import PICK_DISTANCE, Truth
    from verglas.io.coordinates import read_coordinates
    from verglas.io.mrc import read_image
    from verglas.pictures.picks import draw_picks
    from verglas.scores.picks import match_picks

    truth = Truth(simulation)
    stem = truth.stems[0]
    file, image = next(steps["pick_template"].rglob(f"{stem}_autopick.star")), next(steps["motion"].rglob(f"{stem}.mrc"))
    picks = read_coordinates(file)[["coordinate_x", "coordinate_y"]].to_numpy(np.float64)
    true = truth.positions[truth.stems == stem] / truth.pixel_size
    score = match_picks(picks * truth.pixel_size, true * truth.pixel_size, PICK_DISTANCE, truth.field, truth.diameter)
    with tempfile.TemporaryDirectory() as folder:
        drawing = Path(folder) / "picks.png"
        draw_picks(drawing, read_image(image), truth.pixel_size, picks, truth.diameter, truth=true, title=f"{stem}: F1 {score.f1:.3f}")
        return picture(drawing, "picks (and true particles)")
