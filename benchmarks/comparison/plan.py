"""What the engines are asked to do: the same parameters for both, and those that only one of them has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from verglas.errors import InputError
from verglas.simulate.particle_sets import KINDS

ENGINES = ("verglas", "relion")
JOBS = {"d2": ("Class2D", "InitialModel", "Refine3D"), "c1": ("Class2D", "InitialModel", "Refine3D"), "two_states": ("Class3D",)}
RANKS_OF_REFINE3D = 3  # RELION's leader and one worker for each half; the leader only waits

_OFFSETS = {"offset_range": 5.0, "offset_step": 2.0}
_SHARED: dict[str, dict[str, Any]] = {
    "Class2D": {"classes": 10, "iterations": 15, "psi_step": 12.0, "tau2_fudge": 2.0, **_OFFSETS},
    "InitialModel": {"classes": 1},
    "Class3D": {"classes": 2, "iterations": 12, "ini_high": 40.0, "healpix_order": 2, "tau2_fudge": 4.0, **_OFFSETS},
    "Refine3D": {"ini_high": 40.0, "healpix_order": 2, "local_search_order": 3, "low_resol_join_halves": 40.0, **_OFFSETS},
}
# An initial model is found by other means in each engine: theirs are the settings of their own that make one of this size.
_OWN: dict[tuple[str, str], dict[str, Any]] = {
    ("InitialModel", "verglas"): {
        "starts": 2,
        "iterations": 24,
        "sgd_ini_resol": 40.0,
        "sgd_fin_resol": 20.0,
        "sgd_ini_subset": 150,
        "sgd_fin_subset": 500,
        "refine_iterations": 4,
    },
    ("InitialModel", "relion"): {
        "sgd_ini_resol": 35.0,
        "sgd_fin_resol": 15.0,
        "sgd_ini_subset": 100,
        "sgd_fin_subset": 300,
        "write_every": 20,
        "relion_args": "--sgd_ini_iter 20 --sgd_inbetween_iter 60 --sgd_fin_iter 20 --pad 1",
    },
}


@dataclass(frozen=True)
class Task:
    """One job on one set by one engine. `options`: parameters given on the command line, over those of the plan."""

    kind: str
    job: str
    engine: str
    seed: int
    n: int
    box: int
    pixel_size: float
    threads: int
    snr: float = 0.05
    options: tuple[tuple[str, str], ...] = ()

    @property
    def set_folder(self) -> str:
        """Name of the set's folder, which tells all that it depends on."""
        return f"{self.kind}_{self.n}_{self.box}px_{self.pixel_size:g}A_snr{self.snr:g}_seed{self.seed}"

    @property
    def folder(self) -> str:
        """The job's folder in that of the set."""
        return f"{self.job}/{self.engine}"


def tasks(
    pairs: Iterable[tuple[str, str]],
    *,
    engines: Iterable[str],
    seeds: Iterable[int],
    n: int,
    box: int,
    pixel_size: float,
    threads: int,
    snr: float = 0.05,
    options: Iterable[tuple[str, str]] = (),
) -> list[Task]:
    """All jobs in the order in which they run: the engines take turns on each set. Raises InputError for what isn't known."""
    pairs, engines, seeds = list(pairs), list(engines), list(seeds)
    for given, known, what in ((engines, ENGINES, "--engines"), ([job for _, job in pairs], tuple(_SHARED), "--job")):
        for name in given:
            if name not in known:
                raise InputError(what, f"{name!r} is not known", f"Known: {', '.join(known)}")
    for kind, job in pairs:
        if kind not in KINDS:
            raise InputError("--set", f"{kind!r} is not known", f"Known: {', '.join(KINDS)}")
        if job == "Class3D" and len(KINDS[kind].shares) < 2:
            raise InputError("--job", f"Class3D finds nothing to part in {kind}", "Give --set two_states")
    more = (n, box, pixel_size, threads, snr, tuple(options))
    return [Task(kind, job, engine, seed, *more) for seed in seeds for kind, job in pairs for engine in engines]


def parameters(task: Task) -> dict[str, Any]:
    """Parameters of the job by our names, but for threads and ranks; both engines get the same unless `own_parameters` tells others."""
    kind = KINDS[task.kind]
    symmetry = {} if task.job == "Class2D" else {"symmetry": kind.symmetry}
    common = {"mask_diameter": kind.mask_diameter, **symmetry, "random_seed": task.seed}
    return common | _SHARED[task.job] | own_parameters(task.job, task.engine) | dict(task.options)


def own_parameters(job: str, engine: str) -> dict[str, Any]:
    """Parameters that only this engine gets."""
    return _OWN.get((job, engine), {})


def resources(task: Task) -> dict[str, int]:
    """Threads, and RELION's ranks: all work on as many cores as there are threads."""
    if task.engine == "relion" and task.job == "Refine3D":
        return {"ranks": RANKS_OF_REFINE3D, "threads": max(1, task.threads // (RANKS_OF_REFINE3D - 1))}
    return {"threads": task.threads}


def words(task: Task) -> list[str]:
    """The job's words on our command line, run in the set's folder."""
    command = ["job", task.job, "--particles", "particles.star"]
    if task.job in ("Class3D", "Refine3D"):
        command += ["--reference", "reference.mrc"]
    for name, value in (parameters(task) | resources(task)).items():
        option, text = "--" + name.replace("_", "-"), f"{value:g}" if isinstance(value, float) else str(value)
        # a value that begins with a dash must not be taken for an option
        command += [f"{option}={text}"] if text.startswith("-") else [option, text]
    if task.engine != "verglas":
        command += ["--engine", task.engine]
    return [*command, "--out", task.folder]


def settings_text(some: Iterable[Task]) -> list[str]:
    """Lines that say which settings the engines had, for each job once."""
    lines: dict[str, None] = {}
    for task in some:
        hidden = {"random_seed", "mask_diameter", "symmetry"} | set(own_parameters(task.job, task.engine))
        shared = {name: value for name, value in parameters(task).items() if name not in hidden}
        own = own_parameters(task.job, task.engine)
        lines[f"{task.job}, all engines: {_listed(shared)}"] = None
        lines[f"{task.job}, {task.engine}: {_listed(own | resources(task))}"] = None
    return list(lines)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
