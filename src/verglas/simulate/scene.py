"""What lies in one movie and how it was taken: the truth, drawn from the seed and the movie's number alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verglas.simulate.motion import Motion, draw_motion, particle_paths
from verglas.simulate.settings import SimulationSettings

CRYSTAL_CLEARANCE = 80.0  # Å between a particle's centre and an ice crystal or a clump
TRUTH, PIXELS, EVENTS = 0, 1, 2  # random streams of a movie


@dataclass(frozen=True)
class Bodies:
    """Particles: `xy` px at frame 1 [n, 2]; `angles` rot, tilt, psi [n, 3] degrees; `height` Å; `state` from 1; own `paths` Å."""

    xy: np.ndarray
    angles: np.ndarray
    height: np.ndarray
    state: np.ndarray
    paths: np.ndarray  # [frames, n, 2]

    def __len__(self) -> int:
        return len(self.xy)


@dataclass(frozen=True)
class Scene:
    """One movie. Defocus and astigmatism in Å and degrees; `slope` Å of height a px (x, y); `crystals` x, y, radius in px [m, 3]."""

    index: int
    optics_group: int
    defocus: float
    astigmatism: float
    astigmatism_angle: float
    slope: np.ndarray
    crystals: np.ndarray
    carbon: np.ndarray | None  # x, y, radius (px) of the hole whose outside is carbon
    particles: Bodies
    clumped: Bodies
    motion: Motion

    def defocus_of(self, bodies: Bodies, shape: tuple[int, int]) -> np.ndarray:
        """Mean defocus at each particle, Å [n]: higher particles are further from the focus."""
        return self.defocus + bodies.height + (bodies.xy - np.array(shape[::-1]) / 2) @ self.slope


def random_stream(settings: SimulationSettings, index: int, stream: int) -> np.random.Generator:
    """The generator of movie `index`, for its truth or its pixels; the order in which movies are made does not matter."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([settings.seed, index, stream])))


def draw_scene(settings: SimulationSettings, index: int, diameter: float) -> Scene:
    """Scene of movie `index` (from 0) for a particle of `diameter` Å."""
    random = random_stream(settings, index, TRUTH)
    height, width = settings.shape
    tilt = np.tan(np.radians(random.uniform(0, settings.stage_tilt))) * settings.pixel_size
    heading = random.uniform(0, 2 * np.pi)
    defocus = random.uniform(settings.defocus_min, settings.defocus_max)
    astigmatism, angle = random.uniform(0, settings.astigmatism), random.uniform(0, 180)
    motion = draw_motion(settings.frames, settings.shape, settings.drift, settings.local_motion, random)
    carbon = _carbon(width, height, random) if random.uniform() < settings.carbon else None
    crystals = _crystals(settings, random) if random.uniform() < settings.contaminated else np.zeros((0, 3))
    clumps = _clumps(settings, random, diameter) if random.uniform() < settings.aggregated else np.zeros((0, 2))
    clumps = clumps[~_on_carbon(clumps, carbon)]
    wanted = int(
        np.clip(random.poisson(settings.particles_per_movie), 0.75 * settings.particles_per_movie, 1.25 * settings.particles_per_movie)
    )
    xy = _scatter(settings, wanted, crystals, clumps, carbon, random)
    return Scene(
        index=index,
        optics_group=index % settings.optics_groups + 1,
        defocus=defocus,
        astigmatism=astigmatism,
        astigmatism_angle=angle,
        slope=tilt * np.array([np.cos(heading), np.sin(heading)]),
        crystals=crystals,
        carbon=carbon,
        particles=_bodies(settings, xy, diameter, random),
        clumped=_bodies(settings, clumps, diameter, random),
        motion=motion,
    )


def carbon_cover(x: np.ndarray, y: np.ndarray, carbon: np.ndarray | None, edge: float = 12.0) -> np.ndarray:
    """Share of carbon at pixels (x, y), 0 to 1, with an edge of `edge` px."""
    if carbon is None:
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    distance = np.hypot(x - carbon[0], y - carbon[1]) - carbon[2]
    return (0.5 + 0.5 * np.tanh(distance / edge)).astype(np.float32)


