"""Where a running job is shown: a terminal with a live bar, a log with plain lines, or nowhere."""

from __future__ import annotations

import sys
import time
from typing import Any, BinaryIO, TextIO

from verglas.records.units import duration

_LOG_EVERY = 30.0  # seconds between plain progress lines; a tenth of the work makes one too


class Log:
    """A job's run.out or run.err, or no file. What a full disk doesn't take is lost, and the job is not stopped for it."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file

    def write(self, piece: bytes) -> None:
        """Append `piece`."""
        try:
            if self._file is not None:
                self._file.write(piece)
        except OSError:
            pass


class Screen:
    """Shows what a job says. `stream` is None for nowhere; progress also goes as plain lines into the job's own log."""

    def __init__(self, stream: TextIO | None = sys.stdout) -> None:
        self._stream = stream
        self._live = stream is not None and stream.isatty()
        self._bar = ""
        self._rate = _Rate()

    def text(self, piece: bytes, log: Log) -> None:
        """Pass on what the job printed."""
        log.write(piece)
        self._print(piece.decode(errors="replace"))

    def say(self, line: str) -> None:
        """A line of the runner's own."""
        self._print(line + "\n")

    def progress(self, event: dict[str, Any], log: Log) -> None:
        """Move the bar, and log a plain line at every tenth and every half minute."""
        line, due = self._rate.line(event)
        if self._live:
            self._draw("" if event["state"] == "end" else line)
        if due:
            log.write(line.encode() + b"\n")
            if not self._live:
                self._print(line + "\n")

    def close(self) -> None:
        """Leave no bar behind."""
        if self._live:
            self._draw("")

    def _print(self, text: str) -> None:
        if self._stream is None:
            return
        bar = self._bar
        if self._live:
            self._draw("")
        self._stream.write(text)
        self._stream.flush()
        if self._live and text.endswith("\n"):
            self._draw(bar)

    def _draw(self, bar: str) -> None:
        assert self._stream is not None
        if bar != self._bar:
            self._stream.write("\r\x1b[2K" + bar)
            self._stream.flush()
            self._bar = bar


class _Rate:
    """Turns progress events into lines with rate and time left."""

    def __init__(self) -> None:
        self._what, self._start, self._logged, self._tenth = "", 0.0, 0.0, -1

    def line(self, event: dict[str, Any]) -> tuple[str, bool]:
        """The line for an event, and whether a log should have it."""
        now, done, total = time.monotonic(), event["done"], event["total"]
        if event["what"] != self._what or event["state"] == "start":
            self._what, self._start, self._logged, self._tenth = event["what"], now, now, -1
        tenth = 10 * done // total if total else 0
        last = event["state"] == "end"
        due = last or (done > 0 and tenth > self._tenth and now - self._logged > 1) or now - self._logged > _LOG_EVERY
        if due:
            self._logged, self._tenth = now, tenth
        seconds = now - self._start
        rate = done / seconds if seconds > 0 else 0.0
        text = f"{event['what']}: {done}/{total}" if total else f"{event['what']}: {done}"
        if done and seconds > 0.5:
            text += f", {_number(rate)}/s" if rate >= 1 else f", {_number(1 / rate)} s each"
            if last or total:
                text += f", {duration(seconds)} taken" if last else f", {duration((total - done) / rate)} left"
        return text, due


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
