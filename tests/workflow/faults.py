"""Faults put into a real job, and the job run with them: in this process, or by the command line in another.

python faults.py FAULT job JoinStar --files a.star b.star --out DIR
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from verglas.jobs.declaration import Check, Items, Job, JobType, Problem

Fault = Callable[[JobType], JobType]


class Wrapped:
    """A job whose phases call `at(name, job)` when they begin."""

    def __init__(self, job: Job, at: Callable[[str, Job], None]) -> None:
        self._job, self._at = job, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def phase(self, name: str) -> Any:
        self._at(name, self._job)
        return self._job.phase(name)


def in_phase(wanted: str, act: Callable[[Job], None]) -> Fault:
    def at(name: str, job: Job) -> None:
        if name == wanted:
            with job.phase(name):
                act(job)

    return lambda declared: replace(declared, run=lambda job: declared.run(Wrapped(job, at)))


def after(act: Callable[[Job, Items], Items | None]) -> Fault:
    """Something wrong after the work is done well."""

    def wrap(declared: JobType) -> JobType:
        def run(job: Job) -> Items:
            items = declared.run(job)
            return act(job, items) or items

        return replace(declared, run=run)

    return wrap


def pause(job: Job) -> None:
    """Tell that it waits, and wait to be killed or stopped."""
    (job.out / "paused").write_text(str(os.getpid()))
    for _ in range(3000):
        time.sleep(0.02)
        job.check_stop()


def die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def output(job: Job) -> Path:
    return job.out / "join_particles.star"


def metrics(**changed: Any) -> Fault:
    return lambda declared: replace(declared, measure=lambda out, params: {**declared.measure(out, params), **changed})


def _do(act: Callable[[Job], Any]) -> Fault:
    def and_keep(job: Job, items: Items) -> None:
        act(job)

    return after(and_keep)


def _truncate(job: Job) -> None:
    text = output(job).read_text().rstrip()
    output(job).write_text(text[: text.rindex(" ")])


def _old(job: Job) -> None:
    os.utime(output(job), (1, 1))


def _raise(error: Exception) -> Callable[..., Any]:
    def act(*_: Any) -> Any:
        raise error

    return act


FAULTS: dict[str, Fault] = {
    "none": lambda declared: declared,
    "pause_read": in_phase("read", pause),
    "pause_compute": in_phase("compute", pause),
    "pause_write": in_phase("write", pause),
    "die_read": in_phase("read", die),
    "die_compute": in_phase("compute", die),
    "die_write": in_phase("write", die),
    "die_judging": lambda declared: replace(declared, measure=die),
    "pause_judging": lambda declared: replace(declared, measure=lambda out, params: ((out / "paused").touch(), time.sleep(60))[1]),
    "segfault": in_phase("compute", lambda job: os.kill(os.getpid(), signal.SIGSEGV)),
    "wrong_exit": _do(lambda job: os._exit(7)),
    "exit_file_missing": _do(lambda job: os._exit(0)),
    "exception": in_phase("compute", _raise(ZeroDivisionError("division by zero"))),
    "out_of_memory": in_phase("compute", _raise(MemoryError())),
    "output_missing": _do(lambda job: output(job).unlink()),
    "output_empty": _do(lambda job: output(job).write_text("")),
    "output_cut": _do(_truncate),
    "output_no_rows": _do(lambda job: output(job).write_text("data_particles\n\nloop_\n_rlnImageName #1\n")),
    "output_old": _do(_old),
    "not_written_but_touched": lambda declared: replace(declared, run=lambda job: Items("rows", 4, 4)),
    "nothing_done": after(lambda job, items: Items("rows", 0, 0)),
    "all_failed": after(lambda job, items: Items("rows", 4, failed=4, problems=[Problem("a", "bad")])),
    "counts": after(lambda job, items: Items("rows", 5, done=4)),
    "counts_negative": after(lambda job, items: Items("rows", 4, done=5, skipped=-1)),
    "measure_raises": lambda declared: replace(declared, measure=_raise(ValueError("no such column"))),
    "metric_out_of_range": metrics(rows=1),
    "metric_nan": metrics(rows=float("nan")),
    "metric_none": metrics(rows=None),
    "metric_gone": lambda declared: replace(declared, checks=lambda params: (Check("resolution", 1, 2, "a table"),)),
    "input_changed": _do(lambda job: job.inputs["files"][0].open("a").write("# more\n")),
    "input_gone": _do(lambda job: job.inputs["files"][0].unlink()),
    "ignores_stop": in_phase("compute", lambda job: ((job.out / "paused").write_text(str(os.getpid())), time.sleep(60))[1]),
    "file_too_large": in_phase("write", lambda job: _limit_files()),
    "unchecked": lambda declared: replace(declared, checks=lambda params: ()),
}


def _limit_files() -> None:
    """The kernel refuses to let a file grow beyond 100 bytes, as it does on a full quota."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def _pause_staging() -> None:
    from verglas.workflow import runner

    def stage(self: Any, problems: list[str]) -> None:
        (self.folder / "paused").touch()
        time.sleep(60)

    runner._Running.stage = stage  # type: ignore[method-assign]


def _foreign_output_before_judging() -> None:
    from verglas.workflow import runner

    judge = runner._Running.judge

    def swap_and_judge(self: Any, *arguments: Any) -> Any:
        target = self.folder / "join_particles.star"
        shutil.copy(target, str(target) + ".new")
        Path(str(target) + ".new").replace(target)
        return judge(self, *arguments)

    runner._Running.judge = swap_and_judge  # type: ignore[method-assign]


if __name__ == "__main__":
    from verglas.cli.main import main
    from verglas.jobs import joinstar

    fault = sys.argv.pop(1)
    if fault == "pause_staging":
        _pause_staging()
    else:
        joinstar.JOB = FAULTS[fault](joinstar.JOB)
    main()
