"""Fixtures that several jobs' tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def here(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the folder of the module's `inputs`, and without the picture that takes longer than all the rest."""
    monkeypatch.chdir(inputs)
    monkeypatch.setattr("verglas.pictures.maps.draw_surface", lambda *_, **__: None)
    yield
