"""The command line of `scale`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scale.truth import SYMMETRIES, TURNS

FIELD_OF_VIEW = 286.7  # Å
# what a second command of the same run may have otherwise
_FREE = ("state", "seconds", "profile", "json", "peak", "bare", "threads", "warm_up", "stop_after", "device", "grow")


def options(arguments: Sequence[str] | None, description: str) -> argparse.Namespace:
    """The options, with the pixel size filled in."""
    parser = argparse.ArgumentParser(prog="scale", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("Class2D", "Class3D", "Refine3D"))
    of_set = parser.add_argument_group("the particles")
    of_set.add_argument("--particles", type=int, default=2000)
    of_set.add_argument("--box", type=int, default=80)
    of_set.add_argument("--pixel-size", type=float, default=0.0, help=f"Å; {FIELD_OF_VIEW} Å over the box where not given")
    of_set.add_argument("--symmetry", choices=SYMMETRIES, default="D2", help="of the specimen, and of the job in 3D")
    of_set.add_argument("--states", type=int, choices=range(1, len(TURNS) + 1), default=1, help="structures that are mixed")
    of_set.add_argument("--images", default="rendered", help="rendered (each time they are read), memory (float16), or a folder for stacks")
    of_set.add_argument("--mode", choices=("float16", "float32"), default="float32", help="of the stacks")
    of_job = parser.add_argument_group("the job")
    of_job.add_argument("--classes", type=int, default=1)
    of_job.add_argument("--iterations", type=int, default=25, help="of a classification")
    of_job.add_argument("--limit", type=float, default=0.0, help="Å, nothing finer is compared")
    of_job.add_argument("--ini-high", type=float, default=0.0, help="Å, of the references at the start: 40, or --start-from's resolution")
    of_job.add_argument(
        "--start-from", type=Path, help="a --state of a refinement of the same particles, in any box: local searches from it"
    )
    of_job.add_argument("--stop-after", type=int, default=0, help="iterations to run, where fewer than the job would")
    of_run = parser.add_argument_group("the run")
    of_run.add_argument("--state", type=Path, help="write the job's state there, and go on from it where it is there already")
    of_run.add_argument("--seconds", type=float, default=0.0, help="begin no iteration that may end later; saved then alone")
    of_run.add_argument("--device", default="auto")
    of_run.add_argument("--threads", type=int, default=0)
    of_run.add_argument(
        "--warm-up", action=argparse.BooleanOptionalAction, help="compile by a tiny run first (on a card: unless told not to)"
    )
    of_run.add_argument(
        "--bare", action="store_true", help="take no times inside iterations, but of rendering: the device is not waited for"
    )
    of_run.add_argument("--peak", action="store_true", help="measure the device's rate of products")
    of_run.add_argument("--profile", type=int, nargs="*", default=[], help="iterations to profile")
    of_run.add_argument("--json", type=Path, help="also write the figures there")
    of_run.add_argument(
        "--grow", choices=("particles", "box", "classes"), help="run at a quarter, half and all of it, three iterations each"
    )
    given = parser.parse_args(arguments)
    given.pixel_size = given.pixel_size or FIELD_OF_VIEW / given.box
    if given.start_from and given.job != "Refine3D":
        parser.error("--start-from is for Refine3D")
    return given


def identity(given: argparse.Namespace) -> dict[str, str]:
    """The options that all commands of a run share."""
    return {name: str(value) for name, value in vars(given).items() if name not in _FREE}
