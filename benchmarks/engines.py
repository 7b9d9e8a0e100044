"""The refinement engines against each other on the same particles with known truth: one command, one table.

    python benchmarks/engines.py --set d2 --job Refine3D --particles 2000 --seeds 3 --engines verglas,relion --out DIR
    python benchmarks/engines.py --all --seeds 3 --out DIR

Sets: d2 (150 kDa tetramer), c1 (one subunit moved, one halved: 135 kDa), two_states (60 % of d2, 40 % with a domain turned by 25°).
Every seed is a set of its own and the engines' random seed. The jobs run one after another on the same cores, from a reference
at 40 Å, never from the truth. Sets and jobs that are in DIR are kept, so a command that was stopped goes on; results.json there
holds everything that the table is made of. 0 where every job passed and every bar that applies is met, otherwise 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from comparison.peak import product_peak
from comparison.plan import ENGINES, JOBS, Task, settings_text, tasks
from comparison.runs import Run, run_task
from comparison.table import table
from verglas.errors import InputError
from verglas.io.atomic import write_json
from verglas.records.machine import machine, usable_cores


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the sets, run the jobs, score, print."""
    given = parser().parse_args(arguments)
    try:
        todo = planned(given)
        given.out.mkdir(parents=True, exist_ok=True)
        peak = product_peak(given.threads)
        runs = []
        for task in todo:
            runs.append(run_task(task, given.out, peak, rescore=given.rescore))
            write_json(given.out / "results.json", {"machine": machine(), "peak_tflops": peak, "runs": [asdict(run) for run in runs]})
    except InputError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 2
    text = table(runs, given.engines)
    print("\n" + report(text, runs, todo, peak))
    return 0 if all(run.good for run in runs) and "NOT MET" not in text else 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--all", action="store_true", help="every set with its jobs")
    made.add_argument("--set", dest="kinds", type=listed, default=["d2"], help=f"one or several of {', '.join(JOBS)}")
    made.add_argument(
        "--job", dest="jobs", type=listed, help="one or several of Class2D, InitialModel, Class3D, Refine3D (default: the set's)"
    )
    made.add_argument("--particles", type=int, default=2000)
    made.add_argument("--box", type=int, default=80, help="pixels")
    made.add_argument("--pixel-size", type=float, default=2.5, help="Å")
    made.add_argument("--snr", type=float, default=0.05, help="of the images (default 0.05)")
    made.add_argument("--seeds", type=int, default=1, help="so many sets of each kind, from seeds 1, 2, …")
    made.add_argument("--engines", type=listed, default=list(ENGINES), help="the first is compared with relion")
    made.add_argument("--threads", type=int, default=usable_cores(), help="cores that every engine works on")
    made.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the job other than the plan's")
    made.add_argument("--rescore", action="store_true", help="score kept runs anew")
    made.add_argument("--out", type=Path, required=True, help="folder for the sets, the jobs and results.json")
    return made


def listed(text: str) -> list[str]:
    """Words between commas."""
    return [word for word in text.split(",") if word]


def planned(given: argparse.Namespace) -> list[Task]:
    """The jobs that the command line asks for."""
    kinds = list(JOBS) if given.all else given.kinds
    options = [tuple(option.partition("=")[::2]) for option in given.option]
    return tasks(
        [(kind, job) for kind in kinds for job in given.jobs or JOBS.get(kind, ("",))],
        engines=given.engines,
        seeds=range(1, given.seeds + 1),
        n=given.particles,
        box=given.box,
        pixel_size=given.pixel_size,
        threads=given.threads,
        snr=given.snr,
        options=options,
    )


def report(text: str, runs: Sequence[Run], todo: Sequence[Task], peak: dict[str, float]) -> str:
    """The table with what must stand beside it: machine, product peak, settings, and what failed."""
    host, first = machine(), todo[0]
    seeds = ", ".join(str(seed) for seed in sorted({task.seed for task in todo}))
    lines = [
        f"{host['cpu']}, {first.threads} of {host['cores_usable']} cores; products now {_peak_text(peak)}",
        f"beside the runs: {', '.join(dict.fromkeys(_peak_text(run.peak) for run in runs))}",
        f"{first.n} particles of {first.box} px of {first.pixel_size:g} Å, SNR {first.snr:g}; seeds {seeds}",
        "",
        text,
        "",
        "Settings (and the set's symmetry and mask, and the seed):",
        *(f"  {line}" for line in settings_text(todo)),
    ]
    bad = [run for run in runs if not run.good]
    lines += [f"{run.verdict}: {run.kind}, seed {run.seed}, {run.job} by {run.engine}: {'; '.join(run.reasons)}" for run in bad]
    return "\n".join(lines)


def _peak_text(peak: dict[str, float]) -> str:
    return " and ".join(f"{value:.3f} TFLOP/s in {name}" for name, value in peak.items())


if __name__ == "__main__":
    sys.exit(main())
