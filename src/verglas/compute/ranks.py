"""The processes that share one refinement, a part of the particles each: what they add up, and what rank 0 tells the others.

    ranks = join(world, store)                  # or Ranks(), of a process that works alone
    sums = compare(ranks.share(rows))
    ranks.sum_up(sums.tensors())                # rank 0 has the sums over all rows
    state = ranks.told(lambda: maximise(sums))  # done by rank 0

Alone, every call gives back what it was given. All ranks make the same calls in the same order. Each call first waits until all ranks
have come to it, at most the group's timeout: a rank that is late or gone is named in a `RankLost`.
"""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import re
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from verglas.compute.device import choose_device, use_threads
from verglas.compute.memory import share_memory
from verglas.compute.world import World
from verglas.errors import InputError, RankLost

T = TypeVar("T")
Phase = Callable[[str], AbstractContextManager[None]]
_PATIENCE = "VERGLAS_RANKS_TIMEOUT"  # seconds that a rank may be behind the others
_PATIENCE_S = 1800.0
_SIOCGIFADDR = 0x8915  # Linux: the address of an interface
_JOINING_S = 300.0  # until all ranks have loaded their libraries and met


class Ranks:
    """The process among those that share the work; one of one unless `join` made it."""

    rank, size, backend = 0, 1, ""

    def __init__(self) -> None:
        self.hosts: list[str] = [socket.gethostname()]  # of each rank

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone writes and decides."""
        return self.rank == 0

    def settle(self, device: str, threads: int) -> torch.device:
        """The device that this rank computes on, by `choose_device`, and its CPU threads, by `use_threads`."""
        chosen = choose_device(device)
        use_threads(threads, chosen)
        return chosen

    def share(self, rows: torch.Tensor) -> torch.Tensor:
        """The rank's part of `rows`: the parts of ranks 0, 1, … in turn are `rows`."""
        return rows

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """While the others wait for what this rank does in the block, it takes the threads of those on its host too."""
        yield

    def sum_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Add up each tensor over all ranks, in place on rank 0; what the others hold is undefined after it."""

    def everyones(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on all ranks. Tensors must be on the CPU."""
        return [value]

    def collected(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on rank 0, and an empty list on the others. Tensors must be on the CPU."""
        return [value]

    def told(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, on all ranks: tensors to the last bit, on each rank's card where they are on a card."""
        return make()


ALONE = Ranks()


class _Joined(Ranks):
    def __init__(self, world: World, patience: float, phase: Phase) -> None:
        self.rank, self.size, self.backend = world.rank, world.size, "gloo"
        self._local_rank, self._phase, self._patience = world.local_rank, phase, timedelta(seconds=patience)
        self._cards: dist.ProcessGroup | None = None
        self._device, self._sharing = torch.device("cpu"), 1
        self.hosts = []
        self.hosts = self.everyones(socket.gethostname())

    def settle(self, device: str, threads: int) -> torch.device:
        place = f"{socket.gethostname()} {sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else ''}"
        self._sharing = self.everyones(place).count(place)  # ranks that may run on the same cores
        share_memory(self.hosts.count(socket.gethostname()))
        if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
            device = f"cuda:{self._local_rank % max(1, torch.cuda.device_count())}"
        self._device = choose_device(device)
        use_threads(threads, self._device, self._sharing)
        kinds = self.everyones(self._device.type)
        if len(set(kinds)) > 1:
            found = ", ".join(f"rank {rank} {kind}" for rank, kind in enumerate(kinds))
            raise InputError("--device", f"ranks compute on different kinds: {found}", "Give cpu or cuda, and a card for each rank")
        if self._device.type == "cuda":
            self._take_card()
        return self._device

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        own = torch.get_num_threads()
        torch.set_num_threads(own * self._sharing)
        try:
            yield
        finally:
            torch.set_num_threads(own)

    def _take_card(self) -> None:
        """Join the cards. Raises InputError where two ranks have one."""
        torch.cuda.set_device(self._device)
        cards = self.everyones(f"{socket.gethostname()} {torch.cuda.get_device_properties(self._device).uuid}")
        twice = sorted({card.split()[0] for card in cards if cards.count(card) > 1})
        if twice:
            raise InputError("--device", f"ranks share a card on {', '.join(twice)}", "Start one rank a card, or give --device cpu")
        self.backend = "nccl"
        self._cards = dist.new_group(backend="nccl", timeout=self._patience)

    def share(self, rows: torch.Tensor) -> torch.Tensor:
        start, end = (len(rows) * rank // self.size for rank in (self.rank, self.rank + 1))
        return rows[start:end]

    def sum_up(self, tensors: Sequence[torch.Tensor]) -> None:
        with self._together():
            for tensor in tensors:
                flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
                dist.reduce(flat, 0, group=self._group(tensor))
            self._finish()

    def everyones(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(found, value)
        return found

    def collected(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size if self.first else []
        with self._together():
            dist.gather_object(value, found if self.first else None, dst=0)
        return found

    def told(self, make: Callable[[], T]) -> T:
        value = make() if self.first else None
        packed, tensors = _packed(value) if self.first else (b"", [])
        with self._together():
            words: list[Any] = [packed, [(tensor.shape, tensor.dtype, tensor.device.type) for tensor in tensors]]
            dist.broadcast_object_list(words, src=0)
            if not self.first:
                tensors = [
                    torch.empty(shape, dtype=dtype, device=self._device if kind == "cuda" else kind) for shape, dtype, kind in words[1]
                ]
            for tensor in tensors:
                if tensor.numel():
                    dist.broadcast(_bytes(tensor), 0, group=self._group(tensor))
            self._finish()
        return cast("T", value if self.first else _unpacked(words[0], tensors))

    def _group(self, tensor: torch.Tensor) -> dist.ProcessGroup | None:
        return self._cards if tensor.is_cuda else None

    def _finish(self) -> None:
        """Wait for the card."""
        if self._cards is not None:
            torch.cuda.synchronize()

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Wait for all ranks, then talk; what goes wrong with that is the loss of a rank."""
        self._finish()  # what the card still computes is no talk
        try:
            with self._phase("wait"):
                dist.monitored_barrier(timeout=self._patience)
            with self._phase("communicate"):
                yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RankLost(self._lost(str(error))) from None

    def _lost(self, words: str) -> str:
        named = re.search(r"Rank (\d+) failed to pass", words)
        if named is None:
            return f"rank {self.rank} has lost the others: {_short(words)}"
        rank = int(named[1])
        host = self.hosts[rank] if self.hosts else "?"
        late = "Timed out" in words
        return f"rank {rank} on {host} " + (f"did not answer within {self._patience.total_seconds():g} s" if late else "is gone")


def open_store(address: str) -> tuple[dist.TCPStore, int]:
    """Where the ranks meet, on rank 0's host, and its port. It listens on `address` alone if that is one of this host's."""
    try:
        listening = socket.create_server((address, 0))
    except OSError:
        listening = socket.create_server(("", 0))
    port = listening.getsockname()[1]
    store = dist.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    return store, port


def join(world: World, store: dist.Store | int, phase: Phase = lambda name: nullcontext()) -> Ranks:
    """Meet the other ranks at rank 0's `store`, or at its port. Raises RankLost if one does not come.

    `phase` accounts the time of a block: `wait` for the slowest rank, `communicate` once all are there.
    """
    try:
        patience = float(os.environ.get(_PATIENCE) or _PATIENCE_S)
    except ValueError:
        raise InputError(_PATIENCE, f"{os.environ[_PATIENCE]!r} is no number", "Give seconds, or leave it unset") from None
    if (interface := _interface_towards(world.address)) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        limit = timedelta(seconds=min(patience, _JOINING_S))
        if isinstance(store, int):
            store = dist.TCPStore(world.address, store, is_master=False, timeout=limit)
        store.set_timeout(limit)
        dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size, timeout=timedelta(seconds=patience))
    except RuntimeError as error:
        raise RankLost(f"rank {world.rank}: not all ranks have met: {_short(str(error))}") from None
    return _Joined(world, patience, phase)


def _interface_towards(address: str) -> str | None:
    """The network interface by which this host reaches another: the host's own name may stand for none that others know."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                try:
                    answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                except OSError:
                    continue
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    except OSError:
        pass
    return None


def _short(words: str) -> str:
    """The fact of one of torch's messages: without the place in its source, the advice and the stack."""
    last = words.strip().splitlines()[-1].partition("Exception raised")[0].partition(". This is typically")[0]
    return re.sub(r"^\[\S+:\d+\] ", "", last)[:200]


class _TensorsApart(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        self.tensors.append(value.detach().contiguous())
        return len(self.tensors) - 1


class _TensorsBack(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: int) -> torch.Tensor:
        return self._tensors[number]


def _packed(value: Any) -> tuple[bytes, list[torch.Tensor]]:
    """A value without its tensors, and these."""
    file = io.BytesIO()
    pickler = _TensorsApart(file)
    pickler.dump(value)
    return file.getvalue(), pickler.tensors


def _unpacked(packed: bytes, tensors: list[torch.Tensor]) -> Any:
    return _TensorsBack(io.BytesIO(packed), tensors).load()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's memory, as every backend takes it."""
    flat = tensor.reshape(-1)
    return (torch.view_as_real(flat) if flat.is_complex() else flat).view(torch.uint8)
