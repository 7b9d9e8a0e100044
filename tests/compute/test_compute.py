"""Devices are taken as asked for or refused, and batches fit the memory."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from verglas.compute import memory
from verglas.compute.device import choose_device, prepare_for_threads, threads_beside, use_threads
from verglas.compute.memory import batch_size, budget, free_bytes, total_bytes
from verglas.errors import InputError


def test_a_card_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="cuda"):
        choose_device(f"cuda:{torch.cuda.device_count()}")


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        choose_device(name)


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    assert use_threads(1) == 1 == torch.get_num_threads()
    torch.set_num_threads(before)


def test_cores_beside_a_card_are_left_to_others() -> None:
    assert [threads_beside(torch.device("cpu"), cores) for cores in (1, 2, 64)] == [1, 2, 64]
    assert [threads_beside(torch.device("cuda"), cores) for cores in (1, 2, 6, 16, 64)] == [1, 1, 3, 8, 8]


def test_batches_fit_the_memory() -> None:
    cpu = torch.device("cpu")
    assert batch_size(1, cpu, at_most=7) == 7
    assert batch_size(1 << 60, cpu, at_most=7) == 1
    assert 1 <= batch_size(free_bytes(cpu) // 10, cpu, at_most=100) <= 8
    assert free_bytes(cpu) < total_bytes(cpu)


def test_batches_do_not_follow_the_free_memory_while_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "total_bytes", lambda _: 1000)
    for free, half in ((1000, 500), (800, 500), (625, 500), (624, 312), (100, 50)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        assert budget(cpu, 0.5) == half
        assert batch_size(10, cpu, at_most=1000, reserved=20) == (half - 20) // 10


@pytest.mark.parametrize("place", ["second version", "second version, further up", "first version"])
def test_a_cgroup_s_limit_is_the_memory_that_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """As a batch system sets it for a step of a job, or a container for all that is in it."""
    cpu, first = torch.device("cpu"), place == "first version"
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / "own")
    whole = total_bytes(cpu)
    mine = "/slurm/job_1/step_0\n"
    (tmp_path / "own").write_text(f"1:name=systemd:/a:b\n4:hugetlb,memory:{mine}0::/\n" if first else f"nothing known\n\n0::{mine}")
    own = tmp_path / ("memory" if first else "") / "slurm/job_1/step_0"
    own.mkdir(parents=True)
    folder = own.parent if "further" in place else own
    limit, used, total = ("limit_in_bytes", "usage_in_bytes", "total_") if first else ("max", "current", "")
    for given, found in (("4096000\n", 4096000), (f"{2**63 - 4096}\n" if first else "max\n", whole)):
        (folder / f"memory.{limit}").write_text(given)
        (folder / f"memory.{used}").write_text("196000\n")
        (folder / "memory.stat").write_text(f"anon 96000\nfile 100000\n{total}active_file 30000\n{total}inactive_file 70000\n")
        assert total_bytes(cpu) == found
        assert free_bytes(cpu) == 4000000 if found < whole else free_bytes(cpu) > 4096000
    (folder / f"memory.{limit}").write_text("4096000\n")
    (folder / "memory.stat").unlink()
    assert total_bytes(cpu) == free_bytes(cpu) == 4096000


@pytest.mark.gpu
def test_many_threads_may_use_the_card_s_linear_algebra_at_once() -> None:
    card = torch.device("cuda")
    prepare_for_threads(card)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: torch.linalg.eigvalsh(n * torch.eye(2, device=card)).sum().item(), range(1, 20)))
    assert found == [2.0 * n for n in range(1, 20)]
