"""One job on 1, 2, … ranks of this host: how much faster it gets, and what share of the time the ranks wait and talk.

    python benchmarks/ranks.py Refine3D --particles 60000 --box 128 --ranks 1,2 --out DIR
    python benchmarks/ranks.py Class2D --particles 60000 --box 128 --classes 100 --iterations 10 --ranks 1,2 --out DIR
    python benchmarks/ranks.py Refine3D --particles 100000 --box 256 --symmetry C1 --mode float16 --ranks 1 --out DIR

The particles are rendered into stacks in DIR (kept for the next run) and refined by the job itself, a GPU a rank where there are
GPUs, else the cores shared. Times are of whole jobs, files and starting included, and of their iterations with the state before the
first; shares are of the iterations' time; poses are compared with those of the first run, and what each run left with the truth. A job
of few particles comes first, untimed, so that what a card compiles at its first use is compiled.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from comparison.scoring import Scores, class_figures_2d, load, pose_figures_of
from comparison.timing import timed
from scale import accuracy
from scale.kept import in_files
from scale.options import FIELD_OF_VIEW
from scale.rendered import RenderedParticles, drawn
from scale.task import MASK_DIAMETER, START
from scale.truth import SYMMETRIES, true_maps
from verglas.compute.device import choose_device, describe_device
from verglas.io.mrc import write_map
from verglas.particles import ParticleSet, read_particles, write_particles
from verglas.records.record import read_record
from verglas.volume.filters import lowpass
from verglas.volume.rotations import euler_to_matrix, rotation_distance
from verglas.volume.symmetry import symmetry_operators

_FEW = 1000  # particles


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the set, run the job on each number of ranks, print the table; 1 where a run failed."""
    given = _parser().parse_args(arguments)
    device = choose_device()
    folder = given.out / f"{given.particles}_{given.box}px_{given.symmetry}_{given.mode}"
    true, maps = _write_set(folder, given, device)
    rows: list[list[str]] = []
    first, start = (0.0, 0.0), None
    _run(given, folder, "few.star", f"{given.job}/few", 1)
    for ranks in given.ranks:
        out = f"{given.job}/ranks{ranks}"
        took, shares = _run(given, folder, "particles.star", out, ranks)
        first = first if rows else took
        times = [text for one, own in zip(first, took) for text in (f"{own:.1f}", f"{one / own:.2f}")]
        found = _found(given, folder / out)
        start = start or found
        rows.append([str(ranks), *times, *(f"{100 * share:.1f} %" for share in shares), _apart(given, found, start)])
        figures = _scores(given, folder / out, found, true, maps)
        print(f"{ranks} ranks: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
    titles = ["ranks", "job, s", "speed-up", "iterations, s", "speed-up", "waiting", "talking", "poses of the first run"]
    print(f"\n{given.job}, {given.particles} particles of {given.box} px, {describe_device(device)}")
    for row in [titles, *rows]:
        print("  " + "  ".join(cell.rjust(max(7, len(title))) for cell, title in zip(row, titles)))
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("job", choices=("Class2D", "Refine3D"))
    made.add_argument("--particles", type=int, default=2000)
    made.add_argument("--box", type=int, default=64)
    made.add_argument("--symmetry", choices=SYMMETRIES, default="D2", help="of the specimen, and of Refine3D")
    made.add_argument("--mode", choices=("float16", "float32"), default="float32", help="of the stacks")
    made.add_argument("--classes", type=int, default=10, help="of Class2D")
    made.add_argument("--iterations", type=int, default=10, help="of Class2D")
    made.add_argument("--ranks", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2])
    made.add_argument("--out", type=Path, required=True, help="folder for the set and the jobs")
    return made


