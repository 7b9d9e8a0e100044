"""The shipped recipe on four real micrographs of apoferritin (EMPIAR-10146): picks against the experts', map against what is known.

python benchmarks/apoferritin.py MICROGRAPHS --out apoferritin

MICROGRAPHS is a folder with the micrographs and `picks_expert.star`. The recipe runs twice in one project: with symmetry O, and
with C1 from the first map to the last refinement. What is known: apoferritin is a hollow octahedral shell, about 120 Å across.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from verglas.bench.measurement import HEADINGS, Measurement, table
from verglas.io.coordinates import read_coordinates
from verglas.io.mrc import read_map
from verglas.io.picture import read_micrograph
from verglas.io.star import read_star
from verglas.pictures.maps import draw_maps_in_a_row, draw_slices, draw_surface
from verglas.pictures.picks import draw_picks
from verglas.records.render import in_columns
from verglas.scores.picks import PickScore, match_picks, total_score
from verglas.scores.shell import shell_score
from verglas.volume.axes import find_axes
from verglas.volume.filters import lowpass
from verglas.volume.fsc import fsc, resolution_shell, shell_to_resolution
from verglas.volume.masks import soft_sphere
from verglas.volume.symmetry import symmetry_misfit

PIXEL, DIAMETER = 1.5, 120.0  # Å, of the micrographs and of the particle
PICK_DISTANCE = 30.0  # Å
RADIUS, EDGE = 70.0, 10.0  # Å, of the soft sphere that half maps are compared in
C1_RESOLUTION = 20.0  # Å, to which the C1 map is compared with its turned copies
PICK_STEPS = ("pick_log", "pick_template")

Experts = dict[str, np.ndarray]
Folders = dict[str, Path]


def main() -> int:
    """Run both, print the table, leave the pictures; 0 when everything is in range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("micrographs", type=Path, help="folder of the PNG files and picks_expert.star")
    parser.add_argument("--out", type=Path, default=Path("apoferritin"), help="the project's folder")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if not (given.out / "default_pipeline.star").exists():
        subprocess.run([sys.executable, "-m", "verglas", "new", "."], cwd=given.out, check=True)
    link = given.out / "micrographs"
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(given.micrographs, given.out))
    octahedral, asymmetric = run_recipe(given.out), run_recipe(given.out, "--set", "symmetry=C1", "--until", "refine_2x")
    experts = expert_picks(given.micrographs / "picks_expert.star")
    lines = [line for step in PICK_STEPS for line in score_picks(octahedral[step], experts, step)]
    lines += score_map(octahedral["refine_2x"]) + score_c1(asymmetric["refine_2x"])
    draw(given.out, octahedral, asymmetric, experts)
    print(in_columns([HEADINGS, *table([lines])]))
    return 0 if all(line.passed for line in lines) else 1


def run_recipe(project: Path, *words: str) -> Folders:
    """Folder of each step of the recipe, run in `project` with further words on the command line."""
    command = [sys.executable, "-m", "verglas", "run", "apoferritin", "--json", *words]
    done = subprocess.run(command, cwd=project, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"verglas run apoferritin {' '.join(words)} ended with exit code {done.returncode}")
    return {step["step"]: project / step["folder"] for step in json.loads(done.stdout)["steps"] if step["folder"]}


def expert_picks(path: Path) -> Experts:
    """Marks [n, 2] (px) by the micrograph's stem."""
    marks = next(iter(read_star(path).values()))
    stems = np.array([Path(name).stem for name in marks["rlnMicrographName"]])
    xy = np.stack([np.asarray(marks[label], float) for label in ("rlnCoordinateX", "rlnCoordinateY")], axis=1)
    return {stem: xy[stems == stem] for stem in np.unique(stems)}


def match(job: Path, experts: Experts, stem: str) -> tuple[np.ndarray, PickScore]:
    """Picks [n, 2] (px) of a micrograph, and how they match the experts' one to one, borders included."""
    picks = read_coordinates(next(job.rglob(f"{stem}_autopick.star")))[["coordinate_x", "coordinate_y"]].to_numpy(np.float64)
    return picks, match_picks(picks * PIXEL, experts[stem] * PIXEL, PICK_DISTANCE)


