"""The second engine: a declared job whose `run` starts RELION's program, for the same runner, measurements and judge as ours."""

from __future__ import annotations

import resource
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verglas.errors import InputError, VerglasError
from verglas.io.relion_iterations import remove_iterations_after
from verglas.jobs.declaration import Items, Job, JobType, NodeType, OutputSpec
from verglas.jobs.refinement import reference_files
from verglas.project.jobfiles import note
from verglas.relion.command import REFERENCES, arguments, extra_options, going_on, value_of
from verglas.relion.files import count_particles, last_whole_iteration, write_references
from verglas.relion.install import check_ranks, find_version, launch, threads_of_each
from verglas.relion.measure import MAP, checks_of, measure_of
from verglas.relion.output import Heard
from verglas.relion.pictures import draw
from verglas.relion.process import follow, settle
from verglas.relion.programs import Program, program_of

_SGD_ITERATIONS = ("--sgd_ini_iter", "--sgd_inbetween_iter", "--sgd_fin_iter")


@dataclass(frozen=True)
class Relion:
    """How RELION carries out a job: its version, MPI ranks, threads of each, and what the user gives it beside the declaration."""

    version: str
    ranks: int
    threads: int
    extra: tuple[str, ...] = ()

    @property
    def identity(self) -> list[str]:
        """What of it decides a result, for the job's fingerprint."""
        return ["relion", self.version, *self.extra]


def by_relion(
    declared: JobType, params: Any, inputs: Mapping[str, Any], *, ranks: int | None = None, extra: str = ""
) -> tuple[JobType, Relion]:
    """The declared job carried out by the RELION on the PATH. `ranks`: None for the fewest that its program takes.

    Raises InputError where there is no RELION, or none for this job, or where it cannot express a parameter or an input.
    """
    program = program_of(declared.name)
    words = extra_options(extra)
    arguments(declared, params, inputs, Path("job"), threads=1, extra=words)
    version, number = find_version(program), check_ranks(program, ranks)
    threads = threads_of_each(number, params.threads) if program.threaded else 1
    relion = Relion(version, number, threads, tuple(words))
    return _as_relion_does_it(declared, program, relion, params), relion


def why_not(declared: JobType, params: Any, inputs: Mapping[str, Any], extra: str = "") -> InputError | None:
    """Why RELION cannot carry out this job, whether it is here or not; None where it can."""
    try:
        arguments(declared, params, inputs, Path("job"), threads=1, extra=extra_options(extra))
    except InputError as error:
        return error
    return None


def _as_relion_does_it(declared: JobType, program: Program, relion: Relion, params: Any) -> JobType:
    last = _last_iteration(declared, params, relion)
    outputs = _first_map_outputs(params, last) if declared.name == "InitialModel" else declared.outputs(params)

    def run(job: Job) -> Items:
        return _Work(declared, program, relion, job, last).run([spec.path for spec in outputs])

    return replace(
        declared,
        run=run,
        outputs=lambda _: outputs,
        measure=measure_of(declared, last),
        checks=checks_of(declared),
    )


def _last_iteration(declared: JobType, params: Any, relion: Relion) -> int:
    """Number of the last iteration; 0 where the data decide or there are none."""
    if declared.name == "InitialModel":
        words = arguments(declared, params, {}, Path("job"), threads=1, extra=relion.extra)
        return sum(int(value_of(words, name) or 0) for name in _SGD_ITERATIONS)
    return params.iterations if declared.name in ("Class2D", "Class3D") else 0


def _first_map_outputs(params: Any, last: int) -> tuple[OutputSpec, ...]:
    name = f"run_it{last:03d}"
    return (
        OutputSpec("map", NodeType.MAP, MAP),
        OutputSpec("particles", NodeType.PARTICLES, f"{name}_data.star"),
        OutputSpec("model", NodeType.MODEL, f"{name}_model.star"),
        OutputSpec("optimiser", NodeType.OPTIMISER, f"{name}_optimiser.star"),
        *(OutputSpec(f"class{k}", NodeType.MAP, f"{name}_class{k:03d}.mrc") for k in range(1, params.classes + 1)),
    )


