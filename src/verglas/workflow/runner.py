"""The runner: gives one job a folder, runs it in a child process, and judges it by what it left.

    stage   inputs hashed, folder found or made and locked, what an earlier run left there sorted out
    run     the child works; its output is kept, its stop wished for or enforced
    judge   outputs read and measured in a fresh child, verdict, record.json, exit file, pipeline

Only this module says PASS, and only by files and by what the system reports of the child: never by what the job says of itself.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from verglas.errors import InputError, VerglasError
from verglas.jobs.declaration import JobType
from verglas.project.jobfiles import (
    ABORT_NOW,
    clear_exit_files,
    exit_file,
    leave_exit_file,
    note_command,
    write_job_star,
    write_repeat_script,
)
from verglas.project.project import Project
from verglas.records.lock import FolderLock
from verglas.records.machine import machine, software, usable_cores
from verglas.records.meters import bytes_left
from verglas.records.record import FAIL, PASS, UNCHECKED, Record
from verglas.records.ticket import Ticket, claim_ticket, read_ticket
from verglas.records.verdict import Evidence, check_results, judge
from verglas.workflow import inputs as origins
from verglas.workflow.engine import EXIT_ABORTED, EXIT_BAD_INPUT, carry_out, preload
from verglas.workflow.enter import enter_job, job_options, leave_job
from verglas.workflow.evidence import changes_of, look_at_outputs
from verglas.workflow.folder import Place, find_place, go_back, iterations_in, past_runs, sort_out
from verglas.workflow.line import Line
from verglas.workflow.process import call_in_child
from verglas.workflow.request import JobRequest, fingerprint
from verglas.workflow.screen import Screen
from verglas.workflow.supervise import Run, supervise

EXIT_CODES = {PASS: 0, FAIL: 1, UNCHECKED: 4}


@dataclass
class Outcome:
    """How a job ended: its folder, its record, and the exit code for the shell."""

    folder: Path
    record: Record
    exit_code: int


def run_job(request: JobRequest, screen: Screen | None = None, line: Line | None = None) -> Outcome:
    """Run one job and judge it, with the ranks at the other end of `line` where there are any.

    Raises InputError when nothing could be started; once a folder is taken, a record tells all.
    """
    screen = screen or Screen(None)
    began = time.monotonic()
    if line is not None and request.relion is not None:
        raise InputError("--engine relion", "starts its own ranks", "Start verglas once, with --ranks N")
    request.check_inputs()
    entries = describe(request)
    print_of = fingerprint(request, entries)
    project = Project.here()
    place = find_place(request, entries, print_of, project)
    problems = origins.origin_problems(entries, place.folder if place.exists else None)
    folder = place.make(request.declared, project)
    lock = FolderLock(folder)
    try:
        record = new_record(request, place, entries, print_of)
        _note_queue(record, claim_ticket(folder))
        record.write(folder)  # before anything else happens in the folder
        job = _Running(request, place, folder, record, lock, project, screen, began, line)
        return job.run(problems)
    finally:
        lock.release()


def describe(request: JobRequest) -> list[dict[str, Any]]:
    """The request's inputs with their digests. Raises InputError for one that can't be read."""
    try:
        found: list[dict[str, Any]] = call_in_child(origins.describe_inputs, origins.request_files(request))
    except RuntimeError as error:
        raise InputError("inputs", str(error)) from None
    return found


def new_record(request: JobRequest, place: Place, entries: list[dict[str, Any]], print_of: str) -> Record:
    """The record of a run that begins in a folder that is made. A run that goes on keeps the job's alias and step."""
    declared, params, before, folder = request.declared, request.params, place.record, place.folder
    assert folder is not None
    return Record(
        type=declared.name,
        name=place.name or folder.name,
        alias=request.alias or (before.alias if before else None),
        step=request.step or (before.step if before else None),
        description=declared.summary,
        engine=request.engine,
        relion=asdict(request.relion) if request.relion is not None else {},
        command=request.command(None if place.name else folder),
        working_directory=str(Path.cwd()),
        started=now(),
        params=params.model_dump(mode="json"),
        seed=params.random_seed,
        fingerprint=print_of,
        inputs=entries,
        previous=past_runs(place.record),
        resources=_resources(request),
    )


def _resources(request: JobRequest) -> dict[str, Any]:
    """Ranks, threads of each and device: of our engine, or of RELION, which takes no GPU unless it is told to."""
    taken = {"ranks": 1, "threads": request.params.threads or usable_cores(), "device": request.params.device}
    if request.relion is not None:
        device = "cuda" if "--gpu" in request.relion.extra else "cpu"
        taken = {"ranks": request.relion.ranks, "threads": request.relion.threads, "device": device}
    return {**taken, "gpus": 0, "pid": os.getpid()}


def _note_queue(record: Record, ticket: Ticket | None) -> None:
    """Put into the record how the run came through a cluster's queue, if it did."""
    if ticket is not None:
        record.queue = {"id": ticket.id, "submit": ticket.submit}
        record.queue_wait_s = max(datetime.fromisoformat(record.started).timestamp() - ticket.submitted, 0.0)


