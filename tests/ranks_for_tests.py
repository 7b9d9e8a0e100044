"""Processes that share some work: functions on ranks that meet by gloo, and whole commands as a launcher starts them."""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from verglas.compute.ranks import Ranks, join
from verglas.compute.world import World


def on_ranks(size: int, folder: Path, function: Callable[[Ranks], Any], missing: int = 0) -> dict[int, Any]:
    """What `function(ranks)` returns on each of `size` forked processes, or the exception that it raises there.

    So many ranks may be `missing` among those that answer.
    """
    context = multiprocessing.get_context("fork")
    answers, processes = context.Queue(), []
    for rank in range(size):
        processes.append(context.Process(target=_be_rank, args=(rank, size, folder / "store", function, answers), daemon=True))
        processes[-1].start()
    try:
        return dict(answers.get(timeout=60.0) for _ in range(size - missing))
    finally:
        for process in processes:
            process.kill()
            process.join()


def _be_rank(rank: int, size: int, store: Path, function: Callable[[Ranks], Any], answers: Any) -> None:
    torch.set_num_threads(1)
    try:
        ranks = join(World(rank, size, rank), dist.FileStore(str(store), size))
        answers.put((rank, function(ranks)))
    except Exception as error:
        answers.put((rank, error))
    answers.close()
    answers.join_thread()
    time.sleep(30)  # until all have answered: what is asked of a rank that is gone is another test


@dataclass
class Launched:
    """The processes of one command, as a launcher keeps them, and the files that they print to."""

    pids: list[int]
    logs: list[Path]

    def wait(self, seconds: float = 60.0) -> list[int]:
        """Their exit codes, or minus the signals that ended them. Those that take longer are killed."""
        codes: dict[int, int] = {}
        deadline = time.monotonic() + seconds
        while len(codes) < len(self.pids):
            for pid in set(self.pids) - set(codes):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        return [codes[pid] for pid in self.pids]

    def said(self) -> str:
        """All that was printed."""
        return "".join(log.read_text() for log in self.logs)

    def working(self, rank: int) -> int:
        """The process that computes for a rank, once there is one."""
        children = Path(f"/proc/{self.pids[rank]}/task/{self.pids[rank]}/children")
        return int(children.read_text().split()[-1])


def launch(size: int, *words: object, only: int | None = None) -> Launched:
    """`verglas job WORDS` as `size` ranks, as srun starts them: a process each, which know of each other by variables alone.

    `only` so many are started.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    logs = [Path(f"rank{rank}.log").absolute() for rank in range(only or size)]
    variables = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.stdout.flush()
    pids = [_fork(rank, variables, logs[rank], [str(word) for word in words]) for rank in range(len(logs))]
    return Launched(pids, logs)


def _fork(rank: int, variables: dict[str, str], log: Path, words: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank))
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        code = _command(words)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _command(words: list[str]) -> int:
    from verglas.cli.job import run_command
    from verglas.errors import InputError

    try:
        return run_command(words[0], words[1:])
    except InputError as error:
        print(f"ERROR: {error}")
        return 2
