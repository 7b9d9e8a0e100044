"""Images that are not kept are streamed: the memory of an iteration does not grow with the number of particles."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import make_job
from refine.sets import DIAMETER, particles
from verglas.errors import InputError
from verglas.io.mrc import write_map, write_stack
from verglas.jobs import class2d, refine3d, refinement
from verglas.particles import ParticleSet, write_particles
from verglas.pictures import maps
from verglas.refine import expectation, observations

BOX, PIXEL, ONCE, FEW, MANY = 64, 3.0, 100, 500, 1500
JOBS = {
    "Class2D": (class2d.JOB, {"classes": 2, "iterations": 1, "offset_range": 2.0, "psi_step": 24.0}),
    "Refine3D": (refine3d.JOB, {"iterations": 2, "symmetry": "D2", "ini_high": 40.0, "healpix_order": 0, "offset_range": 2.0}),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack of many images (the same few again and again), tables of some and of all, and their map."""
    folder = tmp_path_factory.mktemp("memory")
    images, table, truth = particles(ONCE, BOX, PIXEL, 0.3)
    write_stack(folder / "images.mrcs", np.tile(images.numpy(), (MANY // ONCE, 1, 1)), PIXEL)
    write_map(folder / "map.mrc", truth.numpy(), PIXEL)
    bare = table.with_columns(rot=None, tilt=None, psi=None, origin_x=None, origin_y=None, class_number=None).table
    rows = pd.concat([bare] * (MANY // ONCE), ignore_index=True).assign(image_name=[f"{k}@images.mrcs" for k in range(1, MANY + 1)])
    for count in (FEW, MANY):
        write_particles(folder / f"{count}.star", ParticleSet(table.optics, rows[:count]))
    return folder


def peak(what: str, count: int, preload: bool) -> float:
    """Bytes of this process at its largest, after the job."""
    torch.set_num_threads(1)
    refinement._PRELOAD_BYTES, expectation._MOST_ON_CPU, observations._CHECKED_AT_ONCE = 0, 1 << 24, 1 << 20  # small batches
    maps.draw_surface = lambda *_, **__: None  # the picture that takes longer than all the rest
    declared, own = JOBS[what]
    given: dict[str, Any] = {"particles": Path(f"{count}.star")}
    if what == "Refine3D":
        given["reference"] = Path("map.mrc")
    job = make_job(
        declared,
        {"mask_diameter": DIAMETER, "threads": 1, "device": "cpu", "preload": preload, **own},
        given,
        Path(f"{what}{count}{preload}"),
    )
    declared.validate(job)
    assert declared.run(job).done == count and job.record["preloaded"] is preload
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024.0 * float(told["VmHWM"].split()[0])  # what getrusage tells begins with the parent's


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("what", JOBS)
def test_memory_does_not_grow_with_the_particles(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back to the system, and no peak is the allocator's
    more = 4.0 * (MANY - FEW) * BOX**2
    few, many = alone(what, FEW, False), alone(what, MANY, False)
    assert many - few < 0.7 * more
    if what == "Class2D":
        assert alone(what, MANY, True) - many > 0.4 * more


def alone(*arguments: Any) -> float:
    """`peak` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(peak, *arguments).result()


def test_images_that_cannot_be_kept_are_refused() -> None:
    free = 16 << 30
    assert refinement.kept_in_memory(1000, False, free) and not refinement.kept_in_memory(5 << 30, False, free)
    assert refinement.kept_in_memory(5 << 30, True, free) and not refinement.kept_in_memory(3 << 30, False, 4 << 30)
    with pytest.raises(InputError, match=r"--preload: the images take 1000000\.0 GB"):
        refinement.kept_in_memory(10**15, True, free)
