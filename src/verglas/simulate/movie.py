"""Frames of one movie as electron counts: particles, ice, contamination and carbon, through microscope and detector."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from verglas.optics.aberrations import aberration_phase
from verglas.optics.ctf import ctf
from verglas.optics.dose import damage
from verglas.optics.microscope import interaction_constant, wavelength
from verglas.simulate.detector import HOT_RATE, Detector, PoissonTable, mtf
from verglas.simulate.ice import TILE, Ice, add_patch, kept_between_frames, phase_spectrum
from verglas.simulate.potential import Projector
from verglas.simulate.scene import PIXELS, Bodies, Scene, carbon_cover, random_stream
from verglas.simulate.settings import SimulationSettings
from verglas.volume.fourier import frequency_grid
from verglas.volume.rotations import euler_to_matrix

FRINGES = 6.0  # Å: the patch of a particle holds all its fringes up to this resolution
CARBON_TRANSMISSION, CARBON_TEXTURE = 0.88, 2.0
CRYSTAL_TRANSMISSION = 0.8


@dataclass(frozen=True)
class Instrument:
    """What all movies share: projectors of the states, the detector, its table of counts."""

    projectors: list[Projector]
    detector: Detector
    poisson: PoissonTable


def mean_counts(settings: SimulationSettings) -> float:
    """Counts a pixel and frame where nothing is in the way and the gain is 1."""
    return settings.dose_per_frame * settings.pixel_size**2 * settings.detection


def render_movie(settings: SimulationSettings, scene: Scene, instrument: Instrument) -> np.ndarray:
    """Raw counts, uint8 [frames, y, x]."""
    random = random_stream(settings, scene.index, PIXELS)
    rate = mean_counts(settings) / np.where(instrument.detector.gain == 0, 1, instrument.detector.gain)
    frames = np.empty((settings.frames, *settings.shape), np.uint8)
    for f, intensity in enumerate(_intensities(settings, scene, instrument, random)):
        frames[f] = instrument.poisson.draw(intensity * rate, random)
        frames[f].flat[instrument.detector.dead] = 0
        frames[f].flat[instrument.detector.hot] = np.minimum(random.poisson(HOT_RATE, len(instrument.detector.hot)), 255)
    return frames


def _intensities(settings: SimulationSettings, scene: Scene, instrument: Instrument, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Expected intensity of each frame, relative to the beam, float32 [y, x]."""
    particles = Patches(settings, scene, scene.particles, instrument.projectors)
    clumped = Patches(settings, scene, scene.clumped, instrument.projectors)
    ice = _ice(settings, scene, random)
    cover = Cover(settings, scene, random)
    beam = _beam(settings.shape, random)
    for f in range(settings.frames):
        drift = scene.motion.drift[f] / settings.pixel_size
        tiles = scene.motion.total(*ice.centres.T)[f] / settings.pixel_size
        change = ice.frame(tiles)
        change *= cover.texture(drift)
        particles.add(change, f)
        clumped.add(change, f)
        yield (beam * cover.transmission(drift) * (1 + change)).numpy()


