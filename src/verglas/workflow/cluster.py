"""Jobs on a cluster: handed to its queue by a site's template, and waited for where a recipe needs them.

What runs on the node is the job's own command in the job's own folder, so it is locked, measured and judged there as anywhere. Here
the folder is made and described, the template filled, the script handed over, and the queue asked how things stand.

    queue_submit.script   the filled template
    queue.out, queue.err  what the queue and the template's own commands print; the job's run.out and run.err are beside them
    queue.json            the job's number in the queue
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from verglas.errors import InputError, VerglasError
from verglas.project.jobfiles import clear_exit_files, leave_exit_file, note, write_job_star, write_repeat_script
from verglas.project.project import Project
from verglas.records.lock import FolderLock
from verglas.records.record import FAIL, QUEUED, Record, read_record
from verglas.records.table import RUNNING, current_verdict
from verglas.records.ticket import TOKEN_VARIABLE, Ticket, read_ticket
from verglas.workflow.engine import EXIT_ABORTED
from verglas.workflow.enter import enter_job, job_options, leave_job
from verglas.workflow.folder import Place, find_place
from verglas.workflow.inputs import origin_problems
from verglas.workflow.request import JobRequest, fingerprint
from verglas.workflow.runner import EXIT_CODES, Outcome, describe, new_record, now
from verglas.workflow.screen import Screen
from verglas.workflow.template import Template, read_template

SCRIPT = "queue_submit.script"
_ASK = {"qsub": "qstat -f {id}", "bsub": "bjobs -noheader -o stat {id}"}
_ASK_SLURM = "squeue -h -o %T -j {id}"


@dataclass(frozen=True)
class Cluster:
    """Where and how jobs are handed to a queue. `submit` is given the script as its last word, by a shell, so `bsub <` works.

    `fields` fill the template beside those of the job. A job that is waited for has failed when it hasn't been in the queue for
    `grace_s` seconds without a finished record: so long may a shared file system take to show what the node wrote.
    """

    template: Path
    submit: str = "sbatch"
    ask: str | None = None  # None: by the name of the submitting program
    fields: dict[str, str] = field(default_factory=dict)
    grace_s: float = 60.0
    poll_s: float = 10.0  # between questions, less at first: many steps are short
    told: set[str] = field(default_factory=set)  # notes on the template that the user has read: once in a recipe, not at each step

    def ready(self, request: JobRequest) -> tuple[Template, dict[str, str]]:
        """The template, and the values of the fields that don't depend on the job's folder. Raises InputError for one without."""
        template, threads = read_template(self.template), request.params.threads
        ranks = request.relion.ranks if request.relion is not None else 1
        numbers = {"mpinodes": ranks, "nodes": 1}
        numbers |= {"threads": threads, "cores": ranks * threads, "dedicated": ranks * threads} if threads else {}
        known = {**{name: str(number) for name, number in numbers.items()}, **self.fields}
        template.check(known)
        program = shlex.split(self.submit)[0] if self.submit.strip() else "sbatch"
        if shutil.which(program) is None:
            raise InputError("--submit-with", f"{program} is not there to submit with", "Name the cluster's command: sbatch, qsub …")
        return template, known

    def asking(self, answer: str = "") -> list[str]:
        """The command that asks for a job's state; in a federation of clusters the one that took the job is asked."""
        words = shlex.split(self.ask or _ASK.get(Path(shlex.split(self.submit)[0]).name, _ASK_SLURM))
        elsewhere = re.search(r"on cluster (\S+)", answer)
        return [*words, "-M", elsewhere[1]] if elsewhere and self.ask is None else words


def submit_job(request: JobRequest, cluster: Cluster, screen: Screen | None = None) -> Outcome:
    """Hand one job to the queue. Raises InputError where nothing was handed over, and nothing made, because the request isn't sound."""
    screen = screen or Screen(None)
    template, known = cluster.ready(request)
    for text in template.notes:
        if text not in cluster.told:
            screen.say(f"NOTE: {text}")
        cluster.told.add(text)
    request.check_inputs()
    entries = describe(request)
    print_of = fingerprint(request, entries)
    project = Project.here()
    place = find_place(request, entries, print_of, project)
    for problem in origin_problems(entries, place.folder if place.exists else None):
        screen.say(f"WARNING: {problem}; the verdict will be FAIL")
    folder = place.make(request.declared, project)
    lock = FolderLock(folder)
    try:
        record = new_record(request, place, entries, print_of)
        ticket = Ticket(uuid4().hex, cluster.submit, cluster.asking(), time.time())
        script = template.fill({**known, **_of_the_folder(folder, ticket)})
        _prepare(request, place, folder, record, ticket, script, project)
    finally:
        lock.release()  # the node may begin before the queue has given its number
    return _hand_over(request, cluster, folder, record, ticket, screen)


def run_on_cluster(request: JobRequest, cluster: Cluster, screen: Screen) -> Outcome:
    """Hand one job to the queue and wait until it has ended."""
    outcome = submit_job(request, cluster, screen)
    return outcome if outcome.record.verdict == FAIL else wait_for(outcome.folder, request, cluster, screen)


