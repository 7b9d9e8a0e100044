"""Jobs handed to a cluster's queue: RELION's templates, and no job that died there is ever shown as running.

`sbatch` and `squeue` are shell scripts here. `sbatch` honours the template's output and error lines, and runs the script by its own
first line, or loses it; `squeue` says what the test has written for it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verglas.cli.job import run_command
from verglas.cli.show import report_command, stats_command
from verglas.cli.submission import to_cluster
from verglas.cli.tidy import stop_command
from verglas.errors import InputError
from verglas.project.pipeline import Status
from verglas.project.project import Project
from verglas.records.ticket import Ticket, read_ticket, standing
from verglas.workflow.cluster import Cluster, number_in
from verglas.workflow.recipe import load_recipe
from verglas.workflow.screen import Screen
from verglas.workflow.steps import StepResult, run_recipe
from verglas.workflow.template import read_template
from workflow.commands import table, wait_for

TEMPLATE = """#!/bin/bash
#SBATCH --job-name="XXXnameXXX"
#SBATCH --partition=XXXqueueXXX
#SBATCH --ntasks=XXXmpinodesXXX --cpus-per-task=XXXthreadsXXX
#SBATCH --output=XXXoutfileXXX
#SBATCH --error=XXXerrfileXXX
#SBATCH --time=XXXextra1XXX
echo "shell ${BASH_VERSION:-other}"
XXXcommandXXX
"""

SBATCH = """#!/bin/sh
cd '{work}'
[ -e sbatch_refuses ] && {{ echo 'sbatch: error: invalid partition specified' >&2; exit 1; }}
echo "$1" >> submitted
echo "Submitted batch job 7"
[ -e sbatch_loses ] && exit 0
out=$(sed -n 's/^#SBATCH --output=//p' "$1"); err=$(sed -n 's/^#SBATCH --error=//p' "$1")
( "$1" >"$out" 2>"$err" </dev/null; echo $? >node_ended ) >/dev/null 2>&1 &
"""

SQUEUE = """#!/bin/sh
echo "$*" >> '{work}/asked'
. '{work}/squeue_does'
"""

JOB = ["--files", "a.star", "b.star", "--threads", "1"]
SUBMIT = ["--submit", "site.sh", "--queue", "gpu", "--extra1", "24:00:00"]
Squeue = Callable[[str], None]


@pytest.fixture
def squeue(work: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    """A project with a template, and a cluster whose `squeue` does what the returned function is given."""
    Project.create(work)
    (work / "site.sh").write_text(TEMPLATE)
    (work / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (work / "bin" / name).write_text(text.format(work=work))
        (work / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{work / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("verglas.records.ticket._LISTED_WITHIN", 0.0)

    def does(what: str) -> None:
        (work / "squeue_does").write_text(what)

    does("echo PENDING")
    return does


def submit(*words: str) -> int:
    return run_command("JoinStar", [*JOB, *SUBMIT, *words])


def lost(work: Path) -> Path:
    """Submit a job that will never begin."""
    (work / "sbatch_loses").touch()
    assert submit() == 0
    return work / "JoinStar/job001"


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return found


def row(capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code of `verglas stats`, and the first job's verdict and notes."""
    code, rows = table(capsys)
    return code, rows[0]["verdict"], rows[0]["notes"]


