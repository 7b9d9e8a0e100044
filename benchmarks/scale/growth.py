"""How the time of an iteration grows with the number of particles, the box or the classes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from scale.totals import Totals

SHARES = (0.25, 0.5, 1.0)
ITERATIONS = 3


def grown(given: argparse.Namespace) -> list[argparse.Namespace]:
    """The options with a quarter, half and all of what `--grow` names; the box keeps its field of view."""
    sizes = []
    for share in SHARES:
        size = max(1, round(share * getattr(given, given.grow)))
        if given.grow == "box":
            size += size % 2
        changed = {given.grow: size, "stop_after": given.stop_after or ITERATIONS, "state": None, "json": None, "warm_up": True}
        if given.grow == "box":
            changed["pixel_size"] = given.pixel_size * given.box / size
        sizes.append(argparse.Namespace(**vars(given) | changed))
    return sizes


def growth_table(what: str, sizes: Sequence[argparse.Namespace], totals: Sequence[Totals]) -> str:
    """Seconds an iteration by phase at each size, and the factor by which they grow from the middle size to the largest."""
    of_all = [_per_iteration(each) for each in totals]
    names = ["all", *sorted(of_all[-1].keys() - {"all"}, key=lambda name: -of_all[-1][name])]
    head = f"{'seconds an iteration':30s}" + "".join(f"{getattr(each, what):>12d}" for each in sizes) + "   doubled by"
    lines = [f"\nby {what}", head]
    for name in names:
        values = [each.get(name, 0.0) for each in of_all]
        growth = f"{values[-1] / values[-2]:.2f}" if values[-2] > 0 else "–"
        lines.append(f"{name:30s}" + "".join(f"{value:12.3f}" for value in values) + f"   {growth}")
    return "\n".join(lines)


def _per_iteration(totals: Totals) -> dict[str, float]:
    count, phases = len(totals.rows), {name: seconds for name, seconds in totals.phases.items() if name != "render"}
    whole = totals.iterations - totals.phases.get("render", 0.0)
    of_all = {"all": whole, **phases, "else": whole - sum(phases.values())}
    return {name: seconds / count for name, seconds in of_all.items()}
