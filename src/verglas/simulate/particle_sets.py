"""Particle sets as files, of any size, with the truth beside them: STAR with optics groups and one stack a micrograph.

    write_particle_set(Path("d2"), particle_set("d2", n=2000))

leaves `particles.star` (what an extraction knows), `truth.star` (the same rows with poses, origins, states and the envelope),
`particles/mic_0001.mrcs` …, `truth/state1.mrc` … (in the images' units), `reference.mrc` (state 1 at 40 Å) and `set.json`.
Names in the STAR files are relative to that folder. Particle k is the same in a set of any size with the same seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from verglas.errors import InputError
from verglas.io.atomic import write_json
from verglas.io.mrc import write_map, write_stack
from verglas.particles.files import write_particles
from verglas.particles.tables import ParticleSet, join
from verglas.simulate.particles import noise_free_images, noise_images, optics_table
from verglas.simulate.potential import Projector, potential_map
from verglas.simulate.specimen import Specimen
from verglas.simulate.stand_in import stand_in
from verglas.simulate.variants import with_domain_turned, without_symmetry
from verglas.volume.filters import lowpass

REFERENCE_RESOLUTION = 40.0  # Å
FACTS = "set.json"
_GAUGED = 256  # particles, not of the set, whose signal sets the scale: it is then the same for sets of any size
_TRUTH_ONLY = ("rot", "tilt", "psi", "origin_x", "origin_y", "class_number")


@dataclass(frozen=True)
class SetSettings:
    """What a particle set is made of; lengths in Å, voltage in kV.

    kind: a key of KINDS. snr: variance of the signal (with CTF and envelope, over the whole box) over the mean variance of the noise.
    noise: relative deviation of the noise of each optics group; the first has deviation 1 in the images. Micrographs belong to the
    groups by turns. offset_sigma: of the origins, an axis. defocus_*: uniform, up to 400 Å of astigmatism about it.
    envelope: B factor (Å²) that the images have and `particles.star` does not know. coloured: see `noise_images`.
    """

    kind: str
    n: int = 2000
    box: int = 80
    pixel_size: float = 2.5
    seed: int = 1
    snr: float = 0.05
    noise: tuple[float, ...] = (1.0, 1.2)
    coloured: bool = True
    offset_sigma: float = 4.0
    defocus_min: float = 8000.0
    defocus_max: float = 22000.0
    envelope: float = 150.0
    voltage: float = 300.0
    per_micrograph: int = 100


@dataclass(frozen=True)
class Kind:
    """A sort of set: point group, diameter of a mask round it (Å), its states, made when they are needed, and their shares."""

    symmetry: str
    mask_diameter: float
    states: Callable[[], list[Specimen]]
    shares: tuple[float, ...] = (1.0,)


def _two_states() -> list[Specimen]:
    return [stand_in(), with_domain_turned(stand_in(), 25.0)]


KINDS = {
    "d2": Kind("D2", 150.0, lambda: [stand_in()]),
    "c1": Kind("C1", 150.0, lambda: [without_symmetry(stand_in())]),
    "two_states": Kind("D2", 150.0, _two_states, (0.6, 0.4)),
}


def particle_set(kind: str, **settings: Any) -> SetSettings:
    """Settings of a set. Raises InputError for a kind that isn't known, and for no particles or a box that its mask does not fit in."""
    if kind not in KINDS:
        raise InputError("set", f"{kind!r} is not known", f"Known: {', '.join(KINDS)}")
    made = SetSettings(kind, **settings)
    diameter, length = KINDS[kind].mask_diameter, made.box * made.pixel_size
    if made.n < 1:
        raise InputError("particles", f"{made.n} asked for", "Ask for one or more")
    if length < diameter:
        raise InputError("box", f"{length:g} Å hold no mask of {diameter:g} Å", "Give a larger box or pixel")
    return made