def test_a_submitted_job_runs_to_its_verdict(squeue: Squeue, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit("--alias", "joined") == 0
    assert "queued  JoinStar/job001  as job 7" in capsys.readouterr().out
    assert wait_for(work / "node_ended").strip() == "0"
    folder = work / "JoinStar/job001"
    found = record(folder)
    assert (found["verdict"], found["state"], found["alias"], found["previous"]) == ("PASS", "finished", "joined", [])
    assert found["queue"] == {"id": "7", "submit": "sbatch"} and found["queue_wait_s"] >= 0
    assert (folder / "RELION_JOB_EXIT_SUCCESS").exists()
    assert (folder / "queue.out").read_text().startswith("shell 5")
    assert "PASS" in (folder / "queue.out").read_text() and (folder / "queue.err").read_text() == ""
    assert "Submitted batch job 7" in (folder / "note.txt").read_text()
    assert Project(work).pipeline().processes["JoinStar/job001/"].status is Status.SUCCEEDED
    script = (folder / "queue_submit.script").read_text()
    assert '--job-name="JoinStar/job001/"' in script and "--partition=gpu\n" in script and "--time=24:00:00\n" in script
    assert "--ntasks=1 --cpus-per-task=1\n" in script and "XXX" not in script
    squeue("exit 0")
    assert row(capsys)[:2] == (0, "PASS"), "a finished job is no longer the queue's matter"
    assert not (work / "asked").exists()


@pytest.mark.parametrize(
    "given, line, name, mend",
    [
        ([], 3, "XXXqueueXXX has no value, nor has XXXextra1XXX in line 7", "Give --queue VALUE"),
        (["--queue", "gpu"], 7, "XXXextra1XXX", "Give --extra1 VALUE, or set RELION_QSUB_EXTRA1_DEFAULT"),
        (["--queue", "gpu", "--extra2", "8"], 7, "XXXextra1XXX", "Give --extra1 VALUE"),
        (["--queue", "gpu", "--extra1", "1", "--threads", "0"], 4, "XXXthreadsXXX", "Give --threads N"),
    ],
)
def test_nothing_is_submitted_while_a_field_is_unfilled(
    squeue: Squeue, work: Path, given: list[str], line: int, name: str, mend: str
) -> None:
    with pytest.raises(InputError) as error:
        run_command("JoinStar", [*JOB, "--submit", "site.sh", *given])
    assert f"site.sh, line {line}: {name}" in str(error.value) and mend in str(error.value)
    assert not (work / "submitted").exists() and not (work / "JoinStar").exists()


def test_relions_environment_fills_what_is_not_given(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"QSUB_COMMAND": "qsub", "QUEUE_NAME": "long", "QSUB_EXTRA1_DEFAULT": "1", "QSUB_EXTRA2_DEFAULT": ""}.items():
        monkeypatch.setenv(f"RELION_{name}", value)
    cluster = to_cluster("site.sh", None, None, None, {"extra1": "2"})
    assert cluster is not None and cluster.submit == "qsub" and cluster.asking() == ["qstat", "-f", "{id}"]
    assert cluster.fields == {"queue": "long", "extra1": "2", "extra2": ""}
    with pytest.raises(InputError, match="--queue: is for a job that is submitted"):
        to_cluster(None, None, "gpu", None, {})


@pytest.mark.parametrize(
    "text, words",
    [
        ("#!/bin/sh\nsleep 1\n", "has no XXXcommandXXX"),
        ("#!/bin/sh\nXXXcommandXXX\n#XXXwallXXX", "line 3: XXXwallXXX has no value"),
    ],
)
def test_templates_that_cannot_be_used(squeue: Squeue, work: Path, text: str, words: str) -> None:
    (work / "site.sh").write_text(text)
    with pytest.raises(InputError, match=words):
        submit()
    with pytest.raises(InputError, match=r"none\.sh: cannot be read as a submission template"):
        run_command("JoinStar", [*JOB, "--submit", "none.sh"])
    assert not (work / "JoinStar").exists()


def test_a_command_that_is_not_there_is_named_before_any_work(squeue: Squeue, work: Path) -> None:
    with pytest.raises(InputError, match="nosuchqsub is not there to submit with"):
        submit("--submit-with", "nosuchqsub -A me")
    assert not (work / "JoinStar").exists()


def test_windows_lines_and_another_shell(squeue: Squeue, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = TEMPLATE.replace("/bin/bash", "/bin/sh").replace("XXXcommandXXX", "sh -c 'XXXcommandXXX'")
    (work / "site.sh").write_bytes(b"\xef\xbb\xbf" + shell.replace("\n", "\r\n").encode())
    assert submit() == 0
    assert capsys.readouterr().out.count("lines ended in CRLF") == 1
    script = (work / "JoinStar/job001/queue_submit.script").read_bytes()
    sh = subprocess.run(["/bin/sh", "-c", "echo ${BASH_VERSION:-other}"], capture_output=True, text=True, check=True).stdout
    assert script.startswith(b"#!/bin/sh\n") and b"\r" not in script
    assert wait_for(work / "node_ended").strip() == "0"
    assert record(work / "JoinStar/job001")["verdict"] == "PASS"
    assert (work / "JoinStar/job001/queue.out").read_text().startswith(f"shell {sh}")


@pytest.mark.parametrize(
    "line, filled",
    [
        ("mpirun -n XXXmpinodesXXX XXXcommandXXX", "RUN"),
        ("env time ${MPI}/bin/mpiexec -n XXXcoresXXX XXXcommandXXX && date", "env time RUN && date"),
        ("echo mpirun; singularity exec relion.sif XXXcommandXXX", "echo mpirun; singularity exec relion.sif RUN"),
        ("cp $(mktemp aXXXXXX.XXXXXX) b; XXXcommandXXX", "cp $(mktemp aXXXXXX.XXXXXX) b; RUN"),
        ("COMMAND='XXXcommandXXX'", "COMMAND='RUN'"),
    ],
)
def test_only_an_mpi_launcher_is_left_out(tmp_path: Path, line: str, filled: str) -> None:
    (tmp_path / "site.csh").write_text(f"#!/bin/tcsh\n{line}")
    template = read_template(tmp_path / "site.csh")
    template.check({"mpinodes": "1", "cores": "1"})
    assert template.fill({"command": "RUN", "mpinodes": "1", "cores": "1"}) == f"#!/bin/tcsh\n{filled}\n"


def test_what_waits_is_queued_and_left_alone(squeue: Squeue, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lost(work)
    assert row(capsys) == (0, "queued", "job 7 of the queue: PENDING")
    assert (work / "asked").read_text() == "-h -o %T -j 7\n"
    for again in (lambda: submit(), lambda: run_command("JoinStar", JOB), lambda: submit("--out", "JoinStar/job001")):
        with pytest.raises(InputError, match="JoinStar/job001: is in the queue as job 7"):
            again()
    with pytest.raises(InputError, match="waits in a cluster's queue"):
        stop_command("1")
    (folder / "join_particles.star").write_text((work / "b.star").read_text())
    with pytest.raises(InputError, match="still in a cluster's queue"):
        run_command("JoinStar", ["--files", "JoinStar/job001/join_particles.star", "b.star"])
    squeue("echo RUNNING")
    assert row(capsys)[:2] == (0, "running")


@pytest.mark.parametrize(
    "does, words",
    [
        ("echo COMPLETED", "job 7 of the queue: COMPLETED, without its exit file"),
        ("echo OUT_OF_MEMORY", "job 7 of the queue: OUT_OF_MEMORY, without its exit file"),
        ("exit 0", "job 7 of the queue: no longer listed, without its exit file"),
        ("echo 'error: Invalid job id specified' >&2; exit 1", "job 7 of the queue: no longer listed, without its exit file"),
    ],
)
def test_what_left_the_queue_without_its_exit_file_has_failed(
    squeue: Squeue, work: Path, capsys: pytest.CaptureFixture[str], does: str, words: str
) -> None:
    folder = lost(work)
    squeue(does)
    assert row(capsys) == (1, "FAIL", words)
    assert stats_command(work, as_json=False, as_csv=False, html=work / "jobs.html") == 1
    report_command(work, None)
    for page in ("jobs.html", "report.html"):
        text = (work / page).read_text()
        assert '<td class="FAIL">FAIL</td>' in text and ">running<" not in text and ">queued<" not in text
    (folder / "RELION_JOB_EXIT_SUCCESS").touch()
    assert row(capsys)[1:] == ("FAIL", words.replace("without its exit file", "without a verdict")), "an exit file is no verdict"


@pytest.mark.parametrize(
    "does, words",
    [
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "squeue failed: Unable to contact slurm controller"),
        ("echo 'Socket timed out' >&2; exit 0", "squeue failed: Socket timed out"),
        ("echo LIMBO", "squeue says 'LIMBO', which isn't understood"),
        ("exit 3", "squeue failed: exit code 3"),
    ],
)
def test_a_queue_that_cannot_be_asked_proves_nothing(
    squeue: Squeue, work: Path, capsys: pytest.CaptureFixture[str], does: str, words: str
) -> None:
    lost(work)
    squeue(does)
    assert row(capsys) == (0, "queued", f"job 7 of the queue: {words}")
    with pytest.raises(InputError, match="is in the queue as job 7"):
        submit()


def test_a_queue_that_does_not_answer_is_asked_once(squeue: Squeue, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verglas.records.ticket._ANSWER_WITHIN", 0.2)
    monkeypatch.setattr("verglas.records.ticket._silent", {})
    squeue("exec sleep 5")
    ticket = Ticket("t", "sbatch", ["squeue", "{id}"], time.time(), "7")
    assert [standing(ticket) for _ in range(3)] == [("unknown", "job 7 of the queue: squeue doesn't answer")] * 3
    assert (work / "asked").read_text() == "7\n"
    gone = Ticket("t", "sbatch", ["no_such_squeue"], time.time(), "7")
    assert standing(gone) == ("unknown", "job 7 of the queue: no_such_squeue: No such file or directory")


def test_a_job_is_not_missed_in_its_first_seconds(squeue: Squeue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verglas.records.ticket._LISTED_WITHIN", 5.0)
    squeue("exit 0")
    assert standing(Ticket("t", "sbatch", ["squeue"], time.time(), "7"))[0] == "unknown"
    assert standing(Ticket("t", "sbatch", ["squeue"], time.time() - 6, "7"))[0] == "ended"
    assert standing(Ticket("t", "sbatch", ["squeue"], time.time()))[0] == "unknown", "being submitted"
    assert standing(Ticket("t", "sbatch", ["squeue"], time.time() - 3600))[0] == "ended", "its submission was broken off"


@pytest.mark.parametrize(
    "answer, state",
    [
        ("Job Id: 7.pbs\n    Job_Name = x\n    job_state = Q\n    queue = R", "queued"),
        ("    job_state = F", "ended"),
        ("CLUSTER: b\nRUNNING", "running"),
    ],
)
def test_other_queues_are_understood(squeue: Squeue, answer: str, state: str) -> None:
    squeue(f"cat <<'X'\n{answer}\nX")
    assert standing(Ticket("t", "qsub", ["squeue"], time.time(), "7"))[0] == state


@pytest.mark.parametrize(
    "answer, number",
    [
        ("Submitted batch job 123", "123"),
        ("123;north\n", "123"),
        ("4711.server.site", "4711.server.site"),
        ('Your job 12 ("Class2D") has been submitted', "12"),
        ("Job <77> is submitted to queue <normal>.", "77"),
        ("queued, thank you", None),
    ],
)
def test_the_number_in_the_answer(answer: str, number: str | None) -> None:
    assert number_in(answer) == number


def test_another_cluster_of_a_federation_is_asked() -> None:
    assert Cluster(Path("x")).asking("Submitted batch job 5 on cluster north")[-2:] == ["-M", "north"]


def test_a_refused_submission_is_a_failed_job(squeue: Squeue, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "sbatch_refuses").touch()
    assert submit() == 1
    assert "could not be submitted: sbatch: error: invalid partition specified" in capsys.readouterr().out
    assert row(capsys)[1] == "FAIL" and not (work / "asked").exists()
    assert Project(work).pipeline().processes["JoinStar/job001/"].status is Status.FAILED


def test_the_same_command_goes_on_after_a_vanished_job(squeue: Squeue, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lost(work)
    first = read_ticket(folder)
    squeue("exit 0")
    assert row(capsys)[1] == "FAIL"
    (work / "sbatch_loses").unlink()
    assert submit() == 0
    second = read_ticket(folder)
    assert first is not None and second is not None and first.token != second.token
    squeue("echo RUNNING")
    wait_for(work / "node_ended")
    assert record(folder)["verdict"] == "PASS" and record(folder)["previous"] == [], "what never began is no earlier run"
    assert not (work / "JoinStar/job002").exists()


def test_here_instead_after_a_vanished_job(squeue: Squeue, work: Path) -> None:
    folder = lost(work)
    squeue("exit 0")
    assert run_command("JoinStar", JOB) == 0
    assert record(folder)["verdict"] == "PASS" and record(folder)["queue"] == {}
    assert read_ticket(folder) is None


def test_a_node_that_dies_at_work_is_no_running_job(squeue: Squeue, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The template's own time limit kills all; the record says `running`, and only the queue knows better."""
    folder = lost(work)
    killed = {**record(folder), "state": "running", "phase": "compute", "started": "2026-01-01T00:00:00+00:00"}
    (folder / "record.json").write_text(json.dumps(killed))
    squeue("echo RUNNING")
    assert row(capsys) == (0, "running", "in phase compute"), "no lock is seen from another machine"
    squeue("echo PENDING")
    assert row(capsys)[:2] == (0, "queued"), "put back into the queue"
    squeue("echo TIMEOUT")
    assert row(capsys)[:2] == (1, "FAIL")


def test_a_job_that_ends_while_it_is_looked_at_has_not_failed(squeue: Squeue, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lost(work)
    done = {**record(folder), "state": "finished", "verdict": "UNCHECKED"}
    (work / "done.json").write_text(json.dumps(done))
    squeue(f"cp '{work / 'done.json'}' '{folder / 'record.json'}'; echo COMPLETED")
    assert row(capsys)[:2] == (0, "UNCHECKED")


RECIPE = """
[steps.first]
job = "JoinStar"
inputs.files = ["a.star", "b.star"]
[steps.second]
job = "JoinStar"
inputs.files = ["{first.particles}", "a.star"]
"""


def carry_out(work: Path, **settings: Any) -> list[StepResult]:
    (work / "two.toml").write_text(RECIPE)
    cluster = Cluster(work / "site.sh", fields={"queue": "gpu", "extra1": "1"}, poll_s=0.05, grace_s=0.5, **settings)
    return list(run_recipe(load_recipe("two.toml"), Screen(sys.stdout), cluster=cluster, threads=1))


@pytest.mark.parametrize("does", ["echo COMPLETED", "exit 0"])
def test_a_recipe_stops_at_a_step_that_vanished(squeue: Squeue, work: Path, capsys: pytest.CaptureFixture[str], does: str) -> None:
    (work / "sbatch_loses").touch()
    squeue(does)
    (result,) = carry_out(work)
    assert result.what == "failed" and result.exit_code == 1 and result.record is not None
    assert result.record.reasons[0].endswith("without its exit file") and result.record.queue["id"] == "7"
    assert (work / "JoinStar/job001/RELION_JOB_EXIT_FAILURE").exists()
    assert Project(work).pipeline().processes["JoinStar/job001/"].status is Status.FAILED
    squeue("echo nonsense; exit 1")
    assert row(capsys)[:2] == (1, "FAIL"), "what is judged isn't asked for again"


def test_a_recipe_waits_for_each_step_and_for_one_that_is_in_the_queue_already(
    squeue: Squeue, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a `verglas run` that was killed while the first step waited: that isn't submitted twice."""
    squeue("exit 0")
    (work / "sbatch_loses").touch()
    assert submit() == 0
    folder = work / "JoinStar/job001"
    squeue("echo RUNNING")
    command = {**os.environ, **dict([script_token(folder)])}
    node = subprocess.Popen(["sh", folder / "run_submit.script"], env=command, stdout=subprocess.DEVNULL)
    (work / "sbatch_loses").unlink()
    first, second = carry_out(work)
    assert node.wait() == 0
    assert (first.what, second.what) == ("done", "done") and first.record is not None and second.record is not None
    assert (first.record.verdict, second.record.verdict, second.record.step) == ("PASS", "PASS", "two/second")
    assert (work / "submitted").read_text().split() == [f"JoinStar/job00{n}/queue_submit.script" for n in (1, 2)]
    assert [result.what for result in carry_out(work)] == ["kept", "kept"]
    assert str(first.folder) == "JoinStar/job001" and str(second.folder) == "JoinStar/job002"


def script_token(folder: Path) -> tuple[str, str]:
    """The variable by which the script shows the run on the node that the ticket is its own."""
    line = next(line for line in (folder / "queue_submit.script").read_text().splitlines() if line.startswith("env "))
    name, _, value = line.split()[1].partition("=")
    return name, value


def test_the_command_line_of_a_recipe(squeue: Squeue, work: Path) -> None:
    (work / "two.toml").write_text(RECIPE)
    words = ["--submit", "site.sh", "--extra1", "1", "two.toml", "--threads", "1"]
    done = subprocess.run([sys.executable, "-m", "verglas", "run", *words], capture_output=True, text=True)
    assert done.returncode == 2 and "site.sh, line 3: XXXqueueXXX has no value" in done.stderr
    done = subprocess.run([sys.executable, "-m", "verglas", "run", "two.toml", "--pln"], capture_output=True, text=True)
    assert done.returncode == 2 and "--pln: is not understood" in done.stderr