@dataclass
class _Running:
    """One run in its folder, from the staged inputs to the verdict."""

    request: JobRequest
    place: Place
    folder: Path
    record: Record
    lock: FolderLock
    project: Project | None
    screen: Screen
    began: float
    line: Line | None = None
    kept: dict[str, str] = field(default_factory=dict)

    @property
    def declared(self) -> JobType:
        return self.request.declared

    def run(self, input_problems: list[str]) -> Outcome:
        """Stage, run, judge. An error of the runner itself, such as a full disk, is a FAIL too."""
        try:
            self.stage(input_problems)
            self.record.phases = {"staging": time.monotonic() - self.began}
            run = supervise(self._work, self.folder, self.record, self.screen, self.request.time_limit, self.line, self._prepared)
            return self.judge(run, input_problems)
        except (OSError, RuntimeError, VerglasError) as error:
            return self._collapse(error)

    def _collapse(self, error: Exception) -> Outcome:
        """Leave what can still be left: without it the record says `running` and nobody holds the lock, which reads as FAIL as well."""
        record = self.record
        record.verdict, record.reasons, record.state, record.finished = FAIL, [f"the runner failed: {error}"], "finished", now()
        record.metrics = {}
        try:
            leave_exit_file(self.folder, "failure")
            record.write(self.folder)
        except OSError:
            pass
        return Outcome(self.folder, record, EXIT_CODES[FAIL])

    def stage(self, input_problems: list[str]) -> None:
        """Sort out what an earlier run left, and leave the files that say what runs here."""
        request, record, folder = self.request, self.record, self.folder
        clear_exit_files(folder)
        record.host, record.software = machine(), software()
        if request.relion is not None:
            record.software["relion"] = request.relion.version
        outputs = [spec.path for spec in self.declared.outputs(request.params)]
        if request.iteration is not None:
            go_back(folder, request.iteration, outputs)
        self.kept = call_in_child(sort_out, folder, outputs, self.place.vouched(record))
        continues = self.place.exists
        note_command(folder, record.command, continues)
        write_repeat_script(folder, record.command, Path.cwd())
        write_job_star(folder, self.declared.relion_number, job_options(request), continues)
        if self.project is not None and self.place.name:
            enter_job(self.project, self.place.name, request, self.declared)
        for problem in input_problems:
            self.screen.say(f"WARNING: {problem}; the verdict will be FAIL")
        if self.place.exists:
            self.screen.say(f"Going on in {folder}")
        record.write(folder)

    def _prepared(self) -> None:
        """Load what job and judge have in common."""
        if self.request.relion is None and not self.declared.light:
            preload()

    def _work(self, send: Any) -> int:
        given = {spec.name: self.request.inputs.get(spec.name, [] if spec.many else None) for spec in self.declared.inputs}
        return carry_out(self.declared, self.request.params, given, self.folder, send, self.line.world if self.line else None)

    def judge(self, run: Run, input_problems: list[str]) -> Outcome:
        """Read what was left, decide, and complete record, exit file and pipeline."""
        start, record, folder = time.monotonic(), self.record, self.folder
        record.phase = "judging"
        record.write(folder)
        evidence = Evidence(
            exit_code=run.exit_code,
            exit_file=exit_file(folder),
            signal=run.signal,
            stopped=run.stopped,
            error=run.error,
            items=run.items,
            checks=self.declared.checks(self.request.params),
        )
        note = ""
        if evidence.exit_code == 0 and not evidence.stopped:
            record.outputs, note = look_at_outputs(
                evidence, self.declared, self.request.params, folder, run.left, self.lock.start_ns, self.kept
            )
        evidence.input_problems = input_problems + changes_of(record.inputs)
        record.verdict, record.reasons = judge(evidence)
        self._fill(run, evidence, note)
        code = self._exit_code(run)
        leave_exit_file(folder, "aborted" if code == EXIT_ABORTED else "failure" if record.verdict == FAIL else "success")
        (folder / ABORT_NOW).unlink(missing_ok=True)
        record.usage["apparent_bytes"], record.usage["allocated_bytes"] = bytes_left(folder)
        record.phases["judging"] = time.monotonic() - start
        record.state, record.phase, record.finished = "finished", "", now()
        record.write(folder)
        if self.project is not None and self.place.name:
            leave_job(self.project, self.place.name, self.request, self.declared, record, aborted=code == EXIT_ABORTED)
        return Outcome(folder, record, code)

    def _fill(self, run: Run, evidence: Evidence, note: str) -> None:
        record = self.record
        _note_queue(record, read_ticket(self.folder))  # its number may have come after the run began
        record.items, record.facts = run.items, run.facts
        notes = (run.items or {}).get("notes", {})
        record.iterations = notes.get("iterations") or run.facts.get("iterations") or iterations_in(self.folder)
        record.usage = run.usage
        record.resources["gpus"] = len(run.facts.get("gpus_used", []))
        record.resources |= run.facts.pop("ranks", {})
        record.exit = {"code": run.exit_code, "signal": run.signal, "file": evidence.exit_file}
        metrics = evidence.metrics or {}
        record.metrics, record.rejected_metrics = ({}, metrics) if record.verdict == FAIL else (metrics, {})
        record.note = "" if record.verdict == FAIL else self._with_engine(note)
        record.checks = check_results(evidence)

    def _with_engine(self, note: str) -> str:
        relion = self.request.relion
        return note if relion is None else ", ".join(part for part in (note, f"by RELION {relion.version}") if part)

    def _exit_code(self, run: Run) -> int:
        if run.stopped:
            return EXIT_ABORTED
        if run.exit_code == EXIT_BAD_INPUT:
            return EXIT_BAD_INPUT
        return EXIT_CODES[self.record.verdict or FAIL]


def now() -> str:
    """The moment, with the local zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
