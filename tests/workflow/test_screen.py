"""What a log shows of a running job's progress."""

import io
from typing import Any

import pytest

from verglas.workflow import screen
from verglas.workflow.screen import Log, Screen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    return now


def lines(clock: list[float], total: int, seconds_each: float) -> list[str]:
    """The log of three items."""
    log, shown = io.BytesIO(), Screen(None)
    event: dict[str, Any] = {"what": "movies", "total": total, "done": 0, "state": "start"}
    shown.progress(event, Log(log))
    for done in (1, 2, 3):
        clock[0] += seconds_each
        shown.progress(event | {"done": done, "state": "going"}, Log(log))
    shown.progress(event | {"done": 3, "state": "end"}, Log(log))
    return log.getvalue().decode().splitlines()


def test_a_log_tells_rate_and_time_left(clock: list[float]) -> None:
    assert lines(clock, total=10, seconds_each=2.0) == [
        "movies: 1/10, 2 s each, 18.0 s left",
        "movies: 2/10, 2 s each, 16.0 s left",
        "movies: 3/10, 2 s each, 14.0 s left",
        "movies: 3/10, 2 s each, 6.0 s taken",
    ]


def test_where_no_one_knows_the_end_no_time_left_is_told(clock: list[float]) -> None:
    assert lines(clock, total=0, seconds_each=31.0) == [
        "movies: 1, 31 s each",
        "movies: 2, 31 s each",
        "movies: 3, 31 s each",
        "movies: 3, 31 s each, 1m33s taken",
    ]
