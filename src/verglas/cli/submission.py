"""The options by which a job is handed to a cluster's queue, for `verglas job` and `verglas run`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from verglas.errors import InputError

if TYPE_CHECKING:
    from verglas.workflow.cluster import Cluster

SUBMIT_OPTIONS = {
    "submit": ("TEMPLATE", "Hand the job to a cluster's queue by this script with RELION's XXXnameXXX fields"),
    "submit_with": ("COMMAND", "What the filled template is submitted with [$RELION_QSUB_COMMAND, else sbatch]"),
    "queue": ("NAME", "For XXXqueueXXX [$RELION_QUEUE_NAME]"),
    "extra1": ("VALUE", "For XXXextra1XXX, and so on for --extra2, … [$RELION_QSUB_EXTRA1_DEFAULT, …]"),
    "queue_ask": ("COMMAND", "What tells the state of job {id} [squeue -h -o %T -j {id}; for qsub and bsub: qstat and bjobs]"),
}
_EXTRA = re.compile(r"--extra(\d+)(?:=(.*))?", re.DOTALL)


def take_extras(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The values of `--extra1 V`, `--extra2=V`, … by their names, and the other words."""
    extras, rest, left = dict[str, str](), list[str](), iter(words)
    for word in left:
        if found := _EXTRA.fullmatch(word):
            value = found[2] if found[2] is not None else next(left, None)
            if value is None:
                raise InputError(word, "needs a value", f"It fills XXXextra{found[1]}XXX of the template")
            extras[f"extra{found[1]}"] = value
        else:
            rest.append(word)
    return extras, rest


def to_cluster(template: str | None, submit_with: str | None, queue: str | None, ask: str | None, extras: dict[str, str]) -> Cluster | None:
    """The cluster that the options name, with RELION's environment variables for what they don't; None without a template."""
    others = {"--submit-with": submit_with, "--queue": queue, "--queue-ask": ask, **{f"--{name}": value for name, value in extras.items()}}
    if template is None:
        if used := [name for name, value in others.items() if value is not None]:
            raise InputError(used[0], "is for a job that is submitted", "Add --submit TEMPLATE")
        return None
    from verglas.workflow.cluster import Cluster

    defaults = ((re.fullmatch(r"RELION_QSUB_(EXTRA\d+)_DEFAULT", name), value) for name, value in os.environ.items())
    fields = {match[1].lower(): value for match, value in defaults if match}
    for field, variable in (("queue", "RELION_QUEUE_NAME"), ("dedicated", "RELION_MINIMUM_DEDICATED")):
        fields |= {field: os.environ[variable]} if variable in os.environ else {}
    fields |= extras | ({"queue": queue} if queue is not None else {})
    return Cluster(Path(template), submit_with or os.environ.get("RELION_QSUB_COMMAND", "sbatch"), ask, fields)
