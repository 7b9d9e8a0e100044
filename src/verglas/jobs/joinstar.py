"""JoinStar: several particle, micrograph or movie files become one; optics groups are kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from verglas.errors import InputError
from verglas.jobs.declaration import Check, InputSpec, Items, Job, JobParams, JobType, Metrics, NodeType, OutputSpec, param

_FILES = {"particles": "join_particles.star", "micrographs": "join_mics.star", "movies": "join_movies.star"}
_NODES = {"particles": NodeType.PARTICLES, "micrographs": NodeType.MICROGRAPHS, "movies": NodeType.MOVIES}


class Params(JobParams):
    """Parameters of JoinStar."""

    kind: Literal["particles", "micrographs", "movies"] = param("particles", "What the files hold")


def outputs(params: Params) -> tuple[OutputSpec, ...]:
    """The joined table."""
    return (OutputSpec(params.kind, _NODES[params.kind], _FILES[params.kind]),)


def validate(job: Job) -> None:
    """At least two files, all different."""
    files = [Path(file).resolve() for file in job.inputs["files"]]
    if len(files) < 2 or len(set(files)) != len(files):
        raise InputError("--files", f"{len(files)} files given, {len(set(files))} of them different", "Give two or more different files")


def run(job: Job) -> Items:
    """Read all, join, write once."""
    from verglas import particles as tables

    read, write = _reader_and_writer(job.params.kind)
    with job.phase("read"):
        sets = [read(file) for file in job.inputs["files"]]
    with job.phase("compute"):
        joined = tables.join(sets)
    with job.phase("write"):
        write(job.out / _FILES[job.params.kind], joined)
    for file, part in zip(job.inputs["files"], sets):
        job.say(f"{file}: {len(part)} rows, {len(part.optics)} optics groups")
    return Items("rows", total=sum(map(len, sets)), done=len(joined))


def measure(out: Path, params: Params) -> Metrics:
    """Rows and optics groups of the joined file."""
    read, _ = _reader_and_writer(params.kind)
    joined = read(out / _FILES[params.kind])
    return {"rows": len(joined), "optics_groups": len(joined.optics), "items_out": len(joined)}


def checks(params: Params) -> tuple[Check, ...]:
    """Nothing may be lost."""
    return (Check("rows", 2, None, "two files of at least one row each"),)


def _reader_and_writer(kind: str) -> tuple[Any, Any]:
    from verglas import particles as tables

    if kind == "particles":
        return tables.read_particles, tables.write_particles
    return tables.read_micrographs, tables.write_micrographs


JOB = JobType(
    name="JoinStar",
    relion_number=13,
    summary="Join particle, micrograph or movie files; optics groups stay apart",
    examples="""
    verglas job JoinStar --files Extract/job008/particles.star --files Extract/job015/particles.star
    verglas job JoinStar --kind movies --files Import/job001/movies.star --files Import/job002/movies.star
    """,
    params=Params,
    inputs=(InputSpec("files", NodeType.PARTICLES, "Files to join, two or more", many=True),),
    outputs=outputs,
    run=run,
    measure=measure,
    checks=checks,
    validate=validate,
    describe=lambda metrics: f"{metrics['rows']} rows, {metrics['optics_groups']} optics groups",
    light=True,
)
