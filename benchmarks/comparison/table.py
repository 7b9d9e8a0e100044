"""The one table: cost and scores of each engine over the seeds, their ratio, and whether the bar is met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from comparison.measures import COST, SCORES, Measure, wanted_speed, within_bar
from comparison.runs import Run
from verglas.records.render import in_columns

YARDSTICK = "relion"
PATH_FACTS = ("device", "coarse_precision", "precision", "slices", "preloaded")


def table(runs: Sequence[Run], engines: Sequence[str]) -> str:
    """Text of the table for all sets and jobs of `runs`; median over the seeds, and the range in brackets."""
    lines = [("Set", "Job", "Measure", *engines, "Ratio", "Bar")]
    for kind, job in dict.fromkeys((run.kind, run.job) for run in runs):
        some = [run for run in runs if (run.kind, run.job) == (kind, job)]
        lines += [(kind, job, *cells) for cells in rows(some, engines)]
    return in_columns(lines)


def rows(runs: Sequence[Run], engines: Sequence[str]) -> list[tuple[str, ...]]:
    """Lines (measure, one text an engine, ratio, bar) of one job on one set."""
    job, by_engine = runs[0].job, {engine: [run for run in runs if run.engine == engine] for engine in engines}
    good = {engine: [run for run in some if run.good] for engine, some in by_engine.items()}
    blank = ("",) * 2
    lines: list[tuple[str, ...]] = [("runs that passed", *(f"{len(good[e])} of {len(by_engine[e])}" for e in engines), *blank)]
    for measure in (*COST, *SCORES):
        values = {engine: {run.seed: run.figures[measure.key] for run in good[engine] if measure.key in run.figures} for engine in engines}
        if any(values.values()):
            shown = (_spread(list(values[engine].values()), measure, runs[0]) for engine in engines)
            lines.append((measure.name, *shown, *_comparison(measure, job, values, engines, bf16_peak(runs))))
    told = {engine: sorted({_version(run) for run in good[engine]}) for engine in engines}
    lines.append(("version", *(" / ".join(told[engine]) or "–" for engine in engines), *blank))
    for fact in PATH_FACTS:
        told = {engine: sorted({str(run.path[fact]) for run in good[engine] if fact in run.path}) for engine in engines}
        if any(told.values()):
            lines.append((fact.replace("_", " "), *(" / ".join(told[engine]) or "–" for engine in engines), *blank))
    return lines


def _version(run: Run) -> str:
    """The engine's version; ours with the commit."""
    software = run.path.get("software", {})
    if run.engine != "verglas":
        return str(software.get(run.engine, "?"))
    commit, _, changed = str(software.get("commit") or "").partition(" ")
    return " ".join(filter(None, (str(software.get("verglas", "?")), commit[:9], changed)))


def bf16_peak(runs: Sequence[Run]) -> float:
    """Best rate of bf16 products measured beside the runs, TFLOP/s; 0 where none was."""
    return max((run.peak.get("bf16", 0.0) for run in runs), default=0.0)


def _comparison(measure: Measure, job: str, values: dict[str, dict[int, float]], engines: Sequence[str], peak: float) -> tuple[str, str]:
    """Ratio and bar of the first engine against the yardstick, over the seeds that both have."""
    first = engines[0]
    if first == YARDSTICK or YARDSTICK not in engines:
        return "", ""
    ours, theirs = values[first], values[YARDSTICK]
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    met = within_bar(measure, job, list(ours.values()), list(theirs.values()), pairs, peak)
    bar = "" if met is None else ("met" if met else "NOT MET")
    if met is not None and measure.bar == "time":
        bar += f" (≥ {wanted_speed(job, peak):g}×)"
    return _ratio(measure, pairs), bar


def _ratio(measure: Measure, pairs: Sequence[tuple[float, float]]) -> str:
    if measure in COST[:3]:
        less = statistics.median(theirs / mine for mine, theirs in pairs) if pairs else 0.0
        return (f"{less:.1f}× less" if less >= 1 else f"{1 / less:.1f}× more") if less else ""
    if measure.unit == "shell":
        return f"{statistics.median(mine - theirs for mine, theirs in pairs):+g} shells" if pairs else ""
    usable = [mine / theirs for mine, theirs in pairs if theirs]
    return f"{statistics.median(usable):.3f}" if usable else ""


def _spread(values: Sequence[float], measure: Measure, run: Run) -> str:
    if not values:
        return "–"
    middle = statistics.median(values)
    if measure.unit == "shell":
        length = run.box * run.pixel_size
        middle = statistics.median_low(values)
        text = f"{length / middle:.2f} Å, shell {middle:g}" if middle else "none"
    else:
        text = f"{_number(middle)} {measure.unit}".strip()
    return text if len(values) == 1 else f"{text} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
