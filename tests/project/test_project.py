"""Projects on disk: numbering, graph, aliases, locks; RELION 3.1.3 reads them and goes on in them."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from verglas.errors import FileFormatError, InputError
from verglas.project.jobfiles import exit_file, leave_exit_file, note_command, read_job_star, write_job_star, write_repeat_script
from verglas.project.lock import LOCK, project_lock
from verglas.project.pipeline import PIPELINE, Status, read_pipeline
from verglas.project.project import Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return Project.create(Path())


def filled(project: Project) -> Project:
    """An import and a classification of it."""
    first = project.new_job("Import", 0)
    project.enter(first, {}, {first + "particles.star": 3}, Status.SUCCEEDED)
    second = project.new_job("Class2D", 8)
    project.enter(second, {first + "particles.star": 3, "a b.mrc": 6}, {second + "run_it025_data.star": 3}, Status.FAILED)
    project.set_alias(second, "first_try")
    return project


def test_graph_is_read_as_it_was_written(project: Project) -> None:
    found = filled(project).pipeline()
    assert found.counter == 3
    assert {p.name: (p.type, p.status, p.alias) for p in found.processes.values()} == {
        "Import/job001/": (0, Status.SUCCEEDED, None),
        "Class2D/job002/": (8, Status.FAILED, "Class2D/first_try/"),
    }
    assert found.nodes == {"Import/job001/particles.star": 3, "a b.mrc": 6, "Class2D/job002/run_it025_data.star": 3}
    assert found.producer("Import/job001/particles.star") == "Import/job001/"
    assert found.producer("a b.mrc") is None
    assert (project.root / ".Nodes/3/Import/job001/particles.star").exists()
    own = read_pipeline(Path("Import/job001/job_pipeline.star"))
    assert list(own.processes) == ["Import/job001/"] and own.inputs == []


def test_numbers_are_never_used_twice(project: Project) -> None:
    filled(project)
    shutil.rmtree("Class2D/job002")
    assert project.new_job("Class3D", 9) == "Class3D/job003/"
    Path("Refine3D/job004").mkdir(parents=True)
    assert project.new_job("Refine3D", 10) == "Refine3D/job005/"


def test_jobs_made_at_once_get_numbers_of_their_own(project: Project) -> None:
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(project.new_job("Select", 7))) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(names) == [f"Select/job{n:03d}/" for n in range(1, 9)]
    assert project.pipeline().counter == 9


def test_a_job_is_found_by_number_name_and_alias(project: Project) -> None:
    filled(project)
    for text in ("2", "002", "job002", "Class2D/job002", "Class2D/job002/", "first_try", "Class2D/first_try"):
        assert project.find(text) == "Class2D/job002/"
    with pytest.raises(InputError, match="no such job"):
        project.find("job007")


def test_alias_moves_to_another_job(project: Project) -> None:
    filled(project)
    third = project.new_job("Class2D", 8)
    project.set_alias(third, "first_try")
    assert Path("Class2D/first_try").resolve() == Path(third).resolve()
    assert project.pipeline().processes["Class2D/job002/"].alias is None
    with pytest.raises(InputError, match="not usable as an alias"):
        project.set_alias(third, "job9")


def test_no_project_and_second_project(tmp_path: Path, project: Project) -> None:
    with pytest.raises(InputError, match="is a project already"):
        Project.create(Path())
    with pytest.raises(InputError, match="not a project"):
        Project(tmp_path / "nowhere")


def test_lock_of_a_dead_process_is_removed(project: Project) -> None:
    Path(LOCK).mkdir()
    child = subprocess.Popen(["true"])
    child.wait()
    (Path(LOCK) / "verglas_owner").write_text(f"{os.uname().nodename} {child.pid}\n")
    start = time.monotonic()
    project.new_job("Import", 0)
    assert time.monotonic() - start < 5
    assert not Path(LOCK).exists()


def test_lock_that_relion_left_is_removed_when_it_is_old(project: Project) -> None:
    Path(LOCK).mkdir()
    with pytest.raises(InputError, match="another program has held the project"), project_lock(Path(), patience=0.2):
        pass
    os.utime(LOCK, (time.time() - 130, time.time() - 130))
    project.new_job("Import", 0)
    assert not Path(LOCK).exists()


def test_a_failed_change_changes_nothing(project: Project) -> None:
    before = Path(PIPELINE).read_text()
    with pytest.raises(KeyError), project.edit() as pipeline:
        pipeline.counter = 99
        raise KeyError
    assert Path(PIPELINE).read_text() == before
    assert not Path(LOCK).exists()


def test_projects_of_relion_4_are_refused(project: Project) -> None:
    filled(project)
    text = Path(PIPELINE).read_text().replace("_rlnPipeLineProcessType", "_rlnPipeLineProcessTypeLabel")
    Path(PIPELINE).write_text(text)
    with pytest.raises(FileFormatError, match=r"not a project of RELION 3\.1"):
        project.pipeline()


def test_job_files(tmp_path: Path) -> None:
    write_job_star(tmp_path, 8, {"nr_classes": "50", "fn_img": "a b.star", "empty": ""}, continues=False)
    assert read_job_star(tmp_path) == (8, {"nr_classes": "50", "fn_img": "a b.star", "empty": ""})
    note_command(tmp_path, ["verglas", "job", "Class2D", "--particles", "a b.star"], continues=False)
    note_command(tmp_path, ["verglas", "job"], continues=True)
    notes = (tmp_path / "note.txt").read_text()
    assert notes.count("++++ Executing new job on") == 1 and notes.count("++++ Continuing job on") == 1
    assert "verglas job Class2D --particles 'a b.star'" in notes
    write_repeat_script(tmp_path, ["sh", "-c", "pwd > here"], tmp_path)
    subprocess.run([tmp_path / "run_submit.script"], check=True)
    assert Path((tmp_path / "here").read_text().strip()) == tmp_path
    assert exit_file(tmp_path) is None
    leave_exit_file(tmp_path, "failure")
    leave_exit_file(tmp_path, "success")
    assert exit_file(tmp_path) == "success"


@pytest.mark.relion
def test_relion_reads_our_graph_and_adds_a_job(project: Project) -> None:
    filled(project)
    options = "Input images STAR file: == Import/job001/particles.star;Number of classes: == 7"
    relion("relion_pipeliner", "--addJob", "Class2D", "--addJobOptions", options)
    ours, found = filled_expectation(), project.pipeline()
    assert found.counter == 4
    assert {name: found.processes[name].status for name in ours} == ours
    assert found.processes["Class2D/job003/"].status is Status.SCHEDULED
    assert ("Import/job001/particles.star", "Class2D/job003/") in found.inputs
    assert found.processes["Class2D/job002/"].alias == "Class2D/first_try/"


@pytest.mark.relion
def test_relion_reads_our_job_star(project: Project) -> None:
    Path("a.star").write_text("data_\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n")
    write_job_star(Path(), 8, {"nr_classes": "50", "fn_img": "a.star", "particle_diameter": "120.0", "random_seed": "1"}, continues=False)
    relion("relion_pipeliner", "--addJobFromStar", "job.star")
    number, options = read_job_star(Path("Class2D/job001"))
    assert number == 8
    assert (options["nr_classes"], options["fn_img"], float(options["particle_diameter"])) == ("50", "a.star", 120)
    assert project.pipeline().processes["Class2D/job001/"].type == 8


@pytest.mark.relion
def test_relion_star_handler_reads_the_graph(project: Project) -> None:
    """RELION prints the alias column of its own table from our file."""
    filled(project)
    out = relion("relion_star_printtable", PIPELINE, "data_pipeline_processes", "rlnPipeLineProcessName", "rlnPipeLineProcessAlias")
    assert out.split() == ["Import/job001/", "None", "Class2D/job002/", "Class2D/first_try/"]


def filled_expectation() -> dict[str, Status]:
    return {"Import/job001/": Status.SUCCEEDED, "Class2D/job002/": Status.FAILED}


def relion(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
