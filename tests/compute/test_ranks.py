"""Ranks add up, collect and are told; one that is late or dead is named."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ranks_for_tests import on_ranks
from verglas.compute.memory import free_bytes, share_memory
from verglas.compute.ranks import ALONE, Ranks, join
from verglas.compute.world import World
from verglas.errors import InputError, RankLost


@dataclass
class Nested:
    """Something as an engine's state is."""

    name: str
    parts: list[dict[str, torch.Tensor]]
    scale: torch.Tensor


def test_alone_everything_is_given_back() -> None:
    values = torch.arange(5.0)
    ALONE.sum_up([values])
    assert ALONE.first and ALONE.size == 1
    assert torch.equal(ALONE.share(values), values) and torch.equal(values, torch.arange(5.0))
    assert ALONE.everyones(3) == ALONE.collected(3) == [3] and ALONE.told(lambda: "x") == "x"


def _talk(ranks: Ranks) -> dict[str, object]:
    own = ranks.rank + 1.0
    sums = [torch.full((3, 2), own), torch.tensor(own, dtype=torch.float64), torch.full((2,), own * 1j)]
    ranks.sum_up(sums)
    nested = Nested("a", [{"flags": torch.tensor([True, False]), "none": torch.empty(0, 3)}], torch.tensor(1 / 3, dtype=torch.float64))
    told = ranks.told(lambda: nested if ranks.first else pytest.fail("only rank 0 makes it"))
    assert (told.name, told.parts[0]["flags"].tolist(), told.scale.item()) == ("a", [True, False], 1 / 3)
    assert told.parts[0]["none"].shape == (0, 3)
    return {
        "share": ranks.share(torch.arange(10)).tolist(),
        "sums": [tensor.tolist() for tensor in sums],
        "everyones": ranks.everyones(ranks.rank * 10),
        "collected": ranks.collected(ranks.rank),
        "turned": ranks.told(lambda: torch.arange(6).view(2, 3).T).tolist(),  # not contiguous
    }


def test_three_ranks_share_add_up_and_tell(tmp_path: Path) -> None:
    found = on_ranks(3, tmp_path, _talk)
    assert [row for rank in range(3) for row in found[rank]["share"]] == list(range(10))
    assert max(len(each["share"]) for each in found.values()) - min(len(each["share"]) for each in found.values()) <= 1
    assert found[0]["sums"] == [[[6.0, 6.0]] * 3, 6.0, [6j, 6j]]
    assert all(each["everyones"] == [0, 10, 20] for each in found.values())
    assert [found[rank]["collected"] for rank in range(3)] == [[0, 1, 2], [], []]
    assert all(each["turned"] == [[0, 3], [1, 4], [2, 5]] for each in found.values())


def _settle(ranks: Ranks) -> tuple[int, int]:
    ranks.settle("cpu", 0)
    return torch.get_num_threads(), free_bytes(torch.device("cpu"))


def test_ranks_of_a_host_share_its_cores_and_its_memory(tmp_path: Path) -> None:
    free = free_bytes(torch.device("cpu"))
    cores = len(os.sched_getaffinity(0))
    for threads, memory in on_ranks(2, tmp_path, _settle).values():
        assert threads == max(1, cores // 2)
        assert 0.3 * free < memory < 0.6 * free
    share_memory(1)


def _what_is_lost(ranks: Ranks) -> str:
    try:
        ranks.sum_up([torch.zeros(3)])
    except RankLost as error:
        return str(error)
    return "nothing"


def test_a_timeout_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGLAS_RANKS_TIMEOUT", "soon")
    with pytest.raises(InputError, match="VERGLAS_RANKS_TIMEOUT: 'soon' is no number"):
        join(World(0, 2, 0), 1)


def test_a_rank_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERGLAS_RANKS_TIMEOUT", "1")

    def work(ranks: Ranks) -> str:
        if ranks.rank == 1:
            time.sleep(60)
        return _what_is_lost(ranks)

    found = on_ranks(3, tmp_path, work, missing=1)
    assert "rank 1 on" in found[0] and "did not answer within 1 s" in found[0]
    assert "rank 2 has lost the others" in found[2]


def test_a_rank_that_dies_is_named(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> str:
        victim = ranks.everyones(os.getpid())[1]
        if ranks.first:
            os.kill(victim, signal.SIGKILL)
        elif ranks.rank == 1:
            time.sleep(60)
        return _what_is_lost(ranks)

    found = on_ranks(3, tmp_path, work, missing=2)  # rank 2 learns of it when rank 0 ends
    assert "rank 1 on" in found[0] and "is gone" in found[0]