def write_particle_set(out: Path, settings: SetSettings) -> None:
    """Write the set into folder `out`; one that is there already is kept. Raises InputError where it is of other settings."""
    if (out / FACTS).exists():
        _same_settings(out / FACTS, settings)
        return
    kind = KINDS[settings.kind]
    maps = torch.stack([potential_map(each, settings.box, settings.pixel_size) for each in kind.states()])
    projectors = [Projector(each) for each in maps]
    scale = _scale(settings, projectors)
    (out / "particles").mkdir(parents=True, exist_ok=True)
    (out / "truth").mkdir(exist_ok=True)
    micrographs = []
    for number, first in enumerate(range(0, settings.n, settings.per_micrograph), start=1):
        # the whole micrograph is made, however few of it are kept: sums over fewer images may round otherwise
        rows, count = _micrograph(settings, number), min(settings.per_micrograph, settings.n - first)
        images = _images(settings, rows, projectors, scale, number)[:count]
        write_stack(out / _stack(number), images.numpy(), settings.pixel_size)
        micrographs.append(rows.subset(np.arange(count)))
    for number, volume in enumerate(maps * scale, start=1):
        write_map(out / f"truth/state{number}.mrc", volume.numpy(), settings.pixel_size)
    write_map(out / "reference.mrc", lowpass(maps[0] * scale, settings.pixel_size, REFERENCE_RESOLUTION).numpy(), settings.pixel_size)
    truth = join(micrographs)
    write_particles(out / "truth.star", truth)
    write_particles(out / "particles.star", truth.with_columns(**dict.fromkeys(_TRUTH_ONLY), ctf_bfactor=0.0))
    facts = {"symmetry": kind.symmetry, "mask_diameter": kind.mask_diameter, "states": len(maps), "settings": asdict(settings)}
    write_json(out / FACTS, facts)


def _same_settings(path: Path, settings: SetSettings) -> None:
    stored, wanted = json.loads(path.read_text())["settings"], json.loads(json.dumps(asdict(settings)))
    differing = [f"{name} {stored.get(name)}, not {value}" for name, value in wanted.items() if stored.get(name) != value]
    if differing:
        raise InputError(path.parent, f"holds a set with {'; '.join(differing)}", "Give another folder")


def _stack(number: int) -> str:
    return f"particles/mic_{number:04d}.mrcs"


def _micrograph(settings: SetSettings, number: int, count: int | None = None) -> ParticleSet:
    """The true rows of one whole micrograph, drawn from the seed and its number."""
    random, n, kind = np.random.default_rng([settings.seed, number]), count or settings.per_micrograph, KINDS[settings.kind]
    origin = random.normal(0, settings.offset_sigma, (n, 2))
    mean, astigmatism = random.uniform(settings.defocus_min, settings.defocus_max, n), random.uniform(0, 400, n)
    table = pd.DataFrame(
        {
            "image_name": [f"{i + 1:06d}@{_stack(number)}" for i in range(n)],
            "micrograph_name": f"mic_{number:04d}.mrc",
            "optics_group": (number - 1) % len(settings.noise) + 1,
            "defocus_u": mean + astigmatism / 2,
            "defocus_v": mean - astigmatism / 2,
            "defocus_angle": random.uniform(0, 180, n),
            "ctf_bfactor": settings.envelope,
            "rot": random.uniform(-180, 180, n),
            "tilt": np.degrees(np.arccos(random.uniform(-1, 1, n))),
            "psi": random.uniform(-180, 180, n),
            "origin_x": origin[:, 0],
            "origin_y": origin[:, 1],
            "class_number": random.choice(len(kind.shares), n, p=kind.shares) + 1,
        }
    )
    return ParticleSet(optics_table(settings.box, settings.pixel_size, settings.voltage, len(settings.noise)), table)


def _scale(settings: SetSettings, projectors: list[Projector]) -> float:
    """Factor of the maps at which the signal has the SNR that is asked for, with noise of deviation noise[0] = 1."""
    gauge = _micrograph(replace(settings, noise=settings.noise[:1]), 0, _GAUGED)
    signal = noise_free_images(gauge, projectors).var().item()
    variance = float(np.mean(np.square(settings.noise))) / settings.noise[0] ** 2
    return (settings.snr * variance / signal) ** 0.5


def _images(settings: SetSettings, rows: ParticleSet, projectors: list[Projector], scale: float, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1_000_003 * settings.seed + number)
    noise = noise_images(settings.per_micrograph, settings.box, settings.pixel_size, settings.coloured, generator)
    deviation = settings.noise[(number - 1) % len(settings.noise)] / settings.noise[0]
    return scale * noise_free_images(rows, projectors) + deviation * noise
