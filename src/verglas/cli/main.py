"""`verglas`: the commands. Exit codes: 0 PASS or done, 1 FAIL, 2 bad input, 3 stopped, 4 UNCHECKED."""

# ruff: noqa: D301 UP045  \b keeps the lines of a help text; typer reads Optional in every Python

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    name="verglas",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": lambda name: name.replace("_", "-")},
    help="""Single-particle cryo-EM from movies to a 3D map, every job recorded and judged.

\b
verglas new aldolase && cd aldolase      a project, which RELION 3.1 opens too
verglas run aldolase --set movies=...    the whole workflow
verglas job Class2D --help               one job
verglas stats                            all jobs and their verdicts

Exit codes: 0 PASS or done, 1 FAIL, 2 bad input, 3 stopped, 4 ran but nothing was checked.
""",
)
Engine = Annotated[
    Optional[str], typer.Option(metavar="NAME", help="verglas, or relion: it does the steps that it has a program for [default: verglas].")
]
Ranks = Annotated[Optional[int], typer.Option(min=1, metavar="N", help="MPI ranks of RELION [default: 3 for Refine3D, else 1].")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
_ANYTHING_AFTER = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}


def main() -> None:
    """Run the command line; errors that a user can mend are one line on stderr and exit code 2."""
    from verglas.errors import InputError, VerglasError

    try:
        app()
    except VerglasError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except BrokenPipeError:  # the reader, such as head, has enough
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"ERROR: {error.filename or 'files'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        from verglas.version import __version__

        print(f"verglas {__version__}")
        raise typer.Exit


@app.callback()
def options_of_all(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
def new(folder: Annotated[Path, typer.Argument(help="Folder to make a project in.")]) -> None:
    """Make an empty project.

    \b
    verglas new aldolase
    verglas new .
    """
    from verglas.project.project import Project

    Project.create(folder)
    there = "" if folder == Path() else f"cd {folder}; "
    print(f"Project in {folder.resolve()}\nNext: {there}verglas run RECIPE, or verglas job TYPE")


@app.command("job", context_settings=_ANYTHING_AFTER)
def job(
    type_name: Annotated[Optional[str], typer.Argument(metavar="TYPE", help="Job type; without one, all are listed.")] = None,
    options: Annotated[Optional[list[str]], typer.Argument(metavar="OPTIONS", help="Options of the type.")] = None,
) -> None:
    """Run one job. Its options: verglas job TYPE --help.

    \b
    verglas job
    verglas job MaskCreate --help
    verglas job Class2D --particles particles.star --classes 50 --mask-diameter 120 --out DIR
    verglas job Refine3D --particles particles.star --reference map.mrc --mask-diameter 150 --engine relion --ranks 3 --out DIR
    verglas job Class2D --particles particles.star --threads 8 --submit relion_qsub.sh --queue gpu --extra1 24:00:00
    """
    from verglas.cli.job import list_types, run_command

    raise typer.Exit(list_types() if type_name is None else run_command(type_name, options or []))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe that ships with the package, or a TOML file.")],
    set_: Annotated[Optional[list[str]], typer.Option("--set", metavar="NAME=VALUE", help="A variable, or step.parameter.")] = None,
    until: Annotated[Optional[str], typer.Option(metavar="STEP", help="Stop after this step.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done.")] = False,
    threads: Annotated[Optional[int], typer.Option(min=1, metavar="N", help="CPU threads of steps that name none.")] = None,
    engine: Engine = None,
    ranks: Ranks = None,
    submit: Annotated[Optional[str], typer.Option(metavar="TEMPLATE", help="Hand each step to a cluster's queue by this script.")] = None,
    submit_with: Annotated[Optional[str], typer.Option(metavar="COMMAND", help="What to submit with [default: sbatch].")] = None,
    queue: Annotated[Optional[str], typer.Option(metavar="NAME", help="For XXXqueueXXX; --extra1 VALUE for XXXextra1XXX, …")] = None,
    queue_ask: Annotated[Optional[str], typer.Option(metavar="COMMAND", help="What tells the state of job {id}.")] = None,
    json: Json = False,
) -> None:
    """Run a recipe: all its steps that aren't done yet, here or one by one on a cluster.

    \b
    verglas run aldolase --set movies="movies/*.tif" --set pixel_size=0.56
    verglas run my_recipe.toml --plan
    verglas run aldolase --set class2d.classes=50 --until class2d
    verglas run aldolase --engine relion --ranks 5 --threads 4
    verglas run aldolase --threads 8 --submit relion_qsub.sh --queue gpu --extra1 24:00:00
    """
    from verglas.cli.run import run_command, take_words, to_engine_of_run
    from verglas.cli.submission import to_cluster

    name, extras = take_words([recipe, *context.args])
    cluster = to_cluster(submit, submit_with, queue, queue_ask, extras)
    by = to_engine_of_run(engine, ranks)
    raise typer.Exit(run_command(name, set_ or [], until=until, plan=plan, as_json=json, cluster=cluster, threads=threads, engine=by))


