"""The job table: gaps, died, unused, aborted and RELION's jobs; and its forms."""

import csv
import io
import json
import time
from pathlib import Path

import pytest

from verglas.records import render
from verglas.records.lock import FolderLock
from verglas.records.record import Record, read_record
from verglas.records.report import Section, timeline, write_report
from verglas.records.table import collect, totals
from verglas.records.units import duration, size


def leave(root: Path, name: str, **facts: object) -> Path:
    """A job folder with a record."""
    folder = root / name
    folder.mkdir(parents=True)
    given = {"state": "finished", "verdict": "PASS", "started": "2026-01-05T10:00:00+00:00", "host": {"name": "node7"}, **facts}
    record = Record(type=name.split("/")[0], name=name, **given)  # type: ignore[arg-type]
    record.write(folder)
    return folder


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """Seven jobs of all kinds; numbers 2, 5 and 6 are missing."""
    used = {"ranks": 1, "threads": 12, "gpus": 1}
    first = leave(tmp_path, "Import/job001", phases={"read": 1.0, "write": 0.5}, usage={"apparent_bytes": 2000}, resources=used)
    entry = {"name": "particles", "path": str(first / "particles.star"), "from": "Import/job001"}
    refine = leave(tmp_path, "Refine3D/job003", inputs=[entry], note="4.55 Å", metrics={"resolution": 4.55}, phases={"compute": 7.0})
    died = leave(tmp_path, "Class2D/job004", state="running", verdict=None, phase="compute", inputs=[entry], phases={"compute": 100.0})
    (died / "run_it011_data.star").touch()
    (died / "run_it012_data.star").touch()
    leave(
        tmp_path,
        "Class2D/job007",
        verdict="FAIL",
        reasons=["timed out after 60 s"],
        iterations=3,
        rejected_metrics={"resolution": 9.9},
        phases={"compute": 60.0},
        previous=[{"wall_s": 40.0, "phases": {"compute": 40.0}}],
    )
    relion = tmp_path / "Extract/job008"
    relion.mkdir(parents=True)
    (relion / "job.star").touch()
    (relion / "note.txt").write_text(" ++++ Executing new job on " + time.ctime(time.time() - 3600) + "\n")
    (relion / "RELION_JOB_EXIT_SUCCESS").touch()
    leave(
        tmp_path,
        "Select/job009",
        items={"unit": "rows", "total": 9, "done": 7, "skipped": 1, "failed": 1, "problems": []},
        warnings=["odd"],
    )
    assert refine.exists()
    return tmp_path


def test_every_job_and_every_gap_has_a_row(jobs: Path) -> None:
    rows = {row.job: row for row in collect(jobs)}
    assert list(rows) == ["job001", "job002", "job003", "job004", "job005–006", "job007", "job008", "job009"]
    assert rows["job002"].verdict == "" and "no folder" in rows["job002"].notes
    assert rows["job003"].notes == "4.55 Å; not used by a later job" and rows["job003"].metrics == {"resolution": 4.55}
    assert rows["job004"].verdict == "FAIL" and rows["job004"].notes == "died in phase compute; 12 iterations done"
    assert rows["job007"].notes == "timed out after 60 s; 3 iterations done" and rows["job007"].metrics == {}
    assert rows["job007"].runtime_s == 100 and rows["job007"].runs == 2
    assert rows["job008"].verdict == "no record" and rows["job008"].notes == "succeeded"
    assert rows["job008"].runtime_s == pytest.approx(3600, abs=3)
    assert rows["job009"].notes == "2 of 9 rows left out; 1 warning"
    assert rows["job001"].resources == "1/12/1" and rows["job001"].host == "node7"


def test_a_running_job_is_running_and_not_failed(jobs: Path) -> None:
    lock = FolderLock(jobs / "Class2D/job004")
    try:
        row = next(row for row in collect(jobs) if row.job == "job004")
        assert (row.verdict, row.notes) == ("running", "in phase compute")
    finally:
        lock.release()


def test_totals(jobs: Path) -> None:
    stages, phases = totals(collect(jobs))
    assert stages["Class2D"] == 200 and stages["Refine3D"] == 7
    assert phases == {"read": 1.0, "write": 0.5, "compute": 207.0}


def test_forms_hold_the_same_rows(jobs: Path) -> None:
    rows = collect(jobs)
    text, page = render.as_text(rows), render.html_table(rows)
    table = list(csv.DictReader(io.StringIO(render.as_csv(rows))))
    parsed = json.loads(json.dumps(render.as_plain(rows)))
    assert [line["job"] for line in table] == [row.job for row in rows] == [job["job"] for job in parsed["jobs"]]
    assert page.count("<tr><td>job") == len(rows)
    assert all(row.job in text for row in rows)
    assert parsed["seconds_by_stage"]["Class2D"] == 200
    assert "9.9" not in text + page + render.as_csv(rows) + json.dumps(render.as_plain(rows)), "a failed job's figure is shown"


def test_report_is_one_file_without_pictures_of_failed_jobs(jobs: Path) -> None:
    (jobs / "Refine3D/job003/picture_fsc.png").write_bytes(b"\x89PNG good")
    (jobs / "Class2D/job007/picture_classes.png").write_bytes(b"\x89PNG bad")
    write_report(jobs, jobs / "report.html", extra=[Section("Against truth", "<p>a &lt; b</p>")])
    page = (jobs / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert page.index("Jobs</h2>") < page.index("Against truth") < page.index("Timeline")
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<rect ") == 6


def test_timeline_of_nothing() -> None:
    assert timeline([]) == "<p>Nothing ran.</p>"


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = Record("Class2D", "Class2D/job001", params={"classes": 50}, reasons=["Å"], queue_wait_s=None)
    record.write(tmp_path)
    assert read_record(tmp_path) == record
    text = (tmp_path / "record.json").read_text()
    (tmp_path / "record.json").write_text(text.replace('"type"', '"of_a_later_version": 1, "type"'))
    assert read_record(tmp_path) == record


@pytest.mark.parametrize("seconds, text", [(None, "–"), (3.21, "3.2 s"), (59.97, "1m00s"), (245, "4m05s"), (7380, "2h03m")])
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "count, text", [(None, "–"), (0, "0 B"), (812, "812 B"), (3140, "3.1 kB"), (58e9, "58 GB"), (999.7e6, "1.0 GB"), (2e15, "2000 TB")]
)
def test_size(count: float | None, text: str) -> None:
    assert size(count) == text
