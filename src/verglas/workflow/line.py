"""The line between the processes that watch over the ranks of one job, each beside the child that computes.

Rank 0 listens (`Line`), the others call (`call`): orders go down it, reports come up, and when a process or its host dies, the line
ends. So every death is known at once and by name, whatever the ranks wait for at that moment. Messages are JSON, one a line.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from verglas.compute.world import World
from verglas.errors import InputError, RankLost

_ALL_CALL_S = 50.0  # for all ranks to call once there is work: they were started together
_ANSWER_S = 120.0  # for rank 0 to answer: its host may load slowly
_GONE_S = 20  # a host that says nothing for so long is taken for dead, by the kernel's own probes


class Wire:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._rest, self.closed = connection, b"", False
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        wanted = {"TCP_KEEPIDLE": _GONE_S // 2, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": 1000 * _GONE_S}
        for name, value in wanted.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; if the other end is gone, `closed` is true from then on."""
        try:
            self._socket.settimeout(_GONE_S)
            self._socket.sendall(json.dumps(message, default=str).encode() + b"\n")
        except OSError:
            self.closed = True
        finally:
            self._socket.setblocking(False)

    def read(self) -> list[dict[str, Any]]:
        """What has come since the last call. `closed` is true once the other end is gone."""
        while not self.closed:
            try:
                piece = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            self.closed = not piece
            self._rest += piece
        *lines, self._rest = self._rest.split(b"\n")
        return [message for line in lines if (message := _message(line)) is not None]

    def close(self) -> None:
        """End the connection."""
        self._socket.close()
        self.closed = True


@dataclass
class Report:
    """How the work of a rank ended: its exit code or signal, its error, what it used. `lost`: it ended for another rank's sake."""

    code: int | None = None
    signal: str | None = None
    error: str | None = None
    lost: bool = False
    usage: dict[str, Any] = field(default_factory=dict)
    gpus: list[str] = field(default_factory=list)

    def problem(self, rank: int, host: str) -> str | None:
        """What is wrong with this end, in words; None if nothing is."""
        if self.code in (0, 3):
            return None
        who = f"rank {rank} on {host}" if host else f"rank {rank}"
        if self.signal:
            return f"{who} was killed by {self.signal}"
        if self.error:
            return self.error if self.lost else f"{who}: {self.error}"
        return f"{who} is gone" if self.code is None else f"{who} ended with exit code {self.code}"


class Line:
    """Rank 0's end: the other ranks as they call, what they were told, what they report."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._listening = _listen(world)
        self._waiting: list[Wire] = []
        self._wires: dict[int, Wire] = {}
        self._hosts: dict[int, str] = {}
        self._order: dict[str, Any] | None = None
        self._ordered = 0.0
        self.reports: dict[int, Report] = {}

    @property
    def missing(self) -> list[int]:
        """Ranks that have not called yet."""
        return [rank for rank in range(1, self.world.size) if rank not in self._wires]

    def order(self, order: dict[str, Any]) -> None:
        """Tell every rank what to do, those that call later too."""
        self._order, self._ordered = order, time.monotonic()
        for wire in self._wires.values():
            wire.send({"order": order})

    def poll(self) -> None:
        """Take calls and reports; a line that has ended before its report is a report as well."""
        self._take_calls()
        for rank, wire in self._wires.items():
            if rank in self.reports:
                continue
            for message in wire.read():
                if "report" in message:
                    self.reports[rank] = Report(**message["report"])
            if wire.closed and rank not in self.reports:
                self.reports[rank] = Report()
        if self._order is not None and self.missing and time.monotonic() - self._ordered > _ALL_CALL_S:
            for rank in self.missing:
                self.reports.setdefault(rank, Report(error=f"did not come within {_ALL_CALL_S:g} s"))

    def problem(self) -> str | None:
        """What is wrong with the other ranks, in one sentence: first what is a cause, then what is a consequence."""
        ends = [(report.lost, rank, report.problem(rank, self._hosts.get(rank, ""))) for rank, report in self.reports.items()]
        found = sorted((lost, rank, words) for lost, rank, words in ends if words)
        return found[0][2] if found else None

    def cause_known(self) -> bool:
        """Whether a rank has ended by a fault of its own."""
        return any(not report.lost and report.problem(rank, "") for rank, report in self.reports.items())

    def all_ended(self) -> bool:
        """Whether every rank has reported its end."""
        return len(self.reports) == self.world.size - 1

    def silent(self) -> str:
        """The ranks that have not reported an end, in words."""
        ranks = sorted(set(range(1, self.world.size)) - set(self.reports))
        return ", ".join(f"rank {rank} on {self._hosts.get(rank, '?')}" for rank in ranks)

    def end(self, code: int) -> None:
        """Tell all ranks to end with `code`, those that call within a few seconds too."""
        deadline = time.monotonic() + 5.0
        while self.missing and time.monotonic() < deadline:
            self._take_calls()
            time.sleep(0.02)
        for wire in self._wires.values():
            wire.send({"end": code})
            wire.close()
        self._listening.close()

    def _take_calls(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except BlockingIOError:
                break
            self._waiting.append(Wire(connection))
        for wire in list(self._waiting):
            for message in wire.read()[:1]:
                self._welcome(wire, message)
            if wire.closed and wire in self._waiting:
                self._waiting.remove(wire)

    def _welcome(self, wire: Wire, message: dict[str, Any]) -> None:
        rank = message.get("rank")
        self._waiting.remove(wire)
        if message.get("size") != self.world.size or rank not in self.missing:
            wire.close()
            return
        self._wires[rank], self._hosts[rank] = wire, str(message.get("host"))
        if self._order is not None:
            wire.send({"order": self._order})


def call(world: World) -> Wire:
    """Call rank 0. Raises RankLost if it does not answer."""
    deadline = time.monotonic() + _ANSWER_S
    where = _published(world) if world.store else (world.address, world.port)
    while True:
        try:
            wire = Wire(socket.create_connection(where, timeout=5.0))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise RankLost(f"rank {world.rank}: rank 0 does not answer at {where[0]}:{where[1]} ({error.strerror or error})") from None
            time.sleep(0.1)
    wire.send({"rank": world.rank, "size": world.size, "host": socket.gethostname()})
    return wire


def _listen(world: World) -> socket.socket:
    """A socket on rank 0's address; under torchrun at any port, which its store passes on."""
    port = 0 if world.store else world.port
    try:
        listening = socket.create_server((world.address, port), backlog=world.size)
    except OSError:
        try:  # the address may be a name of this host that it does not know itself by
            listening = socket.create_server(("", port), backlog=world.size)
        except OSError as error:
            problem = f"{port} cannot be listened on ({error.strerror})"
            raise InputError("MASTER_PORT", problem, "Set it to a free port of the host of rank 0") from None
    listening.setblocking(False)
    if world.store:
        _store(world).set(_key(world), str(listening.getsockname()[1]))
    return listening


def _published(world: World) -> tuple[str, int]:
    try:
        return world.address, int(_store(world).get(_key(world)))
    except RuntimeError as error:
        raise RankLost(f"rank {world.rank}: rank 0 has not started ({str(error).splitlines()[0][:200]})") from None


def _store(world: World) -> Any:
    """The store of torchrun itself."""
    from datetime import timedelta

    from torch.distributed import TCPStore

    return TCPStore(world.address, world.port, is_master=False, timeout=timedelta(seconds=_ANSWER_S))


def _key(world: World) -> str:
    return f"verglas/line/{world.attempt}"


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
