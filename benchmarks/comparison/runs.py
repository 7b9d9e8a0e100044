"""One job by one engine, through the product's own command line: what it took, by which path, and how it ended.

A run that passed is kept in a file beside its job folder, and is not done again.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from comparison.plan import Task, parameters, resources, words
from comparison.scoring import score_job
from comparison.timing import timed
from verglas.io.atomic import write_json
from verglas.records.machine import machine
from verglas.records.record import PASS, UNCHECKED, Record, read_record
from verglas.simulate.particle_sets import particle_set, write_particle_set


@dataclass
class Run:
    """A finished run: the task, the product's verdict, cost and scores by the keys of `measures`, and the path that was taken.

    Of our engine `wall_s` and `cpu_s` are of the whole command: start of Python, staging and judging included. Of another engine they
    are of its own processes alone, which the product only starts and judges. `commands`: as typed, then the other engine's own.
    """

    kind: str
    job: str
    engine: str
    seed: int
    n: int
    box: int
    pixel_size: float
    verdict: str
    reasons: list[str]
    figures: dict[str, float]
    path: dict[str, Any]
    settings: dict[str, Any]
    commands: list[list[str]]
    peak: dict[str, float] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether its figures may be shown."""
        return self.verdict in (PASS, UNCHECKED)


def set_folder(task: Task, out: Path) -> Path:
    """The folder of the task's particle set, which is made where it is not there yet."""
    folder = out / task.set_folder
    wanted = {"n": task.n, "box": task.box, "pixel_size": task.pixel_size, "seed": task.seed, "snr": task.snr}
    write_particle_set(folder, particle_set(task.kind, **wanted))
    return folder


def run_task(task: Task, out: Path, peak: dict[str, float], *, rescore: bool = False) -> Run:
    """The run of a task, done now unless it has passed before with the same words; `rescore`: scores are made anew in any case."""
    folder, asked = set_folder(task, out), words(task)
    before = read_run(folder, task)
    if before is not None and before.good and before.commands[0] == asked:
        if rescore:
            before.figures |= score_job(task.job, folder / task.folder, folder)
            _keep(before, folder, task)
        return before
    # a time is that of one undivided run: nothing is continued, and what an earlier one left goes first
    _kept_at(folder, task).unlink(missing_ok=True)
    shutil.rmtree(folder / task.folder, ignore_errors=True)
    print(f"\n{task.set_folder}: verglas {' '.join(asked)}", flush=True)
    cost, code = timed([sys.executable, "-m", "verglas", *asked], folder)
    run = _describe(task, folder, asked, cost, code)
    run.peak, run.machine = peak, machine()
    if run.good:
        run.figures |= score_job(task.job, folder / task.folder, folder)
    _keep(run, folder, task)
    return run


def _describe(task: Task, folder: Path, asked: list[str], cost: dict[str, float], code: int) -> Run:
    record = read_record(folder / task.folder) if (folder / task.folder).is_dir() else None
    verdict, reasons = "FAIL", [f"the command ended with exit code {code} and left no record"]
    path: dict[str, Any] = {}
    figures, commands = dict(cost), [asked]
    if record is not None:
        verdict, reasons = record.verdict or "FAIL", record.reasons
        path = {"software": record.software, **record.facts}
        commands += [str(line).split() for line in record.facts.get("relion_commands", [])]
        figures["iterations"] = float(record.iterations or 0)
        figures |= _own_cost(record, task.engine)
    return Run(
        kind=task.kind,
        job=task.job,
        engine=task.engine,
        seed=task.seed,
        n=task.n,
        box=task.box,
        pixel_size=task.pixel_size,
        verdict=verdict,
        reasons=reasons,
        figures=figures,
        path=path,
        settings=parameters(task) | resources(task),
        commands=commands,
    )


def _own_cost(record: Record, engine: str) -> dict[str, float]:
    """What the record says of the job's processes, of which those of the largest moment together make the memory."""
    usage = record.usage
    found = {"job_s": usage.get("wall_s"), "memory_mb": (usage.get("peak_memory_bytes") or 0) / 1e6 or None}
    if engine != "verglas":
        found |= {"wall_s": usage.get("wall_s"), "cpu_s": usage.get("cpu_s")}
    return {name: float(value) for name, value in found.items() if value is not None}


def read_run(folder: Path, task: Task) -> Run | None:
    """What is kept of the task's run, None where there is nothing that can be read or its job folder is gone."""
    try:
        kept = Run(**json.loads(_kept_at(folder, task).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return kept if (folder / task.folder).is_dir() else None


def _keep(run: Run, folder: Path, task: Task) -> None:
    _kept_at(folder, task).parent.mkdir(exist_ok=True)
    write_json(_kept_at(folder, task), asdict(run))


def _kept_at(folder: Path, task: Task) -> Path:
    return folder / f"{task.folder}.json"
