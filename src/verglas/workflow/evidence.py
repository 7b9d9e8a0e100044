"""Gathers what the judge needs, from the files alone, in child processes: a damaged file can't take the judge with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verglas.jobs.declaration import JobType
from verglas.records.outputs import inspect_output, timeliness_problem
from verglas.records.verdict import Evidence
from verglas.workflow.engine import stamps
from verglas.workflow.inputs import changes
from verglas.workflow.process import call_in_child


def look_at_outputs(
    evidence: Evidence,
    declared: JobType,
    params: Any,
    folder: Path,
    left: dict[str, list[int]],
    start_ns: int,
    kept: dict[str, str],
) -> tuple[list[dict[str, Any]], str]:
    """Check and measure the declared outputs, and add what is found to `evidence`; returns their facts, and the metrics in a few words.

    `left` holds the outputs' stamps as the job ended, `kept` the digests of those that were there before it and are known to be good.
    """
    try:
        seen = call_in_child(_read_outputs, declared, params, folder, left)
    except RuntimeError as error:
        evidence.measuring_failed = f"outputs could not be checked: {error}"
        return [], ""
    outputs: list[dict[str, Any]] = seen["outputs"]
    problems = [found.pop("problem") for found in outputs]
    late = [timeliness_problem(found, start_ns, kept) for found in outputs]
    evidence.output_problems = [problem for problem in (*problems, *late, *seen["swapped"]) if problem]
    evidence.metrics, evidence.measuring_failed = seen["metrics"], seen["measuring_failed"]
    return outputs, str(seen["note"])


def changes_of(inputs: list[dict[str, Any]]) -> list[str]:
    """Sentences on inputs that changed while the job ran."""
    try:
        found: list[str] = call_in_child(changes, inputs)
    except RuntimeError as error:
        return [f"inputs could not be compared: {error}"]
    return found


def _read_outputs(declared: JobType, params: Any, folder: Path, left: dict[str, list[int]]) -> dict[str, Any]:
    """Facts of every declared output, those swapped since the job ended, and the metrics, measured from files."""
    outputs = []
    for spec in declared.outputs(params):
        outputs.append({"name": spec.name, "node": int(spec.node), **inspect_output(folder, spec.path)})
    seen: dict[str, Any] = {"outputs": outputs, "metrics": None, "measuring_failed": None, "note": ""}
    present = stamps(declared, params, folder)
    seen["swapped"] = [f"{path} was changed after the job ended" for path in present if left.get(path) not in (None, present[path])]
    if not any(found["problem"] for found in outputs):
        try:
            seen["metrics"] = dict(declared.measure(folder, params))
            seen["note"] = declared.describe(seen["metrics"])
        except Exception as error:
            seen["measuring_failed"] = f"could not be measured: {type(error).__name__}: {error}"
    return seen