def _bodies(settings: SimulationSettings, xy: np.ndarray, diameter: float, random: np.random.Generator) -> Bodies:
    n = len(xy)
    room = max(0.0, (settings.ice_thickness - diameter) / 2)
    return Bodies(
        xy=xy,
        angles=_views(n, settings.preferred_orientation, random),
        height=random.uniform(-room, room, n),
        state=1 + (random.uniform(size=n) < settings.second_state),
        paths=particle_paths(settings.frames, n, settings.particle_motion, random),
    )


def _views(n: int, kappa: float, random: np.random.Generator) -> np.ndarray:
    """Angles [n, 3]: uniform over all rotations, or view directions gathered about one of the map's (von Mises-Fisher)."""
    u = random.uniform(size=n)
    cosine = 2 * u - 1 if kappa == 0 else 1 + np.log(u + (1 - u) * np.exp(-2 * kappa)) / kappa
    around = random.uniform(0, 2 * np.pi, n)
    sine = np.sqrt(1 - cosine**2)
    direction = np.stack([sine * np.cos(around), sine * np.sin(around), cosine], axis=1)
    if kappa:
        mean = np.array([0.5, 0.33, 0.8]) / np.linalg.norm([0.5, 0.33, 0.8])
        side = np.cross([0.0, 0.0, 1.0], mean) / np.linalg.norm(np.cross([0.0, 0.0, 1.0], mean))
        direction = direction @ np.stack([side, np.cross(mean, side), mean])
    rot = np.degrees(np.arctan2(direction[:, 1], direction[:, 0]))
    tilt = np.degrees(np.arccos(np.clip(direction[:, 2], -1, 1)))
    return np.stack([rot, tilt, random.uniform(-180, 180, n)], axis=1)


def _scatter(
    settings: SimulationSettings,
    wanted: int,
    crystals: np.ndarray,
    clumps: np.ndarray,
    carbon: np.ndarray | None,
    random: np.random.Generator,
) -> np.ndarray:
    """Up to `wanted` positions (px) at least the given distance apart, off carbon, crystals and clumps."""
    spacing, clear = settings.min_distance / settings.pixel_size, CRYSTAL_CLEARANCE / settings.pixel_size
    height, width = settings.shape
    taken = np.zeros((0, 2))
    for candidate in random.uniform(0, [width - 1, height - 1], (60 * wanted, 2)):
        if len(taken) == wanted:
            break
        near_crystal = (np.hypot(*(crystals[:, :2] - candidate).T) < crystals[:, 2] + clear).any()
        near_clump = (np.hypot(*(clumps - candidate).T) < spacing).any()
        if near_crystal or near_clump or _on_carbon(candidate[None], carbon)[0]:
            continue
        if not (np.hypot(*(taken - candidate).T) < spacing).any():
            taken = np.vstack([taken, candidate])
    return taken


def _on_carbon(xy: np.ndarray, carbon: np.ndarray | None) -> np.ndarray:
    return carbon_cover(xy[:, 0], xy[:, 1], carbon) > 0.02


def _carbon(width: int, height: int, random: np.random.Generator) -> np.ndarray:
    """A hole of four field widths whose edge cuts off up to a quarter of the field on one side."""
    radius, cut, heading = 4.0 * width, random.uniform(0.1, 0.25), random.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(heading), np.sin(heading)])
    reach = abs(direction) @ np.array([width, height]) / 2
    centre = np.array([width, height]) / 2 - direction * (radius - reach + 2 * reach * cut)
    return np.array([*centre, radius])


def _crystals(settings: SimulationSettings, random: np.random.Generator) -> np.ndarray:
    count = random.integers(1, 4)
    xy = random.uniform(0, [settings.width, settings.height], (count, 2))
    return np.column_stack([xy, random.uniform(60, 170, count) / settings.pixel_size])


def _clumps(settings: SimulationSettings, random: np.random.Generator, diameter: float) -> np.ndarray:
    """One or two clumps of four to eight particles that touch each other."""
    members = []
    for _ in range(random.integers(1, 3)):
        centre = random.uniform(0, [settings.width, settings.height])
        grown = [centre]
        while len(grown) < random.integers(4, 9):
            step = random.normal(size=2)
            step *= random.uniform(0.6, 0.8) * diameter / settings.pixel_size / np.linalg.norm(step)
            grown.append(grown[random.integers(len(grown))] + step)
        members += grown
    return np.array(members)
