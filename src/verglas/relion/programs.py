"""Which of RELION 3.1's programs carries out which job type, and what it says otherwise than by one flag a parameter.

Beside the flags of the declarations: what RELION's own windows always give (`fixed`), parameters that it says in other words (`own`),
and parameters that have no part in its command (`apart`), because our measurements alone use them or its program has nothing like it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from verglas.errors import InputError

Words = Callable[[Any], list[str]]


@dataclass(frozen=True)
class Program:
    """How a job type is RELION's: `output` is what follows the job's folder in `--o`, `least_ranks` what it cannot do with fewer of."""

    name: str
    output: str
    fixed: tuple[str, ...] = ()
    own: Mapping[str, Words] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()
    parallel: bool = False
    threaded: bool = True
    least_ranks: int = 1

    @property
    def iterates(self) -> bool:
        """Whether it writes iterations, from the last of which it can go on."""
        return self.output == "run"


def program_of(job_type: str) -> Program:
    """RELION's program for a job type. Raises InputError with the types that have one for another."""
    if job_type not in PROGRAMS:
        known = ", ".join(PROGRAMS)
        raise InputError("--engine relion", f"has no program for {job_type}", f"It carries out {known}; leave --engine out for others")
    return PROGRAMS[job_type]


def _number(value: float) -> str:
    return f"{value:.10g}"


def _firstiter_cc(params: Any) -> list[str]:
    return [] if params.absolute_greyscale else ["--firstiter_cc"]


def _ini_threshold(params: Any) -> list[str]:
    if params.inimask_threshold is None:
        raise InputError("--inimask-threshold", "is needed: RELION finds no threshold by itself", "Give one, or leave --engine out")
    return ["--ini_threshold", _number(params.inimask_threshold)]


def _bfactor(params: Any) -> list[str]:
    """The automatic B-factor, unless one is given."""
    return ["--auto_bfac"] if params.do_auto_bfac and params.adhoc_bfac is None else []


def _adhoc_bfactor(params: Any) -> list[str]:
    return [] if params.adhoc_bfac is None else ["--adhoc_bfac", _number(params.adhoc_bfac)]


# RELION's command lines of its windows (RELION.md §10)
_REFINE = ("--dont_combine_weights_via_disc", "--pool", "30", "--flatten_solvent", "--zero_mask", "--oversampling", "1")
_GRADIENT = ("--sgd", "--denovo_3dref", "--sgd_ini_iter", "50", "--sgd_inbetween_iter", "200", "--sgd_fin_iter", "50")
_COARSE = ("--norm", "--scale", "--healpix_order", "1", "--offset_range", "6", "--offset_step", "2")

PROGRAMS = {
    "Class2D": Program("relion_refine", "run", _REFINE, parallel=True),
    "InitialModel": Program("relion_refine", "run", (*_GRADIENT, *_COARSE, *_REFINE), parallel=True),
    "Class3D": Program("relion_refine", "run", _REFINE, {"absolute_greyscale": _firstiter_cc}, parallel=True),
    "Refine3D": Program(
        "relion_refine",
        "run",
        ("--auto_refine", "--split_random_halves", *_REFINE),
        {"absolute_greyscale": _firstiter_cc},
        parallel=True,
        least_ranks=3,
    ),
    "MaskCreate": Program(
        "relion_mask_create",
        "mask.mrc",
        own={
            "lowpass_filter": lambda params: ["--lowpass", _number(params.lowpass_filter or -1)],
            "inimask_threshold": _ini_threshold,
        },
        apart=frozenset({"random_seed", "molecular_weight"}),
    ),
    "PostProcess": Program(
        "relion_postprocess",
        "postprocess",
        own={
            "angpix": lambda params: ["--angpix", _number(params.angpix or -1)],
            "do_auto_bfac": _bfactor,
            "adhoc_bfac": _adhoc_bfactor,
            "low_pass": lambda params: ["--low_pass", _number(-1 if params.low_pass is None else params.low_pass)],
        },
        threaded=False,
    ),
}