class Patches:
    """The particles of one movie as patches, shifted in Fourier space by each frame's motion and pasted where they lie."""

    def __init__(self, settings: SimulationSettings, scene: Scene, bodies: Bodies, projectors: list[Projector]) -> None:
        self.settings, self.bodies = settings, bodies
        self.size = patch_size(settings, projectors[0].box)
        self._kx, self._ky = frequency_grid(self.size, 1.0, 2)
        self._corner = np.rint(bodies.xy).astype(int)
        moved = scene.motion.total(*bodies.xy.T) + bodies.paths
        self._shift = moved / settings.pixel_size + bodies.xy - self._corner
        if len(bodies):
            k = torch.hypot(self._kx, self._ky) / settings.pixel_size
            exposure = settings.dose_per_frame * (torch.arange(settings.frames) + 0.5)
            self._damage = damage(k, exposure if settings.damage else 0 * exposure, settings.voltage)
            self._spectra = self._transfer(scene, k) * self._projections(projectors)

    def add(self, field: torch.Tensor, f: int) -> None:
        """Add the particles of frame f to the change of intensity `field` [y, x]."""
        if not len(self.bodies):
            return
        shift = torch.from_numpy(self._shift[f]).float()
        phase_x = torch.polar(torch.ones(()), -2 * math.pi * self._kx[0] * shift[:, :1])[:, None, :]
        phase_y = torch.polar(torch.ones(()), -2 * math.pi * self._ky[:, 0] * shift[:, 1:])[:, :, None]
        half = self.size // 2
        for first in range(0, len(self.bodies), 16):
            part = slice(first, first + 16)
            spectra = self._spectra[part] * (self._damage[f] * phase_y[part]) * phase_x[part]
            patches = torch.fft.irfft2(spectra, s=(self.size, self.size))
            for patch, (x, y) in zip(patches, self._corner[part].tolist()):
                add_patch(field, torch.roll(patch, (half, half), (0, 1)), y - half, x - half)

    def _projections(self, projectors: list[Projector]) -> torch.Tensor:
        """Transforms of the projected potential (V Å) on the patch's grid, [n, size, size//2+1]."""
        matrices = euler_to_matrix(torch.from_numpy(self.bodies.angles))
        box, low = projectors[0].box, self.size // 2 - projectors[0].box // 2
        padded = torch.zeros(len(self.bodies), self.size, self.size)
        for state, projector in enumerate(projectors, start=1):
            rows = torch.from_numpy(np.flatnonzero(self.bodies.state == state))
            if len(rows):
                images = torch.fft.fftshift(torch.fft.irfft2(projector.slices(matrices[rows]), s=(box, box)), dim=(1, 2))
                padded[rows, low : low + box, low : low + box] = images * self.settings.pixel_size
        return torch.fft.rfft2(torch.fft.ifftshift(padded, dim=(1, 2)))

    def _transfer(self, scene: Scene, k: torch.Tensor) -> torch.Tensor:
        """From projected potential to change of intensity: −2 σ CTF MTF, with the aberrations, [n, size, size//2+1]."""
        s = self.settings
        kx, ky = self._kx / s.pixel_size, self._ky / s.pixel_size
        defocus = torch.from_numpy(scene.defocus_of(self.bodies, s.shape))
        values = ctf(kx, ky, **optics_of(s, scene, defocus))  # type: ignore[arg-type]
        values = values * (-2 * interaction_constant(s.voltage) * mtf(k * s.pixel_size, s.mtf_nyquist))
        tilt, odd = beam_tilt_of(s, scene.optics_group), odd_zernike_of(s)
        if not tilt.any() and odd is None:
            return values
        return values * aberration_phase(
            kx, ky, voltage=s.voltage, spherical_aberration=s.spherical_aberration, beam_tilt=tilt, odd_zernike=odd
        )


def optics_of(settings: SimulationSettings, scene: Scene, defocus: torch.Tensor) -> dict[str, torch.Tensor | float]:
    """Arguments of `optics.ctf.ctf` for particles of these mean defoci, Å [n]."""
    parameters: dict[str, torch.Tensor | float] = {
        "defocus_u": defocus + scene.astigmatism / 2,
        "defocus_v": defocus - scene.astigmatism / 2,
        "defocus_angle": scene.astigmatism_angle,
        "voltage": settings.voltage,
        "spherical_aberration": settings.spherical_aberration,
        "amplitude_contrast": settings.amplitude_contrast,
        "ctf_bfactor": settings.envelope_bfactor,
    }
    if settings.fourth_order:
        parameters["even_zernike"] = torch.tensor([0.0] * 8 + [settings.fourth_order * 3.0**4])
    return parameters


def beam_tilt_of(settings: SimulationSettings, optics_group: int) -> torch.Tensor:
    """Beam tilt of a group, mrad [2]: that of the settings, turned by a golden angle for each further group."""
    turn = 2.399963 * (optics_group - 1)
    c, s = math.cos(turn), math.sin(turn)
    x, y = settings.beam_tilt_x, settings.beam_tilt_y
    return torch.tensor([c * x - s * y, s * x + c * y])