def wait_for(folder: Path, request: JobRequest, cluster: Cluster, screen: Screen) -> Outcome:
    """Wait for a job in the queue. One that leaves it without a finished record is a FAIL, once the grace is over."""
    told, gone, began = "", None, time.monotonic()
    try:
        while True:
            record = _look(folder)
            if record is not None and record.state == "finished":
                return Outcome(folder, record, EXIT_ABORTED if record.exit.get("file") == "aborted" else EXIT_CODES[record.verdict or FAIL])
            verdict, reasons = current_verdict(folder, record) if record is not None else (RUNNING, ["its record can't be read now"])
            gone = (gone or time.monotonic()) if verdict == FAIL else None
            line = f"{'ended?' if verdict == FAIL else verdict}  {folder}  {'; '.join(reasons)}".rstrip()
            if line != told:
                screen.say(line)
                told = line
            if gone is not None and time.monotonic() - gone >= cluster.grace_s:
                return _give_up(folder, request, reasons)
            time.sleep(min(cluster.poll_s, 1 + (time.monotonic() - began) / 10))
    except KeyboardInterrupt:
        screen.say(f"{folder} stays in the queue; the same command waits for it again")
        raise SystemExit(EXIT_ABORTED) from None


def _of_the_folder(folder: Path, ticket: Ticket) -> dict[str, str]:
    """The fields that depend on the job's folder. The command is plain words, so that it is the same in every shell and in quotes."""
    here = folder.resolve()
    command = f"env {TOKEN_VARIABLE}={ticket.token} sh {shlex.quote(str(here / 'run_submit.script'))}"
    return {"name": f"{folder}/", "outfile": str(here / "queue.out"), "errfile": str(here / "queue.err"), "command": command}


def _prepare(request: JobRequest, place: Place, folder: Path, record: Record, ticket: Ticket, script: str, project: Project | None) -> None:
    """Describe the waiting job in its folder and in the project's graph."""
    from verglas.io.atomic import write_text

    record.state, record.phase, record.started = QUEUED, "", ""
    record.queue = {"id": None, "submit": ticket.submit}
    record.resources = {**record.resources, "threads": request.params.threads or 1, "pid": None}
    record.write(folder)
    ticket.write(folder)
    clear_exit_files(folder)
    for name in ("queue.out", "queue.err"):
        (folder / name).unlink(missing_ok=True)
    command = request.command(folder)
    command += ["--time-limit", f"{request.time_limit:g}"] if request.time_limit else []
    write_repeat_script(folder, command, Path.cwd())
    write_job_star(folder, request.declared.relion_number, job_options(request), place.exists)
    write_text(folder / SCRIPT, script)
    (folder / SCRIPT).chmod(0o755)
    if project is not None and place.name:
        enter_job(project, place.name, request, request.declared)


def _hand_over(request: JobRequest, cluster: Cluster, folder: Path, record: Record, ticket: Ticket, screen: Screen) -> Outcome:
    """Submit the script, and keep the number that the queue gives. From here on the record is the node's, unless there will be none."""
    command = f"{cluster.submit} {shlex.quote(str(folder / SCRIPT))}"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    answer = f"{done.stdout}{done.stderr}".strip()
    if done.returncode:
        last = answer.splitlines()[-1] if answer else f"exit code {done.returncode}"
        return _give_up(folder, request, [f"could not be submitted: {last}"])
    ticket.id, ticket.answer, ticket.ask = number_in(done.stdout), answer, cluster.asking(done.stdout)
    ticket.write(folder)
    note(folder, f" ++++ Submitted on {time.ctime()}\n ++++ with the following command(s): \n{command}\n{answer}\n ++++ ")
    record.queue["id"] = ticket.id
    if ticket.id is None:
        screen.say(f"WARNING: no job number in the answer of {cluster.submit}: {answer!r}; the queue can't be asked how the job stands")
    return Outcome(folder, record, 0)


def number_in(answer: str) -> str | None:
    """The job's number in what a queue says to a submission: a word alone, or what follows `job`; None where there is none."""
    lines = answer.strip().splitlines()
    if lines and len(lines[-1].split()) == 1:
        return lines[-1].strip().split(";")[0]
    found = re.search(r"\bjob\s+<?(\d+)", answer, re.IGNORECASE) or re.search(r"(\d+)", answer)
    return found[1] if found else None


def _look(folder: Path) -> Record | None:
    """The record as it is now; None while a shared file system doesn't give it."""
    try:
        os.listdir(folder)  # noqa: PTH208  has NFS look again
        return read_record(folder)
    except (OSError, VerglasError):
        return None


def _give_up(folder: Path, request: JobRequest, reasons: list[str]) -> Outcome:
    """Write down that the job failed without a word of its own; if it has finished after all, that stands."""
    lock = FolderLock(folder)
    try:
        record = read_record(folder)
        assert record is not None
        if record.state != "finished":
            record.state, record.phase, record.verdict, record.reasons, record.finished = "finished", "", FAIL, reasons, now()
            leave_exit_file(folder, "failure")
            ticket = read_ticket(folder)
            record.queue = {**record.queue, "id": ticket.id if ticket else None}
            record.write(folder)
            project, name = Project.here(), f"{folder}/"
            if project is not None and name in project.pipeline().processes:
                leave_job(project, name, request, request.declared, record, aborted=False)
        return Outcome(folder, record, EXIT_CODES[record.verdict or FAIL])
    finally:
        lock.release()
