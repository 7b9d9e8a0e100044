"""The command line: quick help, options from declarations, one clear line for what is wrong, exit codes."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from verglas.cli.fields import to_model
from verglas.cli.help import help_page
from verglas.cli.options import RUNNER_FLAGS, RUNNER_OPTIONS, parse, to_request
from verglas.errors import InputError
from verglas.jobs.registry import MODULES, job_type
from verglas.project.project import Project

COMMANDS = ["new", "job", "run", "stats", "report", "note", "stop", "clean", "check", "simulate", "bench"]


def verglas(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "verglas", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"})


def declared_types() -> list[str]:
    """Job types whose modules are there."""
    here = Path(sys.modules["verglas.jobs.registry"].__file__ or "").parent
    return [name for name, module in MODULES.items() if (here / f"{module}.py").exists()]


def test_help_is_quick() -> None:
    """By the processor's time: others may be using it."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = verglas("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)
    assert min(times) < 0.3


@pytest.mark.parametrize("words", [["--help"], ["job", "JoinStar", "--help"], ["simulate", "--help"], ["job"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = f"import sys; sys.argv = ['verglas', *{words!r}]\nfrom verglas.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print('HEAVY', [m for m in ('torch', 'numpy', 'pandas', 'scipy', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command: str) -> None:
    done = verglas(command, "--help")
    assert done.returncode == 0
    assert f"\n  verglas {command}" in done.stdout.split("Options:")[0] or f"\n  verglas {command} --" in done.stdout


@pytest.mark.parametrize("name", declared_types())
def test_help_page_names_every_option(name: str) -> None:
    declared = job_type(name)
    page = help_page(declared)
    for option in [*declared.params.model_fields, *(spec.name for spec in declared.inputs), *RUNNER_OPTIONS, *RUNNER_FLAGS]:
        assert f"  --{option.replace('_', '-')}" in page
    for info in declared.params.model_fields.values():
        flag = (info.json_schema_extra or {}).get("flag")  # type: ignore[union-attr]
        assert not flag or flag in page
    assert f"verglas job {name} --" in declared.examples


@pytest.mark.parametrize("name", declared_types())
def test_no_option_means_two_things(name: str) -> None:
    declared = job_type(name)
    options = [*declared.params.model_fields, *(spec.name for spec in declared.inputs), *RUNNER_OPTIONS, *RUNNER_FLAGS]
    switches = [f"no_{n}" for n, info in declared.params.model_fields.items() if info.annotation is bool]
    assert len(set(options + switches)) == len(options) + len(switches)


@pytest.mark.parametrize("name", declared_types())
def test_examples_in_the_help_are_understood(name: str) -> None:
    import shlex

    declared = job_type(name)
    lines = declared.examples.replace("\\\n", " ").splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith("verglas job")]
    assert examples
    for example in examples:
        _, _, type_name, *words = shlex.split(example)
        assert type_name == name
        request = to_request(declared, parse(declared, words))
        given = {spec.name for spec in declared.inputs if spec.required}
        assert all(request.inputs.get(needed) for needed in given), example


def test_a_choice_may_be_a_number() -> None:
    declared = job_type("Refine3D")
    words = ["--particles", "p.star", "--reference", "m.mrc", "--mask-diameter", "100", "--pad"]
    assert to_request(declared, parse(declared, [*words, "1"])).params.pad == 1  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="--pad: found '3', expected 1 or 2"):
        to_request(declared, parse(declared, [*words, "3"]))


def test_dashes_and_underscores_are_one(tmp_path: Path) -> None:
    declared = job_type("MaskCreate")
    one = to_request(declared, parse(declared, ["--map", "m.mrc", "--width-mask-edge", "5"]))
    two = to_request(declared, parse(declared, ["--map", "m.mrc", "--width_mask_edge=5"]))
    assert one.params == two.params and one.params.width_mask_edge == 5  # type: ignore[attr-defined]
    assert one.command() == ["verglas", "job", "MaskCreate", "--map", "m.mrc", "--width-mask-edge", "5.0"]


def test_version_and_a_type_in_other_letters(tmp_path: Path) -> None:
    from verglas import __version__

    assert verglas("--version", cwd=tmp_path).stdout == f"verglas {__version__}\n"
    assert verglas("job", "class2d", cwd=tmp_path).stderr == "ERROR: class2d: not a job type. Did you mean Class2D?\n"


def test_every_command_takes_underscores(tmp_path: Path) -> None:
    assert verglas("new", ".", cwd=tmp_path).returncode == 0
    assert verglas("clean", "--dry_run", cwd=tmp_path).stdout == "Would free 0 B\n"
    done = verglas("run", "aldolase", "--submit_with=sbatch", "--plan", cwd=tmp_path)
    assert done.stderr == "ERROR: --submit-with: is for a job that is submitted. Add --submit TEMPLATE\n"


@pytest.mark.parametrize("words", [["stats", "--html", "/proc/a.html"], ["simulate", "--out", "/proc/a", "--width", "256"]])
def test_where_nothing_can_be_written_one_line_says_so(words: list[str], tmp_path: Path) -> None:
    done = verglas(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("ERROR: /proc/") and done.stderr.count("\n") == 1


def test_the_command_of_a_request_gives_the_same_request() -> None:
    declared = job_type("PostProcess")
    words = ["--half1", "a.mrc", "--mask", "m.mrc", "--no-do-auto-bfac", "--adhoc-bfac", "-50", "--fn-mtf", "x y.star"]
    request = to_request(declared, parse(declared, words))
    again = to_request(declared, parse(declared, request.command()[3:]))
    assert again == request


@pytest.mark.parametrize(
    "words, message",
    [
        (["--width-mask-edge", "0,885"], "--width-mask-edge: found '0,885', expected a number, with a point for decimals"),
        (["--width-mask-edge", "nan"], "--width-mask-edge: found 'nan', expected"),
        (["--inimask-threshold", "inf"], "--inimask-threshold: found 'inf', expected a finite number"),
        (["--width-mask-edge", "-1"], "--width-mask-edge: found '-1', expected greater than or equal to 0"),
        (["--random-seed", "1.5"], "--random-seed: found '1.5', expected a whole number"),
        (["--time-limit", "soon"], "--time-limit: found 'soon', expected a number of seconds above 0"),
        (["--width_soft_edge", "3"], "--width-soft-edge: is not an option of verglas job MaskCreate. Did you mean --width-mask-edge?"),
        (["-auto_refine"], "-auto_refine: is not an option of verglas job MaskCreate"),
        (["stray"], "'stray' belongs to no option"),
        (["--map"], "argument --map: expected one argument"),
    ],
)
def test_one_clear_line_for_what_is_wrong(words: list[str], message: str) -> None:
    declared = job_type("MaskCreate")
    with pytest.raises(InputError) as error:
        to_request(declared, parse(declared, words))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_comma_for_a_point_on_the_real_command_line(tmp_path: Path) -> None:
    """Case 3."""
    done = verglas("simulate", "--pixel_size", "0,885", "--out", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "ERROR: --pixel-size: found '0,885', expected a number, with a point for decimals\n"
    assert not list(tmp_path.iterdir())


def test_simulate_tells_the_snr_of_what_it_made(tmp_path: Path) -> None:
    size = ("--movies", "1", "--width", "256", "--height", "256", "--frames", "2", "--particles-per-movie", "1", "--out", "s")
    said = verglas("simulate", *size, cwd=tmp_path).stdout
    contrast = json.loads(verglas("simulate", *size, "--json", cwd=tmp_path).stdout)["contrast"]
    snr = dict(zip(contrast["resolution"], contrast["snr"]))
    assert f"SNR of a Fourier component of one particle: {snr[40.0]:g} at 40 Å" in said and f"{snr[9.0]:g} at 9 Å" in said
    assert 0 < snr[9.0] < snr[20.0]


def test_none_and_lists_and_choices() -> None:
    from typing import Literal

    from verglas.jobs.declaration import JobParams, param

    class Params(JobParams):
        limit: float | None = param(3.0, "A limit", unit="Å")
        rings: tuple[int, ...] = param((1, 2), "Rings")
        kind: Literal["a", "b"] = param("a", "Kind")

    found = to_model(Params, {"limit": "none", "rings": "3, 4,5", "kind": "b"})
    assert (found.limit, found.rings, found.kind) == (None, (3, 4, 5), "b")
    with pytest.raises(InputError, match="--kind: found 'c', expected 'a' or 'b'"):
        to_model(Params, {"kind": "c"})


def test_exit_codes_for_bad_input(tmp_path: Path) -> None:
    for words in (["job", "Refine4D"], ["run", "nowhere"], ["stats", "nowhere"], ["note", "job001", "x"], ["job", "JoinStar"]):
        done = verglas(*words, cwd=tmp_path)
        assert done.returncode == 2, words
        assert done.stderr.startswith("ERROR: ") and done.stderr.count("\n") == 1


def test_a_project_from_the_command_line(tmp_path: Path) -> None:
    """new, job by alias, stats, note, report: as a user goes."""
    from verglas.io.mrc import write_map

    np = pytest.importorskip("numpy")
    z, y, x = np.mgrid[-16:16, -16:16, -16:16]
    assert verglas("new", "p", cwd=tmp_path).returncode == 0
    root = tmp_path / "p"
    write_map(root / "ball.mrc", (x**2 + y**2 + z**2 < 36).astype(np.float32), 4.0)
    done = verglas("job", "MaskCreate", "--map", "ball.mrc", "--inimask-threshold", "0.3", "--alias", "tight", "--json", cwd=root)
    record = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert record["verdict"] == "PASS" and record["name"] == "MaskCreate/job001/"
    assert set(record["phases"]) >= {"staging", "read", "compute", "write", "judging"}
    assert record["usage"]["cpu_s"] > 0 and record["usage"]["peak_memory_bytes"] > 1e7 and record["usage"]["bytes_written"] > 1e5
    assert record["inputs"][0]["sha256"] and record["outputs"][0]["sha256"]
    assert all(check["held"] and check["source"] for check in record["checks"])
    assert verglas("note", "tight", "looks fine", cwd=root).returncode == 0
    assert "looks fine" in (root / "MaskCreate/job001/note.txt").read_text()
    shown = verglas("stats", cwd=root)
    assert shown.returncode == 0 and "MaskCreate (tight)" in shown.stdout and "PASS" in shown.stdout
    assert verglas("report", cwd=root).returncode == 0
    assert (root / "report.html").read_text().count("data:image/png") >= 1
    (root / "MaskCreate/job001/mask.mrc").write_bytes((root / "ball.mrc").read_bytes())
    assert verglas("stats", cwd=root).returncode == 1


def test_a_jobs_name_stands_for_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    project = Project.create(Path())
    name = project.new_job("Refine3D", 10)
    from verglas.project.pipeline import Status

    project.enter(name, {}, {name + "run_class001.mrc": 6, name + "run_data.star": 3}, Status.SUCCEEDED)
    declared = job_type("MaskCreate")
    for text in ("job001", "1", "Refine3D/job001/"):
        assert to_request(declared, parse(declared, ["--map", text])).inputs == {"map": Path(name + "run_class001.mrc")}
    project.enter(name, {}, {name + "other.mrc": 6}, Status.SUCCEEDED)
    with pytest.raises(InputError, match="has 2 outputs of that kind") as error:
        to_request(declared, parse(declared, ["--map", "job001"]))
    assert "other.mrc" in str(error.value) and "run_data.star" not in str(error.value)