def score_picks(job: Path, experts: Experts, step: str) -> list[Measurement]:
    """Precision and recall over all micrographs."""
    total = total_score([match(job, experts, stem)[1] for stem in experts])
    return [
        Measurement(step, "experts' marks found (recall)", total.recall, "", low=0.85),
        Measurement(step, "picks that experts marked (precision)", total.precision, "", low=0.70),
    ]


def score_map(job: Path) -> list[Measurement]:
    """The octahedral map: hollow, of the right size, and its resolution in a fixed soft sphere."""
    density, pixel = load(job / "run_class001.mrc")
    shell = shell_score(density, pixel, inner_radius=30.0)
    sphere = soft_sphere(len(density), RADIUS / pixel, EDGE / pixel)
    half1, half2 = (load(job / f"run_half{half}_class001_unfil.mrc")[0] * sphere for half in (1, 2))
    resolution = shell_to_resolution(resolution_shell(fsc(half1, half2), 0.143), len(density), pixel)
    return [
        Measurement("refine_2x, O", "mean inside 30 Å, share of the shell's peak", 100 * shell.hollow, "%", high=20.0),
        Measurement("refine_2x, O", "diameter (half the shell's peak)", shell.diameter, "Å", low=115.0, high=130.0),
        Measurement("refine_2x, O", f"half maps, FSC 0.143 in a sphere of {RADIUS:.0f} Å", resolution, "Å", high=12.0),
    ]


def score_c1(job: Path) -> list[Measurement]:
    """The map without symmetry: turned onto octahedral axes, its least correlation with its 23 turned copies."""
    density, pixel = on_axes(job)
    misfit = symmetry_misfit(density, "O", shells=shells_to(C1_RESOLUTION, density, pixel))
    name = f"least correlation with an octahedral copy, to {C1_RESOLUTION:.0f} Å"
    return [Measurement("refine_2x, C1", name, 1 - misfit, "", low=0.8)]


def on_axes(job: Path) -> tuple[torch.Tensor, float]:
    """The map that was refined in C1, low-passed, turned into RELION's octahedral setting; its pixel size."""
    density, pixel = load(job / "run_class001.mrc")
    density = lowpass(density, pixel, C1_RESOLUTION)
    found = find_axes(density, "O", radius=RADIUS / pixel, max_shell=shells_to(C1_RESOLUTION, density, pixel))
    return found.apply(density), pixel


def shells_to(resolution: float, density: torch.Tensor, pixel: float) -> int:
    """Fourier shell of a resolution in Å."""
    return int(len(density) * pixel / resolution)


def load(path: Path) -> tuple[torch.Tensor, float]:
    """A map and its pixel size, Å."""
    density, pixel = read_map(path)
    return torch.from_numpy(density), pixel


def draw(out: Path, octahedral: Folders, asymmetric: Folders, experts: Experts) -> None:
    """Pictures: picks and marks of the first micrograph, slices and surfaces of both maps."""
    stem = next(iter(experts))
    picks, score = match(octahedral["pick_template"], experts, stem)
    image = read_micrograph(out / "micrographs" / f"{stem}.png")
    title = f"picks (and experts' marks): recall {score.recall:.2f}, precision {score.precision:.2f}"
    draw_picks(out / "picks.png", image, PIXEL, picks, DIAMETER, truth=experts[stem], title=title)
    sharpened, pixel = read_map(octahedral["postprocess"] / "postprocess_masked.mrc")
    draw_surface(out / "map.png", sharpened, title="apoferritin, O, sharpened")
    draw_slices(out / "slices.png", sharpened, pixel, title="apoferritin, O, sharpened")
    turned, _ = on_axes(asymmetric["refine_2x"])
    plain = lowpass(load(octahedral["refine_2x"] / "run_class001.mrc")[0], pixel, C1_RESOLUTION)
    draw_maps_in_a_row(out / "c1_beside_o.png", [turned.numpy(), plain.numpy()], ["C1, turned to its axes", "O"], "low-passed to 20 Å")


if __name__ == "__main__":
    sys.exit(main())
