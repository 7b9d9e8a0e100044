"""What a run has taken so far, kept beside its state between the commands that share it, and told at its end."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from scale.phases import UNITS, Phases
from verglas.errors import InputError
from verglas.io.atomic import write_json

Figures = dict[str, float]


@dataclass
class Totals:
    """Sums over all commands of a run. Seconds: `aside` is no part of the job (rendering, warm-up, saving, scoring), `before` is: what
    comes ahead of the first iteration; `phases` of the iterations, `beside` in threads at the same time. `memory`: peaks, GB.
    """

    commands: int = 0
    rows: list[Figures] = field(default_factory=list)
    before: Figures = field(default_factory=dict)
    aside: Figures = field(default_factory=dict)
    phases: Figures = field(default_factory=dict)
    beside: Figures = field(default_factory=dict)
    amounts: Figures = field(default_factory=dict)
    memory: Figures = field(default_factory=dict)

    def take(self, phases: Phases) -> None:
        """Add what `phases` has counted, which starts again from 0."""
        for own, new in ((self.phases, phases.seconds), (self.beside, phases.beside), (self.amounts, phases.amounts)):
            for name, value in new.items():
                own[name] = own.get(name, 0.0) + value
            new.clear()

    def note_memory(self, device: torch.device) -> None:
        """Take the peaks of this process in."""
        peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
        if device.type == "cuda":
            peaks["GPU"] = torch.cuda.max_memory_allocated(device) / 1e9
        self.memory = {name: max(value, self.memory.get(name, 0.0)) for name, value in peaks.items()}

    @property
    def iterations(self) -> float:
        """Seconds of the iterations, rendering on demand included."""
        return sum(row["seconds"] for row in self.rows)

    @property
    def job(self) -> float:
        """Seconds of the job: what comes before the iterations and they themselves, without rendering."""
        return sum(self.before.values()) + self.iterations - self.phases.get("render", 0.0)


def load_totals(path: Path, options: Mapping[str, str]) -> Totals:
    """The totals of the commands before. Raises InputError where those had other options."""
    content = json.loads(path.read_text())
    differing = [f"{name} {value}, not {options[name]}" for name, value in content["options"].items() if options[name] != value]
    if differing:
        raise InputError(path, f"is of a run with {'; '.join(differing)}", "Give the same options or another --state")
    return Totals(**content["totals"])


def save_totals(path: Path, totals: Totals, options: Mapping[str, str]) -> None:
    """Write the totals with the options that they are of."""
    write_json(path, {"options": dict(options), "totals": asdict(totals)})


def table(totals: Totals, device: str, peaks: Figures) -> str:
    """Time by phase with the rates reached, in words; `peaks` in TFLOP/s of the device by name, where measured."""
    commands = f" in {totals.commands} commands" if totals.commands > 1 else ""
    lines = [f"{device}: {totals.job:.1f} s for {len(totals.rows)} iterations{commands}"]
    lines += [f"  no part of it: {_listed(totals.aside | {'render on demand': totals.phases.get('render', 0.0)})}"]
    lines += [f"  before the first iteration: {_listed(totals.before)}"]
    if peaks:
        lines += [f"  peak of products: {', '.join(f'{name} {value:.4g} TFLOP/s' for name, value in peaks.items())}"]
    phases = {name: seconds for name, seconds in totals.phases.items() if name != "render"}
    whole = totals.iterations - totals.phases.get("render", 0.0)
    phases["else"] = whole - sum(phases.values())
    for name, seconds in sorted(phases.items(), key=lambda item: -item[1]):
        lines.append(f"  {name:30s} {seconds:8.2f} s  {100 * seconds / max(whole, 1e-9):5.1f} %  {_rate(totals, name, peaks)}".rstrip())
    for name, seconds in totals.beside.items():
        lines.append(f"  {name + ', beside the others':30s} {seconds:8.2f} s           {_rate(totals, name, peaks)}".rstrip())
    lines.append(f"  peak memory: {', '.join(f'{name} {value:.4g} GB' for name, value in totals.memory.items())}")
    return "\n".join(lines)


def _listed(seconds: Figures) -> str:
    return ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items() if value) or "nothing"


def _rate(totals: Totals, phase: str, peaks: Figures) -> str:
    """The rate of a phase, over the time it took in all threads."""
    amount, unit = totals.amounts.get(phase, 0.0), UNITS.get(phase)
    if not amount or not unit:
        return ""
    rate = amount / (totals.phases.get(phase, 0.0) + totals.beside.get(phase, 0.0)) / (1e9 if unit == "GB/s" else 1e12)
    of_peak = [f"{100 * rate / peak:.0f} % of {name}" for name, peak in peaks.items()] if unit == "TFLOP/s" else []
    return f"{rate:.3g} {unit}" + (f" ({', '.join(of_peak)})" if of_peak else "")
