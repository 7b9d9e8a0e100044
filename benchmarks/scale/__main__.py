"""The engine at the sizes of the reference run, or any share of them, on any device: time by phase, memory, and accuracy against truth.

    python -m scale Refine3D --particles 10000 --box 128 --pixel-size 2.24         (in benchmarks/, or with it on PYTHONPATH)
    python -m scale Class2D --particles 10000 --box 128 --classes 20 --iterations 25
    python -m scale Class3D --particles 20000 --box 128 --classes 4 --iterations 5 --limit 7

The particles are rendered when they are read (`render` in the table: it is no part of the job). The reference is the truth at 40 Å.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from scale.phases import Phases
from scale.rendered import RenderedParticles, drawn
from verglas.compute.device import choose_device, describe_device, has_fast_bf16, use_threads
from verglas.jobs.refinement import describe
from verglas.particles import ParticleSet
from verglas.refine.assignments import from_particles, split_halves
from verglas.refine.autorefine import refine
from verglas.refine.classify import classify
from verglas.refine.observations import Observations
from verglas.refine.settings import Settings
from verglas.refine.start import first_state, random_averages
from verglas.refine.state import State
from verglas.scores.maps import fsc_area, map_fsc_to_truth
from verglas.scores.poses import pose_errors
from verglas.simulate.potential import potential_map
from verglas.simulate.stand_in import stand_in
from verglas.volume.filters import lowpass

START = 40.0  # Å


def main() -> int:
    """Run one job and print its tables."""
    given = _options()
    device = choose_device(given.device)
    use_threads(given.threads)
    truth, particles, source = _set(given, device)
    settings = _settings(given, device)
    seen = Observations(particles, source, mask_diameter=settings.mask_diameter, device=device)
    state = _start(seen, truth, settings, given)
    rows = []
    run = refine(seen, state, settings) if given.job == "Refine3D" else classify(seen, state, settings)
    with Phases(device) as phases:
        while not state.progress.finished and not (given.stop_after and state.iteration >= given.stop_after):
            start = time.perf_counter()
            with _profiled(state.iteration + 1 in given.profile, device):
                state = next(run)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds, kept = time.perf_counter() - start, float(state.assignments.significant.double().mean())
            rows.append({"seconds": seconds, **state.history[-1], "significant": kept})
            print(f"{seconds:.2f} s, {describe(state)}, kept {kept:.1f}", flush=True)
    memory = _tell(device, phases, rows)
    scores = _scores(state, truth, particles, settings)
    print("  " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
    if given.json:
        options = {name: str(value) for name, value in vars(given).items()}
        content = {"options": options, "device": describe_device(device), "iterations": rows, "phases": phases.seconds, **memory, **scores}
        given.json.write_text(json.dumps(content, indent=1))
    return 0


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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("Class2D", "Class3D", "Refine3D"))
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--box", type=int, default=80)
    parser.add_argument("--pixel-size", type=float, default=0.0, help="Å; 286.7 Å over the box where not given")
    parser.add_argument("--classes", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--stop-after", type=int, default=0, help="iterations to run, where fewer than the job would")
    parser.add_argument("--profile", type=int, nargs="*", default=[], help="iterations to profile")
    parser.add_argument("--symmetry", default="D2")
    parser.add_argument("--limit", type=float, default=0.0, help="Å, nothing finer is compared")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    given.pixel_size = given.pixel_size or 286.7 / given.box
    return given


def _set(given: argparse.Namespace, device: torch.device) -> tuple[torch.Tensor, ParticleSet, RenderedParticles]:
    start = time.perf_counter()
    truth = potential_map(stand_in(), given.box, given.pixel_size).to(device)
    particles = drawn(given.particles, given.box, given.pixel_size)
    source = RenderedParticles(truth[None], given.pixel_size, particles, seed=1)
    print(f"{given.particles} particles of {given.box} px, {given.pixel_size:.3f} Å; map made in {time.perf_counter() - start:.1f} s")
    return truth * source.scale, particles, source


def _settings(given: argparse.Namespace, device: torch.device) -> Settings:
    shared = Settings(
        dims=2 if given.job == "Class2D" else 3,
        mask_diameter=150.0,
        classes=given.classes,
        iterations=given.iterations,
        symmetry="C1" if given.job == "Class2D" else given.symmetry,
        limit_resolution=given.limit or None,
        ini_high=START,
        half_precision=has_fast_bf16(device),  # as the jobs choose
    )
    if given.job == "Refine3D":
        return replace(shared, classes=1, iterations=40)
    return replace(shared, tau2_fudge=2.0 if given.job == "Class2D" else 4.0)


def _start(seen: Observations, truth: torch.Tensor, settings: Settings, given: argparse.Namespace) -> State:
    bare = seen.particles.with_columns(rot=None, tilt=None, psi=None, origin_x=None, origin_y=None, class_number=None)
    half = split_halves(bare, 1)[0] if given.job == "Refine3D" else None
    own = from_particles(bare, len(seen.micrographs), half, device=seen.device)
    if settings.dims == 2:
        some = torch.arange(min(len(seen), 2000), device=seen.device)
        return first_state(seen, own, random_averages(seen, some, own, settings.classes, 1), settings)
    return first_state(seen, own, lowpass(truth, seen.pixel_size, START)[None].repeat(settings.classes, 1, 1, 1), settings)


def _scores(state: State, truth: torch.Tensor, particles: ParticleSet, settings: Settings) -> dict[str, float]:
    """Poses and map against the truth; of 2D classes nothing."""
    if settings.dims == 2:
        return {}
    own = state.assignments
    true = torch.from_numpy(particles.angles()), torch.from_numpy(particles.origins())
    poses = pose_errors(
        own.angles().cpu(), true[0], settings.symmetry, found_origins=own.origins.double().cpu(), true_origins=true[1]
    ).summary()
    model = state.joined or state.models[0]
    density = sum(state.unfiltered) if state.unfiltered else model.references[int(model.class_weight.argmax())]
    pixel = particles.optics.pixel_size
    against = map_fsc_to_truth(torch.as_tensor(density).cpu(), truth.cpu(), pixel, radius=75.0)
    wanted = ("pose_median", "pose_90", "shift_median", "mirrored")
    return {name: poses[name] for name in wanted} | {"truth_fsc_0.5": against.resolution, "truth_fsc_area": fsc_area(against.fsc)}


def _tell(device: torch.device, phases: Phases, rows: list[dict[str, float]]) -> dict[str, float]:
    """Print the time by phase and the memory, which is returned."""
    total = sum(row["seconds"] for row in rows)
    render = phases.seconds.get("render", 0.0)
    print(f"\n{describe_device(device)}: {total:.1f} s, of which {render:.1f} s to render; the job {total - render:.1f} s")
    known = sum(phases.seconds.values())
    for name, seconds in sorted({**phases.seconds, "else": total - known}.items(), key=lambda item: -item[1]):
        print(f"  {name:30s} {seconds:8.2f} s  {100 * seconds / total:5.1f} %")
    memory = {"host_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    if device.type == "cuda":
        memory["gpu_peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    print("  " + ", ".join(f"{name} {value:.4g}" for name, value in memory.items()), flush=True)
    return memory


if __name__ == "__main__":
    sys.exit(main())
