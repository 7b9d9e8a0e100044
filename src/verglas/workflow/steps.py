"""Carries out a recipe in the project of the working directory: what is done already stays, what was begun goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verglas.errors import InputError
from verglas.jobs.declaration import JobType
from verglas.jobs.registry import job_type
from verglas.project.project import Project
from verglas.records.lock import is_running
from verglas.records.record import FAIL, Record
from verglas.records.table import current_verdict
from verglas.records.ticket import in_queue
from verglas.relion.engine import why_not
from verglas.relion.programs import PROGRAMS
from verglas.workflow.cluster import Cluster, run_on_cluster, wait_for
from verglas.workflow.expression import evaluate
from verglas.workflow.folder import records_of
from verglas.workflow.recipe import Recipe, Step
from verglas.workflow.request import JobRequest, files_of, fingerprint, option, with_relion
from verglas.workflow.runner import Outcome, describe, run_job
from verglas.workflow.screen import Screen


@dataclass
class StepResult:
    """What became of a step: `done`, `kept` (nothing had changed), `skipped` (`when` was false), `failed`, or `planned`."""

    step: Step
    what: str
    folder: Path | None = None
    record: Record | None = None
    exit_code: int = 0


@dataclass(frozen=True)
class Engine:
    """Who does the steps: ours, or RELION those that it has a program for, on `ranks` MPI ranks (None: the fewest)."""

    name: str = "verglas"
    ranks: int | None = None


def run_recipe(
    recipe: Recipe,
    screen: Screen,
    *,
    plan: bool = False,
    cluster: Cluster | None = None,
    threads: int | None = None,
    engine: Engine = Engine(),
) -> Iterator[StepResult]:
    """Run the steps in order, here or each on `cluster`, yielding what became of each; the first that fails is the last.

    With `plan`, nothing runs: the steps that would are `planned`, as are all that depend on them. `threads` is for steps that name none.
    With RELION as the engine, ours does the types that it has no program for, and a mask or a sharpening that it cannot express; a
    refinement that it cannot express is an InputError.
    """
    project = Project.here()
    if project is None:
        raise InputError(Path.cwd(), "is not a project", "Make one here: verglas new .")
    results: dict[str, StepResult] = {}
    for step in recipe.steps:
        result = _Step(recipe, step, results, project, screen, cluster, threads, engine).carry_out(plan)
        results[step.name] = result
        yield result
        if result.what == "failed":
            return


@dataclass
class _Step:
    recipe: Recipe
    step: Step
    results: dict[str, StepResult]
    project: Project
    screen: Screen
    cluster: Cluster | None
    threads: int | None
    engine: Engine

    @property
    def where(self) -> str:
        return f"{self.recipe.path}: step {self.step.name}"

    def carry_out(self, plan: bool) -> StepResult:
        """Keep, skip, plan or run the step."""
        if plan and any(self.results[name].what == "planned" for name in self.recipe.needs(self.step)):
            return StepResult(self.step, "planned")
        if not evaluate(self.step.when, self._look_up, self.where):
            return StepResult(self.step, "skipped")
        request = self._request()
        request.check_inputs()
        work = fingerprint(request, describe(request))
        known = self._known(request, work)
        if known is not None:
            if request.alias:
                self.project.set_alias(f"{known[0]}/", request.alias)
            return StepResult(self.step, "kept", *known)
        if plan:
            return StepResult(self.step, "planned")
        self.screen.say(f"── {self.step.name}: {self.step.job}")
        outcome = self._run(request, work)
        what = "failed" if outcome.record.verdict == FAIL else "done"
        return StepResult(self.step, what, outcome.folder, outcome.record, outcome.exit_code)

    def _run(self, request: JobRequest, work: str) -> Outcome:
        """Run the job here, or on the cluster; one that an earlier run of the recipe left in the queue is waited for."""
        if self.cluster is None:
            return run_job(request, self.screen)
        for folder, record in records_of(request.declared.name):
            if record.fingerprint == work and in_queue(folder, record) is not None:
                return wait_for(folder, request, self.cluster, self.screen)
        return run_on_cluster(request, self.cluster, self.screen)

    def _request(self) -> JobRequest:
        declared = job_type(self.step.job)
        params = {} if self.threads is None else {"threads": self.threads}
        for name, value in self.step.params.items():
            params[name] = evaluate(value, self._look_up, f"{self.where}, params.{name}")
        inputs = {}
        for name, value in self.step.inputs.items():
            given = evaluate(value, self._look_up, f"{self.where}, inputs.{name}")
            inputs[name] = _paths(declared, name, given)
        name = f"{self.recipe.name}/{self.step.name}"
        return self._for_engine(JobRequest(declared, self._checked(declared, params), inputs, alias=self.step.alias, step=name))

    def _for_engine(self, request: JobRequest) -> JobRequest:
        """The request for RELION, where the step or the run asks for it and it has a program for such jobs."""
        wanted, job = self.step.engine or self.engine.name, self.step.job
        if wanted == "verglas" or (job not in PROGRAMS and self.step.engine is None):
            return request
        reason = why_not(request.declared, request.params, request.inputs, self.step.relion_args)
        if reason is not None and self.step.engine is None and not PROGRAMS[job].iterates:
            self.screen.say(f"── {self.step.name}: by our engine, as RELION cannot: {reason}")
            return request
        if reason is not None:
            raise InputError(self.where, str(reason), 'Give the step engine = "verglas" to have it done by ours')
        return with_relion(request, self.engine.ranks if PROGRAMS[job].parallel else None, self.step.relion_args)

    def _checked(self, declared: JobType, values: dict[str, Any]) -> Any:
        from pydantic import ValidationError

        try:
            return declared.params(**values)
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(map(str, problem["loc"]))
            raise InputError(f"{self.where}, params.{name}", f"found {problem.get('input')!r}: {problem['msg']}") from None

    def _look_up(self, name: str) -> Any:
        """Value of a variable, file of an output, or a metric; None for a step that was skipped."""
        first, dot, what = name.partition(".")
        if not dot:
            return self.recipe.variables[first]
        result = self.results[first]
        if result.what == "skipped":
            return None
        assert result.record is not None
        outputs = {output["name"]: f"{result.folder}/{output['path']}" for output in result.record.outputs}
        found = {**result.record.metrics, **outputs}
        if what not in found:
            raise InputError(self.where, f"step {first} has no output or metric {what!r}", f"It has: {', '.join(found)}")
        return found[what]

    def _known(self, request: JobRequest, work: str) -> tuple[Path, Record] | None:
        """A finished job of the same work in this project, its outputs as they were judged."""
        for folder, record in records_of(request.declared.name):
            if record.fingerprint == work:
                if is_running(folder) and (self.cluster is None or in_queue(folder, record) is None):
                    raise InputError(self.where, f"is running already in {folder}", "Wait for it, or stop it: verglas stop JOB")
                if record.state == "finished" and current_verdict(folder, record)[0] != FAIL:
                    return folder, record
        return None


def _paths(declared: JobType, name: str, given: Any) -> Any:
    """Files of an input; an empty text or None is an input that isn't given."""
    spec = next(spec for spec in declared.inputs if spec.name == name)
    if spec.many:
        return [path for item in (given if isinstance(given, list) else [given]) if item for path in files_of(str(item))]
    if isinstance(given, list):
        raise InputError(option(name), f"takes one file, found {len(given)}")
    return Path(given) if given else None