def _write_set(folder: Path, given: argparse.Namespace, device: torch.device) -> tuple[ParticleSet, torch.Tensor]:
    """Stacks, particles without poses, and a reference at 40 Å; returns the true rows and maps [1, N, N, N]."""
    folder.mkdir(parents=True, exist_ok=True)
    count, box, pixel_size = given.particles, given.box, FIELD_OF_VIEW / given.box
    particles, maps = drawn(count, box, pixel_size), true_maps(1, given.symmetry, box, pixel_size, device)
    source = RenderedParticles(maps, pixel_size, particles, seed=1)
    stacks = (folder / "stacks").absolute()
    begun = time.perf_counter()
    in_files(source, particles, stacks, given.mode)
    print(f"stacks made in {time.perf_counter() - begun:.1f} s", flush=True)
    names = [f"{number}@{stacks / stack}" for number, _, stack in (name.partition("@") for name in particles.column("image_name"))]
    unknown = dict.fromkeys(("rot", "tilt", "psi", "origin_x", "origin_y", "class_number"))
    bare = particles.with_columns(image_name=names, **unknown)
    write_particles(folder / "particles.star", bare)
    write_particles(folder / "few.star", bare.subset(np.arange(min(_FEW, count))))
    write_map(folder / "reference.mrc", lowpass(maps[0] * source.scale, pixel_size, START).cpu().numpy(), pixel_size)
    return particles, maps


def _run(given: argparse.Namespace, folder: Path, particles: str, out: str, ranks: int) -> tuple[tuple[float, float], list[float]]:
    """Seconds of the job and of its iterations, and the shares of waiting and talking in these; prints those of all phases."""
    shutil.rmtree(folder / out, ignore_errors=True)
    launcher = [sys.executable, "-m", "verglas"]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "verglas"]
    words = ["job", given.job, "--particles", particles, "--mask-diameter", f"{MASK_DIAMETER:g}", "--out", out]
    if given.job == "Refine3D":
        words += ["--reference", "reference.mrc", "--symmetry", given.symmetry, "--ini-high", f"{START:g}"]
    else:
        words += ["--classes", str(given.classes), "--iterations", str(given.iterations)]
    cost, code = timed([*launcher, *words], folder)
    record = read_record(folder / out)
    if code != 0 or record is None:
        sys.exit(f"{given.job} on {ranks} ranks ended with exit code {code}; see {folder / out}")
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in record.phases.items())
    print(f"{out}: {cost['wall_s']:.1f} s in all; {phases}", flush=True)
    compute, *aside = (record.phases.get(name, 0.0) for name in ("compute", "wait", "communicate"))
    iterations = compute + sum(aside)
    return (cost["wall_s"], iterations), [part / iterations for part in aside]


def _apart(given: argparse.Namespace, found: ParticleSet, start: ParticleSet) -> str:
    """Median angle between the poses of two runs, modulo the group; by particle, in the order of the set."""
    mine, first = (euler_to_matrix(torch.from_numpy(each.angles())) for each in (found, start))
    operators = symmetry_operators(given.symmetry if given.job == "Refine3D" else "C1")
    apart = torch.stack([rotation_distance(mine, first @ operator) for operator in operators]).amin(0)
    return f"{float(apart.median()):.3f}° apart"


def _scores(given: argparse.Namespace, job: Path, found: ParticleSet, true: ParticleSet, maps: torch.Tensor) -> Scores:
    """What the job left against the truth: a sample of the poses or classes, and the mean of the half maps."""
    rows = accuracy.sampled(len(true))
    assert np.allclose(found.column("defocus_u"), true.column("defocus_u")), "the rows are not in the order of the set"
    found, true = found.subset(rows), true.subset(rows)
    if given.job == "Class2D":
        label = found.column("class_number").astype(np.int64)
        return class_figures_2d(label, found.angles()[:, 2], found.origins(), true, given.symmetry)
    halves = [load(job / f"run_half{half}_class001_unfil.mrc")[0] for half in (1, 2)]
    figures = accuracy.map_figures((halves[0] + halves[1]) / 2, maps[0], FIELD_OF_VIEW / given.box, given.box / 2)
    return pose_figures_of(found.angles(), found.origins(), true, given.symmetry) | figures


def _found(given: argparse.Namespace, job: Path) -> ParticleSet:
    """The particles as the job left them, in the order of the set."""
    return read_particles(job / ("run_data.star" if given.job == "Refine3D" else f"run_it{given.iterations:03d}_data.star"))


if __name__ == "__main__":
    sys.exit(main())