def _cpu_of_children() -> float:
    """CPU seconds of all processes that this one has started and seen end, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@dataclass
class _Work:
    """One run of RELION in a job's folder."""

    declared: JobType
    program: Program
    relion: Relion
    job: Job
    last: int

    def run(self, outputs: list[str]) -> Items:
        """Start it, or go on where it was, until everything that the job declares is there; count the particles."""
        job = self.job
        job.record |= {"relion_commands": [], "relion_wall_s": 0.0, "relion_cpu_s": 0.0}
        if all((job.out / path).exists() for path in outputs):
            job.say("everything is there already")
            return self._counted_and_drawn()
        said = arguments(self.declared, job.params, job.inputs, job.out, threads=self.relion.threads, extra=self.relion.extra)
        if (references := job.inputs.get("reference")) and isinstance(references, list) and len(references) > 1:
            write_references(job.out / REFERENCES, reference_files(references))
        begun, words = self._begin(said)
        settle()
        with job.phase("compute"):
            if words:
                self._start(words, begun)
            if self.declared.name == "Refine3D" and not (job.out / "run_data.star").exists():
                self._finish_refinement(said)
        with job.phase("write"):
            try:
                self._name_outputs()
                return self._counted_and_drawn()
            except InputError as error:  # a file of RELION's, not of the user's
                raise VerglasError(f"RELION left a file that cannot be used: {error}") from None

    def _begin(self, said: list[str]) -> tuple[int, list[str]]:
        """After which iteration (the last whole one of an earlier run, if there was one), and with which options; none if all are done."""
        job = self.job
        if not self.program.iterates:
            return 0, said
        found = self._last_whole()
        if found is None:
            if any(job.out.glob("run_it*")):
                job.say("starting over: RELION left no whole iteration to go on from")
                remove_iterations_after(job.out, -1)
            return 0, said
        number, optimiser = found
        job.say(f"going on after iteration {number}")
        remove_iterations_after(job.out, number)
        if number == int(value_of(said, "--auto_iter_max") or -1):
            return number, []
        return number, going_on(self.program, optimiser, job.out, said)

    def _last_whole(self) -> tuple[int, Path] | None:
        """The iteration to go on after: of a run with fewer iterations than an earlier one, none that lies beyond its end."""
        from verglas.particles import read_particles

        rows, refinement = len(read_particles(self.job.inputs["particles"])), self.declared.name == "Refine3D"
        most = self.job.params.iterations if refinement else self.last - 1
        return last_whole_iteration(self.job.out, rows, models=2 if refinement else 1, most=most)

    def _start(self, words: list[str], begun: int) -> None:
        """Run RELION with these options, and show its iterations as ours."""
        job, relion = self.job, self.relion
        plain = shlex.join([*launch(self.program, relion.ranks, leashed=False), *words])
        job.say(f"RELION {relion.version}: {plain}")
        job.record["relion_commands"].append(plain)
        note(job.out, f" ++++ RELION {relion.version}, with the following command(s): \n{plain}\n ++++ ")
        with self._clocked():
            self._follow([*launch(self.program, relion.ranks), *words], begun)

    @contextmanager
    def _clocked(self) -> Iterator[None]:
        """Add up what RELION's processes alone take, without the Python that waits for them."""
        facts, wall, cpu = self.job.record, time.monotonic(), _cpu_of_children()
        try:
            yield
        finally:
            facts["relion_wall_s"] += time.monotonic() - wall
            facts["relion_cpu_s"] += _cpu_of_children() - cpu

    def _follow(self, command: list[str], begun: int) -> None:
        job = self.job
        if not self.program.iterates:
            follow(job, command, lambda heard: None)
            return
        with job.progress("iterations", self.last - begun if self.last else 0) as bar:
            shown = begun

            def began(heard: Heard) -> None:
                nonlocal shown
                job.say(heard.describe())
                bar.advance(max(0, heard.iteration - 1 - shown))
                shown = max(shown, heard.iteration - 1)

            heard = follow(job, command, began)
            bar.advance(max(0, heard.iteration - shown))

    def _finish_refinement(self, said: list[str]) -> None:
        """RELION stops at the most iterations without joining the halves, which ours does then: it is asked to."""
        found, job = self._last_whole(), self.job
        if found is None:
            raise VerglasError("RELION ended without a whole iteration")
        job.warn(f"not converged after {found[0]} iterations: the last one joins the halves as they are")
        self._start(going_on(self.program, found[1], job.out, said, finish=True), found[0])

    def _name_outputs(self) -> None:
        """The names that the declaration has for what RELION names otherwise or leaves unsaid."""
        from verglas.io.atomic import whole_file, write_json

        job = self.job
        if self.declared.name == "InitialModel":
            source = job.out / f"run_it{self.last:03d}_class{self._largest_class():03d}.mrc"
            with whole_file(job.out / MAP) as temporary:
                shutil.copyfile(source, temporary)
            job.record[MAP] = f"copy of {source.name}"
            job.say(f"{MAP} is a copy of {source.name}; RELION made one start")
        if self.declared.name == "MaskCreate":
            details = {"threshold": job.params.inimask_threshold, "rule": "given", "command": job.record["relion_commands"][-1]}
            write_json(job.out / "mask.json", details)

    def _largest_class(self) -> int:
        from verglas.jobs.class2d import read_classes

        return int(read_classes(self.job.out / f"run_it{self.last:03d}_model.star")[0].argmax()) + 1

    def _counted_and_drawn(self) -> Items:
        items = self._items()
        try:
            draw(self.declared.name, self.job.out, self.last)
        except (VerglasError, OSError) as error:  # the judge says what is wrong with the files
            self.job.warn(f"not all pictures are drawn: {error}")
        return items

    def _items(self) -> Items:
        job = self.job
        if not self.program.iterates:
            return Items("maps", total=1, done=1)
        name = "run_data.star" if self.declared.name == "Refine3D" else f"run_it{self.last:03d}_data.star"
        if not (job.out / name).is_file():
            raise VerglasError(f"RELION ended well and left no {name}")
        items = count_particles(job.inputs["particles"], job.out / name, drawn_only=self.declared.name == "InitialModel")
        self._warn_of_empty_classes(job.out / name)
        return items

    def _warn_of_empty_classes(self, data: Path) -> None:
        from verglas.particles import read_particles

        classes = getattr(self.job.params, "classes", 1)
        occupied = set(read_particles(data).column("class_number").tolist())
        empty = [str(k) for k in range(1, classes + 1) if k not in occupied]
        if empty and classes > 1:
            self.job.warn(f"no particle is in class {', '.join(empty)}: fewer classes would do")
