"""Which of how many processes this one is, by what the launcher that started them all has set.

    world = world_here()
    world.size                      # 1: started alone

torchrun sets RANK and WORLD_SIZE, mpirun OMPI_COMM_WORLD_*, srun SLURM_PROCID and SLURM_STEP_NUM_TASKS (SLURM_NTASKS alone says
nothing: a batch script, which is one process, has it too).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

from verglas.errors import InputError

_LOOPBACK = "127.0.0.1"
_PORTS = range(20_000, 32_000)  # below those that systems hand out by themselves


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes, `local_rank` among those of this host; `address` and `port` are where rank 0 can be met.

    `store`: torchrun's agent listens there and passes on what is written into its store; `attempt` counts its restarts.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = _LOOPBACK
    port: int = 0
    store: bool = False
    attempt: int = 0

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone runs, writes and judges the job."""
        return self.rank == 0


def world_here(environ: Mapping[str, str] = os.environ) -> World:
    """The world of this process; of size 1 where no launcher says otherwise.

    Raises InputError for variables that contradict each other, or that don't tell where rank 0 can be met.
    """
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if rank in environ and size in environ:
            number, count = _number(environ, rank), _number(environ, size)
            if number >= count:
                raise InputError(rank, f"{number} is not one of {count} ranks ({size})", "Start all ranks by one torchrun, srun or mpirun")
            return World() if count == 1 else _among(environ, number, count, _number(environ, local) if local in environ else number)
    return World()


def _among(environ: Mapping[str, str], rank: int, size: int, local_rank: int) -> World:
    address = environ.get("MASTER_ADDR") or _address(environ, size)
    port = _number(environ, "MASTER_PORT") if environ.get("MASTER_PORT") else _port(environ)
    if not 0 < port < 1 << 16:
        raise InputError("MASTER_PORT", f"{port} is no port that all ranks can know", "Set it to a free port of the host of rank 0")
    store = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return World(rank, size, local_rank, address, port, store, int(environ.get("TORCHELASTIC_RESTART_COUNT") or 0))


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ[name]
    if not text.isdigit():
        raise InputError(name, f"found {text!r}, expected a whole number", "Start all ranks by one torchrun, srun or mpirun")
    return int(text)


def _address(environ: Mapping[str, str], size: int) -> str:
    """Where rank 0 runs, if the launcher lets that be known."""
    on_this_host = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    if on_this_host == str(size):
        return _LOOPBACK
    hosts = "" if "OMPI_COMM_WORLD_RANK" in environ else environ.get("SLURM_STEP_NODELIST", "")
    if not hosts:
        raise InputError("MASTER_ADDR", "is not set: nothing says on which host rank 0 runs", "mpirun -x MASTER_ADDR=HOST … names it")
    return first_host(hosts)


def first_host(hosts: str) -> str:
    """The first host of a list in Slurm's words: `gpu[03-05,9],cpu1` begins with `gpu03`."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", hosts)
    if found is None:
        raise InputError("SLURM_STEP_NODELIST", f"{hosts!r} is no list of hosts", "Set MASTER_ADDR to the host of rank 0")
    return "".join(part or "" for part in found.groups())


def _port(environ: Mapping[str, str]) -> int:
    """A port that all ranks of a job find by themselves, and two jobs hardly share."""
    names = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid") if "OMPI_COMM_WORLD_RANK" in environ else ("SLURM_JOB_ID", "SLURM_STEP_ID")
    key = ".".join(environ[name] for name in names if environ.get(name))
    if not key:
        raise InputError("MASTER_PORT", "is not set, and there is no number of a job to derive it from", "Set it to a free port of rank 0")
    return _PORTS[crc32(key.encode()) % len(_PORTS)]
