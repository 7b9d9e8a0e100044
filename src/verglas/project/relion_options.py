"""Names of RELION 3.1's job options (`rlnJobOptionVariable`) for our parameters, so that a job.star opens in its window."""

from __future__ import annotations

_EVERY_JOB = {"threads": "nr_threads"}


def relion_option(job_type: str, name: str) -> str:
    """RELION's variable for parameter or input `name` of a job type; our own name where it has none."""
    return _OF_JOB.get(job_type, {}).get(name) or _EVERY_JOB.get(name, name)


_OF_JOB: dict[str, dict[str, str]] = {}
