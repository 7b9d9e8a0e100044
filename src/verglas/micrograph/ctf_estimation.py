"""Defocus, astigmatism and phase shift of a micrograph from the Thon rings in its power spectrum.

The logarithm of the power is compared with CTF^2: a smooth background is projected out of both, and the parameters with the
largest normalised cross-correlation are sought (the criterion of CTFFIND: Mindell & Grigorieff, J. Struct. Biol. 2003; Rohou &
Grigorieff, J. Struct. Biol. 2015): first without astigmatism in one dimension, then all parameters on the plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize

from verglas.errors import InputError, ItemError
from verglas.optics.ctf import ctf

_ENVELOPES = (0.0, 30.0, 100.0, 300.0, 1000.0)  # Å^2, decay of the rings' contrast: exp(-B k^2 / 2)
_CANDIDATES = 3
_FEWEST_PIXELS = 500


@dataclass(frozen=True)
class Microscope:
    """What is known of the instrument: kV, mm, fraction."""

    voltage: float
    spherical_aberration: float
    amplitude_contrast: float


@dataclass(frozen=True)
class CtfSearch:
    """Where to look: resolutions and defocus in Å, angles in degrees.

    tolerated_astigmatism: half of RELION's `dast`: astigmatism beyond it is pulled back gently; 0 leaves it free.
    """

    lowest: float = 30.0
    highest: float = 5.0
    min_defocus: float = 5000.0
    max_defocus: float = 50000.0
    step: float = 100.0
    tolerated_astigmatism: float = 0.0
    phase_shifts: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        if not 0 < self.highest < self.lowest:
            raise InputError("resmin, resmax", f"{self.lowest:g} and {self.highest:g} Å", "The first must be the larger number")
        if not 0 < self.min_defocus < self.max_defocus or self.step <= 0:
            raise InputError(
                "dfmin, dfmax, dfstep", f"{self.min_defocus:g}, {self.max_defocus:g}, {self.step:g} Å", "Give a range to search"
            )


@dataclass(frozen=True)
class CtfFit:
    """Result: Å and degrees, U >= V, angle in (-90, 90]; score is the normalised cross-correlation on the plane."""

    defocus_u: float
    defocus_v: float
    defocus_angle: float
    phase_shift: float
    score: float

    @property
    def astigmatism(self) -> float:
        """DefocusU - DefocusV, Å."""
        return self.defocus_u - self.defocus_v


@dataclass(frozen=True)
class _Rings:
    """Pixels that are fitted.

    kx, ky: 1/Å [n]; values: log power [n] without its smooth background, of norm 1; basis: of that background, orthonormal [n, b].
    """

    kx: torch.Tensor
    ky: torch.Tensor
    values: torch.Tensor
    basis: torch.Tensor
    root_weight: torch.Tensor


def estimate_ctf(spectrum: torch.Tensor, pixel_size: float, microscope: Microscope, search: CtfSearch) -> CtfFit:
    """Fit the CTF to a power spectrum [box, box//2+1] (FFT order) whose frequencies are j / (box * pixel_size), Å.

    Raises ItemError for a spectrum without content or with too few pixels in the range of resolutions.
    """
    kx, ky, log_power = ring_pixels(spectrum, pixel_size, search.lowest, search.highest)
    radius = torch.sqrt(kx * kx + ky * ky)
    profile_k, profile, counts = radial_profile(radius, log_power, spectrum.shape[0] * pixel_size)
    flat = torch.zeros_like(profile_k)
    line = _prepare(profile_k, flat, profile, counts.sqrt())
    plane = _prepare(kx, ky, log_power, torch.ones_like(kx))
    starts = [
        _astigmatic_start(plane, start, envelope, microscope, search) for start, envelope in _one_dimensional(line, microscope, search)
    ]
    point, envelope, _ = max(starts, key=lambda start: start[2])
    return _refine(plane, point, envelope, microscope, search)


def ring_pixels(
    spectrum: torch.Tensor, pixel_size: float, lowest: float, highest: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """kx, ky (1/Å) and log power [n] of the pixels between two resolutions, without the axes (edges of the frame, bad columns)."""
    box = spectrum.shape[0]
    ky = torch.fft.fftfreq(box, pixel_size, device=spectrum.device)[:, None].expand(spectrum.shape)
    kx = torch.fft.rfftfreq(box, pixel_size, device=spectrum.device)[None, :].expand(spectrum.shape)
    radius = torch.sqrt(kx * kx + ky * ky)
    axis = 1.5 / (box * pixel_size)
    keep = (radius > 1 / lowest) & (radius < 1 / highest) & (kx > axis) & (ky.abs() > axis)
    power = spectrum[keep]
    if int(keep.sum()) < _FEWEST_PIXELS:
        raise ItemError("power spectrum", f"only {int(keep.sum())} pixels between {lowest:g} and {highest:g} Å at {pixel_size:g} Å a pixel")
    if not bool(torch.isfinite(power).all()) or bool((power <= 0).any()):
        raise ItemError("power spectrum", "is empty or holds values that are not numbers")
    return kx[keep], ky[keep], torch.log(power)


def radial_profile(radius: torch.Tensor, values: torch.Tensor, extent: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean of `values` [n] in rings of half a Fourier pixel, 1/(2 extent) -> radius, mean, pixels of each ring that has any."""
    ring = (radius * extent * 2).round().long()
    counts = torch.bincount(ring)
    used = counts > 0
    means = torch.bincount(ring, values.double()) / counts.clamp(min=1)
    centres = torch.bincount(ring, radius.double()) / counts.clamp(min=1)
    return centres[used].float(), means[used].float(), counts[used].float()


def background_basis(radius: torch.Tensor, terms: int = 6) -> torch.Tensor:
    """Chebyshev polynomials [n, terms] over the range of `radius`: what a smooth background can look like."""
    low, high = radius.min(), radius.max()
    place = (2 * (radius - low) / (high - low) - 1).clamp(-1, 1)
    return torch.cos(torch.arange(terms, device=radius.device) * torch.acos(place)[:, None])


def _prepare(kx: torch.Tensor, ky: torch.Tensor, values: torch.Tensor, root_weight: torch.Tensor) -> _Rings:
    basis = background_basis(torch.sqrt(kx * kx + ky * ky)) * root_weight[:, None]
    basis = torch.linalg.qr(basis.double()).Q.float()
    rest = _without(values * root_weight, basis)
    # a few stray pixels (a bad column's harmonics) must not carry the fit
    rest = rest.clamp(-5 * rest.std(), 5 * rest.std())
    return _Rings(kx, ky, rest / rest.norm().clamp(min=1e-30), basis, root_weight)


def _without(values: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Values [..., n] with the span of the orthonormal `basis` [n, b] taken out."""
    return values - (values @ basis) @ basis.T


def _scores(
    rings: _Rings, envelope: float, microscope: Microscope, u: torch.Tensor, v: torch.Tensor, angle: torch.Tensor, phase: torch.Tensor
) -> torch.Tensor:
    """Normalised cross-correlation [m] of the rings with CTF^2 of m sets of parameters [m]."""
    model = ctf(
        rings.kx, rings.ky, defocus_u=u, defocus_v=v, defocus_angle=angle, phase_shift=phase,
        voltage=microscope.voltage, spherical_aberration=microscope.spherical_aberration, amplitude_contrast=microscope.amplitude_contrast,
    ).square()  # fmt: skip
    decay = torch.exp(-envelope / 2 * (rings.kx**2 + rings.ky**2)) * rings.root_weight
    model = _without(model * decay, rings.basis)
    return (model @ rings.values) / model.norm(dim=-1).clamp(min=1e-30)


def _one_dimensional(line: _Rings, microscope: Microscope, search: CtfSearch) -> list[tuple[tuple[float, float], float]]:
    """The best few (defocus, phase shift) without astigmatism, each with the envelope that suits it."""
    defocus = torch.arange(search.min_defocus, search.max_defocus + search.step, search.step, device=line.kx.device)
    zero = torch.zeros_like(defocus)
    table = torch.stack(
        [
            torch.stack([_scores(line, envelope, microscope, defocus, defocus, zero, zero + phase) for envelope in _ENVELOPES])
            for phase in search.phase_shifts
        ]
    )
    best, which = table.max(dim=1)  # over the envelopes: [phases, defoci]
    padded = torch.nn.functional.pad(best, (1, 1), value=-2.0)
    peaks = (best >= padded[:, :-2]) & (best >= padded[:, 2:])
    ranked = torch.where(peaks, best, -2.0).flatten().argsort(descending=True)[:_CANDIDATES]
    return [
        ((float(defocus[index % len(defocus)]), search.phase_shifts[index // len(defocus)]), _ENVELOPES[int(which.flatten()[index])])
        for index in ranked.tolist()
    ]


def _point_scores(plane: _Rings, envelope: float, microscope: Microscope, search: CtfSearch, points: np.ndarray) -> np.ndarray:
    """Scores [m] of points [m, 4]: mean defocus, half the astigmatism as a vector (cos, sin of twice its angle), phase shift."""
    mean, cosine, sine, shift = torch.as_tensor(points, dtype=torch.float32, device=plane.kx.device).reshape(-1, 4).T
    half = torch.sqrt(cosine**2 + sine**2)
    angle = torch.rad2deg(torch.atan2(sine, cosine)) / 2
    values = _scores(plane, envelope, microscope, mean + half, mean - half, angle, shift)
    if search.tolerated_astigmatism > 0:
        values = values * torch.exp(-((half / search.tolerated_astigmatism).square()) / 8)
    return values.cpu().numpy()


def _astigmatic_start(
    plane: _Rings, start: tuple[float, float], envelope: float, microscope: Microscope, search: CtfSearch
) -> tuple[np.ndarray, float, float]:
    """The best point, its envelope and score, of a coarse grid of astigmatism around a fit without it."""
    defocus, phase = start
    turns = np.arange(6) * math.pi / 3
    vectors = [(0.0, 0.0)] + [(size * math.cos(turn), size * math.sin(turn)) for size in (300.0, 900.0) for turn in turns]
    points = np.array([[defocus + shift, *vector, phase] for shift in (-search.step, 0.0, search.step) for vector in vectors])
    scores = np.concatenate([_point_scores(plane, envelope, microscope, search, part) for part in np.array_split(points, 8)])
    best = int(np.argmax(scores))
    return points[best], envelope, float(scores[best])


def _refine(plane: _Rings, first: np.ndarray, envelope: float, microscope: Microscope, search: CtfSearch) -> CtfFit:
    """All parameters on the plane by a simplex (Nelder-Mead) from `first`; the phase shift only where a range of it is searched."""
    steps = np.array([80.0, 120.0, 120.0, 6.0])[: 4 if len(search.phase_shifts) > 1 else 3]

    def place(moves: np.ndarray) -> np.ndarray:
        point = first.copy()
        point[: len(moves)] += moves * steps
        return point

    simplex = np.vstack([np.zeros(len(steps)), np.eye(len(steps))])
    found = minimize(
        lambda moves: -float(_point_scores(plane, envelope, microscope, search, place(moves))[0]),
        np.zeros(len(steps)),
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 0.03, "fatol": 1e-6, "maxfev": 160},
    )
    return _as_fit(place(found.x), -float(found.fun))


def _as_fit(point: np.ndarray, score: float) -> CtfFit:
    mean, cosine, sine, phase = (float(value) for value in point)
    half = math.hypot(cosine, sine)
    angle = math.degrees(math.atan2(sine, cosine)) / 2
    return CtfFit(mean + half, mean - half, angle, phase, score)


def target_pixel(pixel_size: float, highest: float) -> float:
    """Pixel size (Å) of the spectrum: the micrograph's, or a coarser one with the fit's finest resolution at 0.8 of Nyquist."""
    return max(pixel_size, 0.4 * highest)


def with_range(search: CtfSearch, pixel_size: float) -> CtfSearch:
    """The search with its finest resolution brought inside 0.95 of the Nyquist frequency."""
    return replace(search, highest=max(search.highest, 2 * pixel_size / 0.95))
