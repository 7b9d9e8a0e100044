"""Keeps the project's graph in step with a job: its edges when it starts, its outputs and status when it ends."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from verglas.jobs.declaration import JobType
from verglas.project.pipeline import Status
from verglas.project.project import Project
from verglas.project.relion_options import relion_options
from verglas.records.record import FAIL, Record
from verglas.workflow.request import JobRequest


def enter_job(project: Project, name: str, request: JobRequest, declared: JobType) -> None:
    """Enter a starting job with its inputs and the outputs it will make."""
    inputs = {str(path): int(spec.node) for spec, path in request.files()}
    outputs = {name + spec.path: int(spec.node) for spec in declared.outputs(request.params)}
    project.enter(name, inputs, outputs, Status.RUNNING)
    if request.alias:
        project.set_alias(name, request.alias)


def leave_job(project: Project, name: str, request: JobRequest, declared: JobType, record: Record, *, aborted: bool) -> None:
    """Enter how a job ended, and the outputs that are there."""
    status = Status.ABORTED if aborted else Status.FAILED if record.verdict == FAIL else Status.SUCCEEDED
    outputs = {name + spec.path: int(spec.node) for spec in declared.outputs(request.params) if (Path(name) / spec.path).exists()}
    project.enter(name, {}, outputs, status)


def job_options(request: JobRequest) -> dict[str, str]:
    """Parameters and inputs as name and value for `job.star`, in RELION's words where it has them."""
    given: dict[str, Any] = {spec.name: request.inputs.get(spec.name) for spec in request.declared.inputs}
    given.update(request.params.model_dump(mode="json"))
    if request.relion is not None:
        given |= {"ranks": request.relion.ranks, "relion_args": shlex.join(request.relion.extra)}
    return relion_options(request.declared.name, given)
