"""The RELION on the PATH: its version, and how a program of it is started on so many ranks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from verglas.errors import InputError
from verglas.records.machine import usable_cores
from verglas.relion.programs import Program

_LEASH = [sys.executable, "-I", str(Path(__file__).with_name("leash.py"))]
_MPIRUN = "RELION_MPIRUN"  # RELION's own variable for it
_MEND = "Install RELION 3.1 or put its bin folder on the PATH, or leave --engine out"


def find_version(program: Program) -> str:
    """Version of the RELION on the PATH, such as 3.1.3. Raises InputError where it isn't there or says none."""
    path = shutil.which(program.name)
    if path is None:
        raise InputError("--engine relion", f"{program.name} is not on the PATH", _MEND)
    version = _ask_version(path, Path(path).stat().st_mtime_ns)
    if version is None:
        raise InputError("--engine relion", f"{path} tells no RELION version", _MEND)
    return version


@cache
def _ask_version(path: str, _changed_ns: int) -> str | None:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"RELION version:\s*(\S+)", done.stdout + done.stderr)
    return found[1] if found else None


def check_ranks(program: Program, ranks: int | None) -> int:
    """The number of MPI ranks: as asked for, or as few as the program takes. Raises InputError for what it can't do."""
    wanted = program.least_ranks if ranks is None else ranks
    if wanted < program.least_ranks:
        raise InputError("--ranks", f"{wanted} are too few for RELION's two halves", "Give 3 or more: a leader and a worker a half")
    if wanted > 1 and not program.parallel:
        raise InputError("--ranks", f"{program.name} knows no MPI", "Leave it out")
    if wanted > 1:
        for needed in (program.name + "_mpi", mpirun()[0]):
            if shutil.which(needed) is None:
                raise InputError("--engine relion", f"{needed} is not on the PATH, {wanted} ranks need it", _MEND)
    return wanted


def threads_of_each(ranks: int, threads: int) -> int:
    """RELION's `--j`: as asked for, or the cores shared among the ranks that work, of which the leader of several is none."""
    return threads or max(1, usable_cores() // max(1, ranks - 1))


def mpirun() -> list[str]:
    """The MPI launcher's command, by RELION_MPIRUN where it is set."""
    return shlex.split(os.environ.get(_MPIRUN, "")) or ["mpirun"]


def launch(program: Program, ranks: int, *, leashed: bool = True) -> list[str]:
    """The words before RELION's options. `leashed`: with what ends every process of it when the one that starts it ends."""
    leash = _LEASH if leashed else []
    if ranks == 1:
        return [*leash, program.name]
    return [*leash, *mpirun(), "-n", str(ranks), *_open_mpi_options(), *leash, program.name + "_mpi"]


def environment() -> dict[str, str]:
    """The environment to run it in: Open MPI is told that root is meant."""
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    return {**os.environ, **root}


def _open_mpi_options() -> list[str]:
    """More ranks than cores, and ranks that leave their core while they wait: the leader always waits."""
    return ["--oversubscribe", "--mca", "mpi_yield_when_idle", "1"] if _is_open_mpi(mpirun()[0]) else []


@cache
def _is_open_mpi(launcher: str) -> bool:
    try:
        done = subprocess.run([launcher, "--version"], capture_output=True, text=True, errors="replace", timeout=60, env=environment())
    except (OSError, subprocess.SubprocessError):
        return False
    return "Open MPI" in done.stdout
