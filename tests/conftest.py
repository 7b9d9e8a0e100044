"""Fixtures that every room's tests share."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

_TOGETHER = "tests/interop/"  # its tests share a project that takes minutes to make


def pytest_configure() -> None:
    """Workers beside each other take a core each."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay together, since they share fixtures."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _TOGETHER if nodeid.startswith(_TOGETHER) else nodeid.partition("::")[0]

    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    relion = shutil.which("relion_refine")
    for item in items:
        if item.get_closest_marker("relion") and not relion:
            item.add_marker(pytest.mark.skip(reason="RELION is not on the PATH"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real test data, which is not part of the repository."""
    shared = Path(os.environ.get("VERGLAS_SHARED", Path(__file__).parents[2] / "shared"))
    if not (shared / "data").is_dir():
        pytest.skip(f"no real test data at {shared / 'data'} (set VERGLAS_SHARED)")
    return shared / "data"
