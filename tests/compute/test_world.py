"""Each launcher's variables say which of how many processes this one is, and where they meet."""

import pytest

from verglas.compute.world import World, first_host, world_here
from verglas.errors import InputError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "PMIX_NAMESPACE": "prte-1"}
SRUN = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "77"}


def test_started_alone() -> None:
    assert world_here({}) == World() and world_here({}).size == 1
    assert world_here({"WORLD_SIZE": "8"}).size == 1  # says nothing without a rank
    assert world_here({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) == World()


def test_a_batch_script_is_one_process() -> None:
    """It has SLURM_NTASKS, and SLURM_PROCID 0, though nothing but itself was started."""
    assert world_here({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "77"}) == World()


def test_torchrun() -> None:
    assert world_here(TORCHRUN) == World(3, 4, 1, "node1", 29500)
    restarted = world_here({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert restarted.store and restarted.attempt == 2
    assert world_here({**SRUN, **MPIRUN, **TORCHRUN}).rank == 3  # a torchrun on each host, started by srun


def test_mpirun_on_one_host_needs_no_address() -> None:
    world = world_here({**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"})
    assert (world.rank, world.size, world.local_rank, world.address) == (1, 2, 1, "127.0.0.1")
    assert world.port == world_here({**MPIRUN, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}).port
    assert world.port != world_here({**MPIRUN, "PMIX_NAMESPACE": "prte-2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}).port


def test_mpirun_on_several_hosts_asks_for_the_address() -> None:
    with pytest.raises(InputError, match="mpirun -x MASTER_ADDR=HOST"):
        world_here({**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
    assert world_here({**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "MASTER_ADDR": "node1"}).address == "node1"


def test_srun_meets_at_the_first_host() -> None:
    world = world_here({**SRUN, "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"})
    assert (world.rank, world.size, world.address) == (2, 4, "gpu03")
    assert world_here({**SRUN, "SLURM_STEP_NODELIST": "gpu03", "SLURM_STEP_TASKS_PER_NODE": "4"}).address == "127.0.0.1"


@pytest.mark.parametrize("hosts,first", [("a", "a"), ("a,b", "a"), ("gpu[03-05,9],c", "gpu03"), ("r1n[7,9]-ib", "r1n7-ib")])
def test_first_of_slurm_s_hosts(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize("change", [{"RANK": "4"}, {"RANK": "x"}, {"WORLD_SIZE": "-1"}, {"MASTER_PORT": "0"}])
def test_variables_that_cannot_be(change: dict[str, str]) -> None:
    with pytest.raises(InputError):
        world_here({**TORCHRUN, **change})
