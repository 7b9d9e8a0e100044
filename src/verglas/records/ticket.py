"""A job that was handed to a cluster's queue: what is known of it there, and how it stands now.

`queue.json` in the job's folder is written by the submitting side alone, `record.json` from then on by the node alone, so neither
waits for the other's lock: not every shared file system carries locks from one machine to another.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from verglas.records.record import Record

TICKET = "queue.json"
TOKEN_VARIABLE = "VERGLAS_SUBMISSION"  # by it the run on the node shows that the ticket is its own
WAITS, RUNS, ENDED, UNKNOWN = "queued", "running", "ended", "unknown"

_ANSWER_WITHIN = 10.0  # seconds that a queue may take to answer
_SLOW = 2.0  # seconds after which a failure to answer is taken for one of the queue, not of one question
_ASK_AGAIN_AFTER = 60.0  # seconds after such a failure
_LISTED_WITHIN = 5.0  # seconds from submission until every queue lists the job
_SUBMITTED_WITHIN = 600.0  # seconds for the submission itself; one without a number after that was broken off

# Slurm's long and short words, LSF's words, and the letters of PBS.
_WORDS = {
    RUNS: "RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING R CG S ST SI SO RS RUN USUSP SSUSP PROV E B U",
    WAITS: "PENDING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT RESV_DEL_HOLD PD CF RQ RF RH SE RD PEND PSUSP WAIT Q H W T",
    ENDED: "COMPLETED CANCELLED FAILED TIMEOUT PREEMPTED NODE_FAIL BOOT_FAIL DEADLINE OUT_OF_MEMORY REVOKED LAUNCH_FAILED RECONFIG_FAIL "
    "CD CA F TO PR NF BF DL OOM RV DONE EXIT C X",
}
_GONE = re.compile(r"invalid job id|unknown job id|jobs? do(es)? not exist|job <.*> is not found|job has finished", re.IGNORECASE)
_silent: dict[str, tuple[float, str]] = {}  # programs that didn't answer, when and why: a table of many jobs doesn't wait for each


@dataclass
class Ticket:
    """A submission. `ask` is the command that asks for its state, with its number for `{id}`; `id` is None until the queue gave one."""

    token: str
    submit: str
    ask: list[str]
    submitted: float  # seconds since 1970
    id: str | None = None
    answer: str | None = None  # what the queue said to the submission

    def write(self, folder: Path) -> None:
        """Write `queue.json` into `folder`, whole or not at all."""
        from verglas.io.atomic import write_json

        write_json(folder / TICKET, asdict(self))

    @property
    def is_own(self) -> bool:
        """Whether this process was started by this submission."""
        return os.environ.get(TOKEN_VARIABLE) == self.token


def read_ticket(folder: Path) -> Ticket | None:
    """The ticket in `folder`; None where there is none that can be read."""
    try:
        return Ticket(**json.loads((folder / TICKET).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def claim_ticket(folder: Path) -> Ticket | None:
    """The ticket of the run that begins in `folder`; that of an earlier submission is removed. The folder's lock is held."""
    ticket = read_ticket(folder)
    if ticket is not None and ticket.is_own:
        return ticket
    (folder / TICKET).unlink(missing_ok=True)
    return None


def in_queue(folder: Path, record: Record) -> Ticket | None:
    """The ticket of another submission by which `folder` is or may be worked in, now or later; None where there is none."""
    ticket = None if record.state == "finished" else read_ticket(folder)
    return ticket if ticket is not None and not ticket.is_own and standing(ticket)[0] != ENDED else None


def standing(ticket: Ticket) -> tuple[str, str]:
    """How a submission stands in its queue, and that in words. A queue that can't be asked, or isn't understood, is UNKNOWN."""
    age = time.time() - ticket.submitted
    if ticket.id is None:
        if ticket.answer is None and age > _SUBMITTED_WITHIN:
            return ENDED, "its submission was broken off"
        return UNKNOWN, "the queue has given it no number that is understood"
    state, words = _ask([word.replace("{id}", ticket.id) for word in ticket.ask])
    if state == ENDED and words == _VANISHED and age < _LISTED_WITHIN:
        state, words = UNKNOWN, "not listed"
    return state, f"job {ticket.id} of the queue: {words}"


_VANISHED = "no longer listed"


def _ask(command: list[str]) -> tuple[str, str]:
    program, began = command[0], time.monotonic()
    when, why = _silent.get(program, (-math.inf, ""))
    if began - when < _ASK_AGAIN_AFTER:
        return UNKNOWN, why
    state, words = _ask_now(command)
    if state == UNKNOWN and time.monotonic() - began >= min(_SLOW, _ANSWER_WITHIN):
        _silent[program] = time.monotonic(), words
    return state, words


def _ask_now(command: list[str]) -> tuple[str, str]:
    program = command[0]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=_ANSWER_WITHIN)
    except subprocess.TimeoutExpired:
        return UNKNOWN, f"{program} doesn't answer"
    except OSError as error:
        return UNKNOWN, f"{program}: {error.strerror}"
    complaint = done.stderr.strip()
    if done.returncode or (complaint and not done.stdout.strip()):
        if _GONE.search(complaint or done.stdout):
            return ENDED, _VANISHED
        return UNKNOWN, f"{program} failed: {(complaint or f'exit code {done.returncode}').splitlines()[-1]}"
    return _understood(program, done.stdout)


def _understood(program: str, answer: str) -> tuple[str, str]:
    """What a queue's answer means: a state on each line, or `job_state = X` among others; one that lives outweighs those that ended."""
    lines = [line.split()[0].rstrip("+") for line in answer.splitlines() if line.strip()]
    if not lines:
        return ENDED, _VANISHED
    words = re.findall(r"job_state\s*[=:]\s*(\w+)", answer) or lines
    for state, known in _WORDS.items():  # in this order: what lives outweighs what has ended
        if found := next((word for word in words if word in known.split()), None):
            return state, found
    return UNKNOWN, f"{program} says {' '.join(words)[:60]!r}, which isn't understood"
