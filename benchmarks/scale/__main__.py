"""The engine at the sizes of the reference run, or any share of them, on any device: time by phase, memory, and accuracy against truth.

    python -m scale Refine3D --particles 10000 --box 128                             (in benchmarks/, or with it on PYTHONPATH)
    python -m scale Class2D --particles 749000 --box 128 --classes 100 --images memory --state class2d.pt --seconds 500
    python -m scale Class3D --particles 20000 --box 128 --states 2 --classes 2 --iterations 5 --limit 7
    python -m scale Refine3D --particles 20000 --box 128 --grow particles

Rendering, compilation and the saving of the state are no part of the job, and are told apart. The reference is the truth at 40 Å. A run
with --state goes on, by the same command, where the last one stopped; its times are the sums of all. See benchmarks/NOTES.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from comparison.peak import card_peak, product_peak
from scale import accuracy
from scale.growth import grown, growth_table
from scale.options import identity, options
from scale.phases import Phases
from scale.task import Task, task_of, with_images_kept
from scale.totals import Figures, Totals, load_totals, save_totals, table
from verglas.compute.device import choose_device, describe_device, use_threads
from verglas.jobs.refinement import describe
from verglas.refine.observations import Observations, unusable
from verglas.refine.state import State, load_state, save_state

_SLOWER = 1.2  # how much longer than the last the next iteration may take


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job, or some of growing size, and print the tables."""
    given = options(arguments, __doc__ or "")
    if given.grow:
        sizes = grown(given)
        print(growth_table(given.grow, sizes, [run(each, scored=False) for each in sizes]))
    else:
        run(given)
    return 0


def run(given: argparse.Namespace, *, scored: bool = True) -> Totals:
    """Run the job, or its next part, and print its tables; returns what it has taken in all."""
    begun = time.perf_counter()
    device = choose_device(given.device)
    threads = use_threads(given.threads, device)
    totals = _totals(given)
    with _timed(totals.aside, "maps", device):
        task = task_of(given, device)
    print(f"{given.particles} particles of {given.box} px, {given.pixel_size:.3f} Å, {given.states} states", flush=True)
    if given.images != "rendered":
        with _timed(totals.aside, "render", device):
            task = with_images_kept(task)
    if given.warm_up or (given.warm_up is None and device.type == "cuda"):
        with _timed(totals.aside, "warm-up", device):
            task.warm_up()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    phases = Phases(device, only="render" if given.bare else None)
    seen, state = _begin(task, totals)
    with phases:
        for after in _iterations(task, seen, state, totals, begun):
            state = after
            totals.take(phases)
            if given.state and not given.seconds:
                _save(given, state, totals, device)
    totals.note_memory(device)
    if given.state:
        _save(given, state, totals, device)
    peaks = _peaks(device, threads) if given.peak else {}
    print("\n" + table(totals, describe_device(device), peaks), flush=True)
    scores: Figures = {}
    if state.iteration and scored:
        with _timed(totals.aside, "score", device):
            scores = accuracy.score(state, task.maps, task.particles, given.symmetry)
        told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        print(f"  {'finished' if state.progress.finished else 'not finished'}; {told} (scored in {totals.aside['score']:.1f} s)")
    if given.json:
        options_of = {name: str(value) for name, value in vars(given).items()}
        content = {"options": options_of, "device": describe_device(device), "peaks": peaks, **asdict(totals), "scores": scores}
        given.json.write_text(json.dumps(content, indent=1))
    return totals


def _totals(given: argparse.Namespace) -> Totals:
    earlier = given.state is not None and given.state.exists()
    totals = load_totals(_beside(given.state), identity(given)) if earlier else Totals()
    totals.commands += 1
    return totals


def _save(given: argparse.Namespace, state: State, totals: Totals, device: torch.device) -> None:
    with _timed(totals.aside, "save", device):
        save_state(given.state, state)
    save_totals(_beside(given.state), totals, identity(given))


def _beside(state: Path) -> Path:
    return state.with_name(state.name + ".json")


def _begin(task: Task, totals: Totals) -> tuple[Observations, State]:
    """The engine's view of the particles, and the state to go on from."""
    device, file = task.device, task.given.state
    if file is not None and file.exists():
        with _timed(totals.aside, "load", device):
            seen, state = task.observations(), load_state(file, device)
        print(f"going on after iteration {state.iteration}")
        return seen, state
    with _timed(totals.before, "prepare", device):
        seen = task.observations()
    if task.kept:
        with _timed(totals.before, "check of all images", device):
            assert not unusable(task.source, device=device)
        size, seconds = task.image_bytes / 1e9, totals.before["check of all images"]
        print(f"all images read once, files not cached: {size:.4g} GB in {seconds:.1f} s, {size / seconds:.3g} GB/s", flush=True)
    with _timed(totals.before, "start", device):
        return seen, task.start(seen)


def _iterations(task: Task, seen: Observations, state: State, totals: Totals, begun: float) -> Iterator[State]:
    """States, each with its row in `totals`, until the job is finished or was told to stop."""
    given, device = task.given, task.device
    steps = task.steps(seen, state)
    while not state.progress.finished and not (given.stop_after and state.iteration >= given.stop_after):
        last = totals.rows[-1]["seconds"] if totals.rows else 0.0
        if given.seconds and time.perf_counter() - begun + _SLOWER * last > given.seconds:
            return
        took: Figures = {}
        with _timed(took, "seconds", device), _profiled(state.iteration + 1 in given.profile, device):
            state = next(steps)
        kept = float(state.assignments.significant.double().mean())
        totals.rows.append({**took, **state.history[-1], "significant": kept})
        print(f"{took['seconds']:.2f} s, {describe(state)}, kept {kept:.1f}", flush=True)
        yield state


@contextmanager
def _timed(into: Figures, name: str, device: torch.device) -> Iterator[None]:
    """Add the seconds of the block, to the end of what it gave the device to do."""
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    into[name] = into.get(name, 0.0) + time.perf_counter() - start


@contextmanager
def _profiled(wanted: bool, device: torch.device) -> Iterator[None]:
    """Print where the time of the block went, by operation; the profiler slows what it looks at."""
    if not wanted:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        yield
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60))


def _peaks(device: torch.device, threads: int) -> Figures:
    return card_peak(device) if device.type == "cuda" else product_peak(threads)


if __name__ == "__main__":
    sys.exit(main())
