"""Motion of the specimen during a movie: global shifts, then patches, then a smooth local model.

Shifts are in px of the movie, the shift that undoes the motion (minus the displacement), with frame 1 at 0: RELION's convention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from verglas.micrograph.motion_model import LocalModel, fit_local_model, no_local_motion
from verglas.micrograph.motion_shifts import RadialWeight, Series, bfactor_weight, estimate_shifts, newton_steps, signal_weight, smooth_path

_LONGEST_PERIOD = 500.0  # Å; longer ones are illumination and ice, not specimen
_FINEST_PERIOD = 6.0  # Å; single frames show nothing finer
_FARTHEST = 60.0  # Å that a frame may lie off the sum of the others at first
_MODEL_ROUNDS = 6


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
    if len(frames) == 1:
        still = torch.zeros(1, 2, dtype=torch.float64)
        return Motion(shape, still, no_local_motion(), torch.zeros(0, 2), torch.zeros(0, 1, 2), ["one frame: there is nothing to align"])
    small, factor = shrink(frames, pixel_size)
    small_shape = (int(small.shape[1]), int(small.shape[2]))
    series = Series(torch.fft.rfft2(small * edge_taper(small_shape, small.device)), small_shape, (factor, factor))
    overall, weight = whole_frame_shifts(series, pixel_size, settings)
    notes: list[str] = []
    model, centres, local = no_local_motion(), torch.zeros(0, 2), torch.zeros(0, len(frames), 2)
    if settings.patches != (1, 1) and len(frames) >= 4:
        centres, patches = patch_series(series, overall, settings)
        model, local = local_motion(patches.weighted(weight), centres / torch.tensor([shape[1], shape[0]]) - 0.5, 0.05 * min(shape))
        notes = _notes(model, len(centres))
    return Motion(shape, overall.double().cpu(), model, centres, local, notes)


def whole_frame_shifts(series: Series, pixel_size: float, settings: MotionSettings) -> tuple[torch.Tensor, RadialWeight]:
    """Shifts [frames, 2], px, frame 1 at 0, and the weight that the frames themselves call for in the end.

    First at low resolution with the B factor, with a wide reach; then twice with the weight from the frames' common power; in the end
    as smooth as the path itself suggests.
    """
    lowest, finest = pixel_size / _LONGEST_PERIOD, pixel_size / _FINEST_PERIOD
    # a coarse start sees drift of many Å and is cheap
    coarse = bfactor_weight(max(settings.bfactor, 400 / pixel_size**2), lowest, min(finest, pixel_size / 15))
    shifts = estimate_shifts(series.weighted(coarse), reach=_FARTHEST / pixel_size, iterations=settings.iterations, tolerance=0.1)
    weight = bfactor_weight(settings.bfactor, lowest, finest)
    for _ in range(2):
        weight = signal_weight(series, shifts, lowest) or weight
        shifts = estimate_shifts(series.weighted(weight), shifts, reach=4.0, iterations=settings.iterations)
    shifts = smooth_path(shifts)
    return shifts - shifts[:1], weight


def shrink(frames: torch.Tensor, pixel_size: float) -> tuple[torch.Tensor, int]:
    """Frames averaged over squares of whole px, mean-free, fine enough for the finest period that counts -> (frames, px a side)."""
    factor = int(max(1, min(_FINEST_PERIOD / 2 / pixel_size, min(frames.shape[1:]) // 128)))
    if factor > 1:
        frames = torch.nn.functional.avg_pool2d(frames[:, None], factor)[:, 0]
    return frames - frames.mean(dim=(-2, -1), keepdim=True), factor


def edge_taper(shape: tuple[int, int], device: torch.device | str = "cpu", share: float = 0.04) -> torch.Tensor:
    """Weight [y, x] that falls to 0 at the edges by a raised cosine over `share` of each side."""
    sides = []
    for length in shape:
        distance = torch.minimum(torch.arange(length) + 0.5, length - torch.arange(length) - 0.5) / max(1.0, share * length)
        sides.append(0.5 - 0.5 * torch.cos(math.pi * distance.clamp(max=1)))
    return (sides[0][:, None] * sides[1]).to(device)


def patch_series(whole: Series, overall: torch.Tensor, settings: MotionSettings) -> tuple[torch.Tensor, Series]:
    """Centres [patches, 2], px of the movie, and spectra [patches, frames, y, x//2+1] of patches of whole frames moved by `overall`."""
    height, width = whole.shape
    aligned = torch.fft.irfft2(whole.moved(overall), s=whole.shape)
    across, down = settings.patches
    shape = (height // down, width // across)
    corners = [(row * height // down, column * width // across) for row in range(down) for column in range(across)]
    tiles = torch.stack([aligned[:, y : y + shape[0], x : x + shape[1]] for y, x in corners])
    tiles = running_mean(tiles - tiles.mean(dim=(-2, -1), keepdim=True), settings.group)
    centres = torch.tensor([[x + shape[1] / 2, y + shape[0] / 2] for y, x in corners]) * whole.pixel[0]
    return centres, Series(torch.fft.rfft2(tiles * edge_taper(shape, aligned.device, 0.12)), shape, whole.pixel)


def local_motion(patches: Series, places: torch.Tensor, largest: float) -> tuple[LocalModel, torch.Tensor]:
    """The local model, and what each patch shows [patches, frames, 2], px, frame 1 at 0.

    All patches are moved by the model, each says in which direction it would go on, and the model is fitted anew: the patches are
    aligned together, and none of them alone has to have a peak of its own.
    """
    frames = patches.spectra.shape[1]
    model = no_local_motion()
    for _ in range(_MODEL_ROUNDS):
        now = model.shifts(places, frames)
        shown = now + newton_steps(patches, now.float().to(patches.spectra.device)).double().cpu()
        before, model = now, fit_local_model(places, shown, largest=largest)
        if float((model.shifts(places, frames) - before).abs().max()) < 0.02:
            break
    return model, shown - shown[:, :1]


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
    if model.wild:
        notes.append("the local model went beyond what the patches show and was thrown away: only whole frames were moved")
    elif not model:
        notes.append("the patches bear out no local motion: only whole frames were moved")
    return notes


def accumulated_motion(
    shifts: torch.Tensor, pixel_size: float, dose_per_frame: float, pre_exposure: float, cutoff: float
) -> tuple[float, float, float]:
    """Length of the path of the global shifts [frames, 2] px: total, early (up to `cutoff` e/Å^2), late, all in Å."""
    steps = shifts.diff(dim=0).norm(dim=-1) * pixel_size
    dose = pre_exposure + dose_per_frame * torch.arange(1, len(shifts))
    early = float(steps[dose < cutoff].sum())
    total = float(steps.sum())
    return total, early, total - early
