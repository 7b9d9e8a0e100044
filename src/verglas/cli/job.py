"""`verglas job TYPE`: one job from the command line."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verglas.jobs.declaration import JobType
    from verglas.workflow.line import Line


def list_types() -> int:
    """Print the job types with what each does."""
    from verglas.errors import VerglasError
    from verglas.jobs.registry import MODULES, job_type

    for name in MODULES:
        try:
            print(f"  {name:<14}{job_type(name).summary}")
        except (ImportError, VerglasError) as error:
            print(f"  {name:<14}cannot be loaded: {error}")
    print("\nOptions of one: verglas job TYPE --help")
    return 0


def run_command(type_name: str, words: list[str]) -> int:
    """Run the job that the words ask for; returns the exit code of the verdict."""
    from verglas.cli.options import parse
    from verglas.jobs.registry import job_type

    declared = job_type(type_name)
    found = parse(declared, words)
    if found.run_help:
        from verglas.cli.help import help_page

        print(help_page(declared))
        return 0
    from verglas.workflow.ranks import on_ranks

    return on_ranks(declared, lambda line: _run(declared, found, line))


def _run(declared: JobType, found: argparse.Namespace, line: Line | None) -> int:
    from verglas.cli.options import to_request
    from verglas.cli.submission import to_cluster
    from verglas.workflow.cluster import submit_job
    from verglas.workflow.ranks import refuse_many
    from verglas.workflow.runner import run_job
    from verglas.workflow.screen import Screen

    screen = Screen(None if found.run_quiet else sys.stderr if found.run_json else sys.stdout)
    cluster = to_cluster(found.run_submit, found.run_submit_with, found.run_queue, found.run_queue_ask, found.run_extras)
    request = to_request(declared, found)
    if request.relion is not None or cluster is not None:
        refuse_many("--engine relion" if cluster is None else "--submit")
    outcome = submit_job(request, cluster, screen) if cluster is not None else run_job(request, screen, line)
    if found.run_json:
        print(json.dumps(asdict(outcome.record), indent=1))
    else:
        from verglas.records.table import ending

        print(ending(outcome.record, outcome.folder))
    return outcome.exit_code
