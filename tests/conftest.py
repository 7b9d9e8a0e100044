"""Fixtures that every room's tests share."""

import os
import shutil
from pathlib import Path

import pytest
import torch


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