@app.command()
def stats(
    project: Annotated[Path, typer.Argument(help="Project, or any folder with job folders in it.")] = Path(),
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    html: Annotated[Optional[Path], typer.Option("--html", metavar="FILE", help="Write an HTML page.")] = None,
    truth: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="The simulation that the movies are from: a second table compares with it.")
    ] = None,
) -> None:
    """One row a job: where, how long, how much data, and the verdict. Exit code 1 if a job failed.

    \b
    verglas stats
    verglas stats other_project --csv > jobs.csv
    verglas stats --html jobs.html
    verglas stats --truth simulated
    """
    from verglas.cli.show import stats_command

    raise typer.Exit(stats_command(project, as_json=json, as_csv=csv, html=html, truth=truth))


@app.command()
def report(
    project: Annotated[Path, typer.Argument(help="Project, or any folder with job folders in it.")] = Path(),
    out: Annotated[Optional[Path], typer.Option(metavar="FILE", help="The page to write [default: report.html in it].")] = None,
) -> None:
    """Write report.html: job table, timeline and the jobs' pictures in one file.

    \b
    verglas report
    verglas report other_project --out page.html
    """
    from verglas.cli.show import report_command

    raise typer.Exit(report_command(project, out))


@app.command()
def note(
    job: Annotated[str, typer.Argument(help="Job: 8, job008, Class2D/job008, an alias, or a job folder.")],
    text: Annotated[str, typer.Argument(help="What to remember.")],
) -> None:
    """Add a note to a job.

    \b
    verglas note job008 "classes 3 and 7 are the dimer"
    """
    from verglas.cli.tidy import note_command

    raise typer.Exit(note_command(job, text))


@app.command()
def stop(job: Annotated[str, typer.Argument(help="Job: 8, job008, Class2D/job008, an alias, or a job folder.")]) -> None:
    """Stop a running job gently; the same command goes on later.

    \b
    verglas stop job008
    """
    from verglas.cli.tidy import stop_command

    raise typer.Exit(stop_command(job))


@app.command()
def clean(
    jobs: Annotated[Optional[list[str]], typer.Argument(help="Jobs to clean; without any, all of the project.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove intermediate files, such as iterations before the last, as RELION's gentle clean does.

    \b
    verglas clean job025
    verglas clean --dry-run
    """
    from verglas.cli.tidy import clean_command

    raise typer.Exit(clean_command(jobs or [], dry_run=dry_run))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="STAR, .cs, MRC, TIFF, EER or PDB/mmCIF file.")],
    json: Json = False,
) -> None:
    """Explain a file: what it holds, what is odd, what a job would make of it.

    \b
    verglas check particles.star
    verglas check run_class001.mrc --json
    """
    from verglas.cli.show import check_command

    raise typer.Exit(check_command(file, as_json=json))


@app.command(context_settings={**_ANYTHING_AFTER, "ignore_unknown_options": True, "help_option_names": []})
def simulate(options: Annotated[Optional[list[str]], typer.Argument(metavar="OPTIONS")] = None) -> None:
    """Make movies from a model, with the truth beside them. Its options: verglas simulate --help.

    \b
    verglas simulate --tier tiny --out simulated
    verglas simulate --model 1ado.cif --movies 24 --out simulated
    """
    from verglas.cli.simulate import run_command

    raise typer.Exit(run_command(options or []))


@app.command()
def bench(
    recipe: Annotated[str, typer.Argument(help="A recipe that ships with the package, or a TOML file.")] = "aldolase",
    tier: Annotated[str, typer.Option(help="Size of the simulated data: tiny or small.")] = "tiny",
    repeat: Annotated[int, typer.Option(min=1, help="Runs, for the spread.")] = 1,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for data, projects and report.")] = Path("bench"),
    set_: Annotated[Optional[list[str]], typer.Option("--set", metavar="NAME=VALUE", help="A variable, or step.parameter.")] = None,
    engine: Engine = None,
    ranks: Ranks = None,
    json: Json = False,
) -> None:
    """Simulate, run, score against the truth; prints both tables and writes report.html.

    \b
    verglas bench aldolase --tier tiny
    verglas bench aldolase --tier tiny --repeat 3 --out bench
    verglas bench aldolase --tier tiny --engine relion
    """
    from verglas.bench.api import run_bench
    from verglas.cli.run import settings_of

    settings = settings_of(set_ or [])
    raise typer.Exit(run_bench(recipe, tier=tier, repeat=repeat, out=out, settings=settings, as_json=json, engine=engine, ranks=ranks))
