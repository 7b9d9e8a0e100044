"""Motion of the specimen during a movie: global shifts, then patches, then a smooth local model.

Shifts are in px of the movie, the shift that undoes the motion (minus the displacement), with frame 1 at 0: RELION's convention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from verglas.micrograph.motion_model import LocalModel, fit_local_model, no_local_motion
from verglas.micrograph.motion_shifts import Series, correlation_weight, estimate_shifts, shift_factors, signal_weight

_LONGEST_PERIOD = 500.0  # Å; longer ones are illumination and ice, not specimen
_WEIGHT_FLOOR = 1e-3  # frequencies that weigh less are cut off


@dataclass(frozen=True)
class MotionSettings:
    """How to align. bfactor in px^2 of the movie; patches (x, y), 1 x 1 for whole frames only; group: frames averaged for patches."""

    bfactor: float = 150.0
    patches: tuple[int, int] = (1, 1)
    group: int = 1
    iterations: int = 10


@dataclass(frozen=True)
class Motion:
    """Motion of one movie.

    shape: (y, x) px; global_shifts: float64 [frames, 2] (x, y); model: local motion on top of them;
    patch_centres: [patches, 2] px; patch_shifts: [patches, frames, 2], what the patches showed on top of the global shifts.
    notes: what a user should know, such as a local model that was not trusted.
    """

    shape: tuple[int, int]
    global_shifts: torch.Tensor
    model: LocalModel
    patch_centres: torch.Tensor
    patch_shifts: torch.Tensor
    notes: list[str] = field(default_factory=list)

    def shifts_at(self, points: torch.Tensor) -> torch.Tensor:
        """Total shifts [n, frames, 2] at `points` [n, 2] (x, y), px of the movie."""
        size = torch.tensor([self.shape[1], self.shape[0]], dtype=torch.float64)
        return self.global_shifts + self.model.shifts(points.double() / size - 0.5, len(self.global_shifts))


def estimate_motion(frames: torch.Tensor, pixel_size: float, settings: MotionSettings) -> Motion:
    """Motion of a movie, frames float32 [frames, y, x], pixel size in Å."""
    shape = (int(frames.shape[1]), int(frames.shape[2]))
    small, factor = shrink(frames, settings.bfactor)
    small_shape = (int(small.shape[1]), int(small.shape[2]))
    weight = correlation_weight(small_shape, factor, settings.bfactor, pixel_size / _LONGEST_PERIOD).to(frames.device)
    spectra = torch.fft.rfft2(small * edge_taper(small_shape, small.device))
    reach = min(small_shape) / 8
    shifts = torch.zeros(len(frames), 2, device=frames.device)
    for _ in range(2):
        series = Series(spectra * weight.sqrt(), small_shape)
        shifts = estimate_shifts(series, shifts, reach=reach, iterations=settings.iterations, tolerance=0.02 / factor)
        weight = signal_weight(spectra * shift_factors(small_shape, shifts), small_shape, weight)
    overall = shifts - shifts[:1]
    notes: list[str] = []
    model, centres, local = no_local_motion(), torch.zeros(0, 2), torch.zeros(0, len(frames), 2)
    if settings.patches != (1, 1) and len(frames) >= 4:
        aligned = torch.fft.irfft2(torch.fft.rfft2(small) * shift_factors(small_shape, overall), s=small_shape)
        centres, local = patch_shifts(aligned, factor, pixel_size, settings)
        places = centres / torch.tensor([shape[1], shape[0]]) - 0.5
        model = fit_local_model(places, local, largest=0.05 * min(shape))
        notes = _notes(model, len(centres))
    return Motion(shape, (overall * factor).double().cpu(), model, centres, local, notes)


def shrink(frames: torch.Tensor, bfactor: float) -> tuple[torch.Tensor, int]:
    """Frames averaged over squares of whole px, mean-free, as coarse as the B factor allows -> (frames, px a side)."""
    highest = math.sqrt(-4 * math.log(_WEIGHT_FLOOR) / max(bfactor, 1.0))
    factor = int(max(1, min(0.5 / highest, min(frames.shape[1:]) // 128)))
    if factor > 1:
        frames = torch.nn.functional.avg_pool2d(frames[:, None], factor)[:, 0]
    return frames - frames.mean(dim=(-2, -1), keepdim=True), factor


def edge_taper(shape: tuple[int, int], device: torch.device | str = "cpu", share: float = 0.06) -> torch.Tensor:
    """Weight [y, x] that falls to 0 at the edges by a raised cosine over `share` of each side."""
    sides = []
    for length in shape:
        distance = torch.minimum(torch.arange(length) + 0.5, length - torch.arange(length) - 0.5) / max(1.0, share * length)
        sides.append(0.5 - 0.5 * torch.cos(math.pi * distance.clamp(max=1)))
    return (sides[0][:, None] * sides[1]).to(device)


def patch_shifts(aligned: torch.Tensor, factor: int, pixel_size: float, settings: MotionSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Shifts of patches of globally aligned, shrunken frames -> centres [patches, 2] and shifts [patches, frames, 2], px of the movie."""
    height, width = aligned.shape[1:]
    across, down = settings.patches
    shape = (height // down, width // across)
    corners = [(row * height // down, column * width // across) for row in range(down) for column in range(across)]
    tiles = torch.stack([aligned[:, y : y + shape[0], x : x + shape[1]] for y, x in corners])
    tiles = running_mean(tiles - tiles.mean(dim=(-2, -1), keepdim=True), settings.group)
    weight = correlation_weight(shape, factor, settings.bfactor, pixel_size / _LONGEST_PERIOD).to(aligned.device)
    spectra = torch.fft.rfft2(tiles * edge_taper(shape, aligned.device, 0.12)) * weight.sqrt()
    reach = max(2.0, 12 / pixel_size / factor)
    shifts = estimate_shifts(Series(spectra, shape), reach=reach, iterations=settings.iterations, tolerance=0.02 / factor)
    shifts = (shifts - shifts[:, :1]) * factor
    centres = torch.tensor([[x + shape[1] / 2, y + shape[0] / 2] for y, x in corners]) * factor
    return centres, shifts.cpu()


def running_mean(tiles: torch.Tensor, group: int) -> torch.Tensor:
    """Each frame [..., frames, y, x] averaged with its neighbours, `group` in all; fewer at the ends."""
    if group <= 1:
        return tiles
    frames = tiles.shape[-3]
    index = torch.arange(frames, device=tiles.device)
    near = ((index[:, None] - index).abs() <= group // 2).to(tiles.dtype)
    return torch.einsum("fg,...gyx->...fyx", near / near.sum(dim=1, keepdim=True), tiles)


def _notes(model: LocalModel, patches: int) -> list[str]:
    notes = []
    if model.rejected:
        notes.append(f"{len(model.rejected)} of {patches} patches disagreed with the others and were left out")
    if model.kind == "none":
        notes.append("local motion was not borne out by the patches: only whole frames were moved")
    elif model.kind == "linear":
        notes.append("the local model is linear over the field: the patches did not bear out a quadratic one")
    return notes


def accumulated_motion(shifts: torch.Tensor, pixel_size: float, dose_per_frame: float, pre_exposure: float, cutoff: float) -> tuple[float, float, float]:
    """Length of the path of the global shifts [frames, 2] px: total, early (up to `cutoff` e/Å^2), late, all in Å."""
    steps = shifts.diff(dim=0).norm(dim=-1) * pixel_size
    dose = pre_exposure + dose_per_frame * torch.arange(1, len(shifts))
    early = float(steps[dose < cutoff].sum())
    total = float(steps.sum())
    return total, early, total - early
