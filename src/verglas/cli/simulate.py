"""`verglas simulate`: a data set with known truth."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from verglas.cli.fields import Parser, given, to_model
from verglas.errors import InputError
from verglas.workflow.request import option

_OPTIONS = {
    "tier": ("tiny|small", "Size to start from; the options below change it (default tiny)"),
    "out": ("DIR", "Folder for the data (needed)"),
}
_FLAGS = {"json": "Print what was made as JSON", "help": "Show this"}


def run_command(words: list[str]) -> int:
    """Simulate what the words ask for; a simulation that was cut short goes on."""
    from verglas.simulate.settings import TIERS, SimulationSettings

    parser = Parser("verglas simulate")
    for name in _OPTIONS:
        parser.add_argument(option(name), dest=f"run_{name}")
    for name in _FLAGS:
        parser.add_argument(*(["-h"] if name == "help" else []), option(name), dest=f"run_{name}", action="store_true")
    parser.add_fields(SimulationSettings)
    found, unknown = parser.parse(words)
    if unknown:
        parser.refuse(unknown[0], [*SimulationSettings.model_fields, *_OPTIONS, *_FLAGS], {})
    if found.run_help:
        print(_help_page())
        return 0
    tier = found.run_tier or "tiny"
    if tier not in TIERS:
        raise InputError("--tier", f"found {tier!r}, expected {' or '.join(TIERS)}")
    if not found.run_out:
        raise InputError("--out", "is needed", "Name a folder for the data")
    settings = to_model(SimulationSettings, given(found, SimulationSettings), TIERS[tier].model_dump())
    return _simulate(settings, Path(found.run_out), as_json=found.run_json)


def _simulate(settings: object, out: Path, *, as_json: bool) -> int:
    from verglas.records.machine import usable_cores
    from verglas.simulate.simulation import simulate
    from verglas.workflow.screen import Log, Screen

    start, screen = time.monotonic(), Screen(sys.stderr if as_json else sys.stdout)

    def progress(done: int, total: int) -> None:
        state = "start" if done == 0 else "end" if done == total else "going"
        screen.progress({"what": "movies", "done": done, "total": total, "state": state}, Log(None))

    made = simulate(settings, out, progress, workers=usable_cores())  # type: ignore[arg-type]
    screen.close()
    contrast = json.loads((made.out / "simulation.json").read_text())["contrast"]
    if as_json:
        counts = {"particles": made.particles, "made": made.made, "kept": made.kept, "contrast": contrast}
        print(json.dumps({"out": str(made.out), **counts, "seconds": time.monotonic() - start}, indent=1))
    else:
        snr = ", ".join(f"{value:g} at {resolution:g} Å" for resolution, value in zip(contrast["resolution"], contrast["snr"]))
        print(f"SNR of a Fourier component of one particle: {snr}")
        print(f"{made.made} movies made, {made.kept} kept, {made.particles} particles in {made.out}; the truth is in {made.out / 'truth'}")
    return 0


def _help_page() -> str:
    from verglas.cli.help import entry, field_entry
    from verglas.simulate.settings import SimulationSettings

    lines = ["verglas simulate: make movies from a model, with the truth beside them", "", "Examples:"]
    lines += ["  verglas simulate --tier tiny --out simulated", "  verglas simulate --model 1ado.cif --movies 24 --out simulated", ""]
    lines += [entry(option(name), metavar, text, []) for name, (metavar, text) in _OPTIONS.items()]
    lines += [entry(option(name), "", text, []) for name, text in _FLAGS.items()]
    lines += ["", "Settings (defaults of the tiny tier):"]
    return "\n".join([*lines, *(field_entry(name, info) for name, info in SimulationSettings.model_fields.items())])
