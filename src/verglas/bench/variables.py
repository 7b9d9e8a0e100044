"""What the shipped recipe is told about simulated data: facts from the simulation, sizes from the tier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FACTS = ("pixel_size", "voltage", "spherical_aberration", "amplitude_contrast", "dose_per_frame", "symmetry")

# A box of about 200 Å; 4x for 2D classes and the first map, 2x for the final one.
TIERS: dict[str, dict[str, Any]] = {
    "tiny": {
        "patches": 3,
        "box_size": 144,
        "box_4x": 36,
        "box_2x": 72,
        "classes_2d": 10,
        "iterations_2d": 15,
        "classes_3d": 2,
        "iterations_3d": 10,
        "limit_3d": 15.0,
        # Nyquist is 5.6 Å: between there and 10 Å a protein's own spectrum falls, and a Guinier fit would take that for a B factor.
        "bfactor": -150.0,
    },
    "small": {"patches": 5, "box_size": 192, "box_4x": 48, "box_2x": 96, "classes_2d": 50, "limit_3d": 12.0},
}


def recipe_variables(simulation: Path, tier: str) -> dict[str, str]:
    """Values for the variables of the `aldolase` recipe, as text for `verglas run --set`."""
    facts = json.loads((simulation / "simulation.json").read_text())["recipe"]
    values: dict[str, Any] = {name: facts[name] for name in FACTS}
    values |= {"movies": facts["movies"], "gain": facts["gain"]}
    values |= {"particle_diameter": facts["diameter"], "mask_diameter": round(facts["diameter"] * 1.3)}
    return {name: str(value) for name, value in (values | TIERS[tier]).items()}
