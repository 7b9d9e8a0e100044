"""What RELION leaves in a job's folder: its whole iterations, its account of the particles, and names that the declarations know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verglas.errors import VerglasError
from verglas.io.relion_iterations import optimisers
from verglas.jobs.declaration import Items
from verglas.records.outputs import inspect_output

_NAMED = ("rlnModelStarFile", "rlnModelStarFile2", "rlnExperimentalDataStarFile", "rlnOrientSamplingStarFile")


def write_references(path: Path, references: Sequence[Path]) -> None:
    """The table by which RELION takes one reference a class."""
    import pandas as pd

    from verglas.io.star import write_star

    write_star(path, {"": pd.DataFrame({"rlnReferenceImage": [str(reference) for reference in references]})})


def last_whole_iteration(folder: Path, rows: int, *, models: int = 1, most: int) -> tuple[int, Path] | None:
    """Number and optimiser of the last iteration up to `most` whose files are all there and readable, with `rows` particles, or None.

    RELION writes its files one after the other under their final names, so what a kill left may end anywhere. `models` is 2 for a
    refinement in halves: an iteration in which they are joined already is none to go on from.
    """
    for number, path in sorted(optimisers(folder).items(), reverse=True):
        try:
            if 0 < number <= most and _is_whole(folder, path, rows, models):
                return number, path
        except (VerglasError, ValueError, KeyError, OSError):
            continue
    return None


def count_particles(given: Path, written: Path, *, drawn_only: bool = False) -> Items:
    """The account of a run's particles, by the names in RELION's table against those in the input.

    A particle that RELION left out has failed; one that it added, or wrote twice, makes the numbers not add up. With `drawn_only`
    those that were in no subset of a gradient descent, and so have no pose, are skipped.
    """
    from verglas.particles import read_particles

    before = Counter(_names(read_particles(given)))
    table = read_particles(written)
    after = Counter(_names(table))
    items = Items("particles", total=sum(before.values()), done=sum(after.values()))
    for name, count in (before - after).items():
        for _ in range(count):
            items.fail(name, "is not in the table that RELION wrote")
    if drawn_only:
        undrawn = int((table.column("significant_samples") == 0).sum())
        items.done, items.skipped = items.done - undrawn, undrawn
        items.notes["not_drawn"] = undrawn
    return items


def _names(particles: Any) -> list[str]:
    names: list[str] = particles.column("image_name").astype(str).tolist()
    return names


def _is_whole(folder: Path, optimiser: Path, rows: int, halves: int) -> bool:
    from verglas.io.star import list_table, read_star

    table = dict(read_star(optimiser)["optimiser_general"])
    names = [str(table[label]) for label in _NAMED if str(table.get(label, "None")) not in ("None", "", '""')]
    models = [name for name in names if name.endswith("_model.star")]
    for model in models:
        blocks = read_star(_beside(folder, model))
        classes = list_table(blocks, "model_classes", model)
        names += [str(name).rpartition("@")[2] for name in classes["rlnReferenceImage"]]
        if f"model_class_{len(classes)}" not in blocks or not any(name.startswith(("model_group_", "model_optics")) for name in blocks):
            return False
    data = next((name for name in names if name.endswith("_data.star")), "")
    if not data or not any(name.endswith("_sampling.star") for name in names):
        return False
    written = list_table(read_star(_beside(folder, data)), "particles", data)
    problems = [inspect_output(folder, Path(name).name)["problem"] for name in names]
    return len(models) == halves and len(written) == rows and not any(problems)


def _beside(folder: Path, name: str) -> Path:
    """A file that RELION names by its way from the project, in the job's folder wherever that lies now."""
    return folder / Path(name).name
