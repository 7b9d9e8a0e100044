"""The second engine in what is around a job: recipes, benchmarks, clusters, torchrun."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest

from verglas.bench import api
from verglas.bench.api import run_bench
from verglas.cli.help import help_page
from verglas.cli.run import run_command, to_engine_of_run
from verglas.errors import InputError
from verglas.jobs.registry import job_type
from verglas.project.project import Project
from verglas.relion.engine import Relion
from verglas.workflow.cluster import Cluster
from verglas.workflow.recipe import load_recipe
from verglas.workflow.request import JobRequest, fingerprint, with_relion
from verglas.workflow.runner import run_job


def request(**more: Any) -> JobRequest:
    declared = job_type("Class2D")
    return JobRequest(declared, declared.params(mask_diameter=140, threads=2), {"particles": Path("particles.star")}, **more)


def test_the_fingerprint_holds_engine_version_and_further_options() -> None:
    ways = [
        None,
        Relion("3.1.3", 1, 1),
        Relion("3.1.4", 1, 1),
        Relion("3.1.3", 1, 1, ("--maxsig", "5")),
    ]
    prints = [fingerprint(request(relion=way), []) for way in ways]
    assert len(set(prints)) == 4
    assert fingerprint(request(relion=Relion("3.1.3", 5, 8)), []) == prints[1], "ranks and threads change no result"


def test_the_command_that_repeats_it() -> None:
    words = request(relion=Relion("3.1.3", 3, 2, ("--maxsig", "5"))).command()
    assert words[-5:] == ["--engine", "relion", "--ranks", "3", "--relion-args=--maxsig 5"]
    assert "--engine" not in request().command()


def test_help_tells_of_relion_where_it_has_a_program() -> None:
    page = help_page(job_type("Refine3D"))
    assert "--engine verglas|relion" in page and "verglas job Refine3D … --engine relion --ranks 3" in page
    assert "By RELION" not in help_page(job_type("Import")) and "--ranks 2" not in help_page(job_type("MaskCreate"))


def test_a_cluster_gives_the_ranks_their_cores(tmp_path: Path) -> None:
    template = tmp_path / "qsub.sh"
    template.write_text("#SBATCH -n XXXmpinodesXXX -c XXXthreadsXXX # XXXcoresXXX\nXXXcommandXXX\n")
    cluster = Cluster(template, submit="cat")
    known = cluster.ready(request(relion=Relion("3.1.3", 3, 2)))[1]
    assert (known["mpinodes"], known["threads"], known["cores"]) == ("3", "2", "6")
    known = cluster.ready(request())[1]
    assert (known["mpinodes"], known["cores"]) == ("1", "2")


def test_torchrun_starts_no_relion(work: Path) -> None:
    with pytest.raises(InputError, match="starts its own ranks"):
        run_job(request(relion=Relion("3.1.3", 3, 2)), line=object())  # type: ignore[arg-type]


@pytest.mark.relion
def test_the_shipped_recipe_by_relion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every step can be planned: what RELION refines it can express with the recipe's parameters."""
    monkeypatch.chdir(tmp_path)
    Project.create(tmp_path)
    assert run_command("aldolase", [], plan=True, as_json=True, engine=to_engine_of_run("relion", 5)) == 0
    told = json.loads(capsys.readouterr().out)["steps"]
    assert len(told) == 23
    for step in load_recipe("aldolase").steps:
        if step.job in ("Class2D", "InitialModel", "Class3D", "Refine3D"):
            declared = job_type(step.job)
            plain = {name: value for name, value in step.params.items() if "{" not in str(value)}
            params = declared.params(mask_diameter=140, **{k: v for k, v in plain.items() if k != "mask_diameter"})
            inputs = {spec.name: [Path("x")] if spec.many else Path("x") for spec in declared.inputs if spec.required}
            assert with_relion(JobRequest(declared, params, inputs)).engine == "relion"


@pytest.mark.parametrize("table, match", [('engine = "eman"', "'eman' is no engine"), ("relion_args = 5", "expected a text")])
def test_a_steps_own_engine_is_checked(table: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f'[steps.a]\njob = "Class2D"\n{table}\n')
    with pytest.raises(InputError, match=match):
        load_recipe(str(path))


def test_a_benchmark_by_relion_has_projects_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: Callable[[str, str], None]
) -> None:
    """In the same folder, on the same simulated data, told to `verglas run`."""
    commands: list[tuple[list[str], str]] = []

    def noted(words: list[str], where: Path, say: TextIO) -> int:
        commands.append((words, where.name))
        return 1 if words[0] == "run" else 0

    def told(title: str, projects: list[Path], simulation: Path, codes: list[int], page: Path, as_json: bool) -> int:
        assert [project.name for project in projects] == ["relion1", "relion2"] and simulation.name == "simulated"
        assert page.name == "report_relion.html" and "RELION" in title
        return max(codes)

    monkeypatch.setattr(api, "_verglas", noted)
    monkeypatch.setattr(api, "_tell", told)
    monkeypatch.setattr("verglas.bench.variables.recipe_variables", lambda simulation, tier: {})
    settings = {"tier": "tiny", "repeat": 2, "out": tmp_path / "bench", "settings": {}}
    with pytest.raises(InputError, match="Add --engine relion"):
        run_bench("aldolase", **settings, ranks=3)  # type: ignore[arg-type]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="not on the PATH"):
        run_bench("aldolase", **settings, engine="relion")  # type: ignore[arg-type]
    assert commands == [] and not (tmp_path / "bench").exists()
    for program in ("relion_refine", "relion_refine_mpi", "mpirun"):
        stand_in(program, "exit 0")
    assert run_bench("aldolase", **settings, engine="relion", ranks=3) == 1  # type: ignore[arg-type]
    runs = [(words[-4:], where) for words, where in commands if words[0] == "run"]
    assert runs == [(["--engine", "relion", "--ranks", "3"], "relion1"), (["--engine", "relion", "--ranks", "3"], "relion2")]