def odd_zernike_of(settings: SimulationSettings) -> torch.Tensor | None:
    """Odd Zernike coefficients of the trefoil in RELION's order, or None without one."""
    return torch.tensor([0.0, 0.0, settings.trefoil * 3.0**3]) if settings.trefoil else None


def patch_size(settings: SimulationSettings, box: int) -> int:
    """Pixels of a particle's patch: its box and its fringes up to 6 Å on both sides."""
    reach = wavelength(settings.voltage) * settings.defocus_max / FRINGES
    return max(box, 16 * math.ceil((0.8 * box * settings.pixel_size + 2 * reach) / settings.pixel_size / 16))


class Cover:
    """What lies on the sample and moves with it: carbon film and ice crystals."""

    def __init__(self, settings: SimulationSettings, scene: Scene, random: np.random.Generator) -> None:
        self.scene = scene
        self._y = np.arange(settings.height, dtype=np.float32)[:, None]
        self._x = np.arange(settings.width, dtype=np.float32)
        self._lobes = random.uniform(0, 2 * np.pi, (len(scene.crystals), 2))

    def texture(self, drift: np.ndarray) -> torch.Tensor:
        """Factor of the ice's granularity, larger on carbon; scalar or [y, x]. `drift` in px (x, y)."""
        return torch.as_tensor(1 + (CARBON_TEXTURE - 1) * self._carbon(drift) if self.scene.carbon is not None else np.float32(1))

    def transmission(self, drift: np.ndarray) -> torch.Tensor:
        """Share of the electrons that pass, scalar or [y, x]."""
        passed: np.ndarray | np.float32 = np.float32(1)
        if self.scene.carbon is not None:
            passed = passed - np.float32(1 - CARBON_TRANSMISSION) * self._carbon(drift)
        for (x, y, radius), (first, second) in zip(self.scene.crystals, self._lobes):
            dx, dy = self._x - np.float32(x + drift[0]), self._y - np.float32(y + drift[1])
            angle = np.arctan2(dy, dx)
            edge = radius * (1 + 0.12 * np.cos(3 * angle + np.float32(first)) + 0.08 * np.cos(5 * angle + np.float32(second)))
            inside = 0.5 - 0.5 * np.tanh((np.hypot(dx, dy) - edge) / 8)
            passed = passed * (1 - np.float32(1 - CRYSTAL_TRANSMISSION) * inside.astype(np.float32))
        return torch.as_tensor(passed)

    def _carbon(self, drift: np.ndarray) -> np.ndarray:
        return carbon_cover(self._x - np.float32(drift[0]), self._y - np.float32(drift[1]), self.scene.carbon)


def _ice(settings: SimulationSettings, scene: Scene, random: np.random.Generator) -> Ice:
    kx, ky = frequency_grid(TILE, settings.pixel_size, 2)
    k = torch.hypot(kx, ky)
    defocus = torch.tensor([scene.defocus])
    transfer = ctf(kx, ky, **optics_of(settings, scene, defocus))[0]  # type: ignore[arg-type]
    power = phase_spectrum(k, settings.ice_thickness, interaction_constant(settings.voltage))
    amplitude = -2 * power.sqrt() * transfer * mtf(k * settings.pixel_size, settings.mtf_nyquist)
    keep = kept_between_frames(k, settings.ice_diffusion * settings.dose_per_frame)
    return Ice(settings.shape, settings.pixel_size, amplitude, keep, random)


def _beam(shape: tuple[int, int], random: np.random.Generator) -> torch.Tensor:
    """Slightly uneven illumination, mean 1."""
    u, v = torch.linspace(-1, 1, shape[1]), torch.linspace(-1, 1, shape[0])[:, None]
    a, b = random.normal(0, 0.02, 2)
    beam = 1 + a * u + b * v - 0.02 * (u**2 + v**2)
    return beam / beam.mean()
