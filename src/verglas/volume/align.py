"""One map laid onto another: rotation, shift and hand found by a search over all of them.

The score is the mean Fourier shell correlation up to a shell, each Fourier voxel counting alike, so neither the scale of the maps nor
their B-factor matters. At low resolution all rotations and shifts are scored as one matrix product, [shifts, k] x [k, rotations];
the best few are then refined on ever finer grids and to ever higher shells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from verglas.volume.fourier import frequency_grid, rfft_centred, shell_index, sum_by
from verglas.volume.masks import soft_sphere
from verglas.volume.resample import flip_hand, rotate_map, shift_map
from verglas.volume.rotations import axis_rotation, quaternion_to_matrix

_ROTATIONS_AT_ONCE = 256


@dataclass(frozen=True)
class Alignment:
    """How to lay the moving map on the fixed one: mirror (x to -x) if `mirrored`, then `rotation` [3, 3], then `shift` [3] px (x, y, z).

    `correlation` is the score that this reaches: the mean FSC over Fourier voxels up to the last shell compared.
    """

    rotation: torch.Tensor
    shift: torch.Tensor
    mirrored: bool
    correlation: float

    def apply(self, moving: torch.Tensor) -> torch.Tensor:
        """The moving map [z, y, x] laid on the fixed one."""
        moving = flip_hand(moving) if self.mirrored else moving
        return shift_map(rotate_map(moving, self.rotation), self.shift)


def align_maps(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    *,
    rotations: torch.Tensor | None = None,
    try_mirror: bool = True,
    radius: float | None = None,
    max_shell: int | None = None,
    coarse_shell: int = 8,
) -> Alignment:
    """Find how `moving` lies on `fixed`, both maps [N, N, N] of the same pixel size.

    `rotations` [n, 3, 3]: the rotations to start from, for instance `normaliser("D2")` for two maps in that group's setting; all of
    SO(3) in steps of about 13 degrees where not given. `radius` (px; default: the largest that fits) of the soft sphere that both are
    seen through, `max_shell` the finest shell compared (default: half of Nyquist), `coarse_shell` that of the first search.
    Raises ValueError when a map is empty or the sizes differ.
    """
    if moving.shape != fixed.shape:
        raise ValueError(f"cannot align maps of {tuple(moving.shape)} and {tuple(fixed.shape)}")
    size = fixed.shape[-1]
    radius = 0.42 * size if radius is None else radius
    max_shell = max(coarse_shell, size // 4) if max_shell is None else max_shell
    coarse_shell = min(coarse_shell, max_shell)
    sphere = soft_sphere(size, radius, max(2.0, 0.06 * size), fixed.device)
    hands = [moving, flip_hand(moving)] if try_mirror else [moving]
    pairs = [MapPair(hand * sphere, fixed * sphere, max_shell) for hand in hands]
    starts = all_rotations().to(fixed.device) if rotations is None else rotations.to(fixed.device, torch.float32)
    found = [(hand, *start) for hand, pair in enumerate(pairs) for start in pair.search(starts, coarse_shell, radius)]
    best = sorted(found, key=lambda candidate: -candidate[1])[:12]
    refined = [_refine(pairs, candidate, coarse_shell, max_shell, radius) for candidate in best]
    hand, score, rotation, shift = max(refined, key=lambda candidate: candidate[1])
    return Alignment(rotation.double(), shift.double(), bool(hand), score)


_Candidate = tuple[int, float, torch.Tensor, torch.Tensor]


def _refine(pairs: list[MapPair], candidate: _Candidate, shell: int, max_shell: int, radius: float) -> _Candidate:
    """Rotation and shift on grids that halve about the best, compared to higher shells as they get finer."""
    hand, score, rotation, shift = candidate
    step = 8.0
    finest = 0.1 * torch.rad2deg(torch.tensor(pairs[0].size / (2 * torch.pi * max_shell * radius))).item()
    while step > finest:
        # the arc that this step leaves open must stay within half a wave of the finest shell compared
        shell = min(max_shell, max(shell, int(0.25 * pairs[0].size / (radius * torch.deg2rad(torch.tensor(step)).item()))))
        length = pairs[0].size / shell / 8 * min(1.0, step / 4)
        score = -1.0
        for _ in range(4):  # walk until the best is no longer at the grid's edge
            new = pairs[hand].best(nearby_rotations(rotation, step), shift + length * unit_steps().to(shift), shell)
            if new[0] <= score + 1e-7:
                break
            score, rotation, shift = new
        step /= 2
    return hand, score, rotation, shift


class MapPair:
    """Two maps ready to be compared at many rotations and shifts."""

    def __init__(self, moving: torch.Tensor, fixed: torch.Tensor, max_shell: int) -> None:
        self.size = fixed.shape[-1]
        band = min(self.size, 2 * max_shell + 4)
        index = shell_index(self.size, 3, fixed.device)
        kx, ky, kz = frequency_grid(self.size, 1.0, 3, fixed.device)
        half = (index >= 1) & (index <= max_shell) & ((kx > 0) | (ky > 0) | ((ky == 0) & (kz > 0)))
        order = torch.argsort(index[half], stable=True)
        self.shell = index[half][order]
        self.frequency = torch.stack([kx[half], ky[half], kz[half]], dim=-1)[order]
        self.fixed = self._white(rfft_centred(fixed, 3)[half][order][None])[0]
        # a map padded twofold has a transform that is smooth enough to be read between its samples
        padded = rfft_centred(torch.nn.functional.pad(moving, [self.size // 2, self.size - self.size // 2] * 3), 3)
        self.table, self.reach = _full_transform(padded, 2 * self.size, 2 * band)

    def _white(self, values: torch.Tensor) -> torch.Tensor:
        """Transforms [n, k] with the mean power of each shell 1."""
        shells = int(self.shell[: values.shape[1]].max()) + 1
        shell = self.shell[: values.shape[1]]
        power = sum_by(shell, values.abs().square(), shells)
        count = torch.bincount(shell, minlength=shells).clamp(min=1)
        return values / (power / count).clamp(min=1e-30).sqrt()[:, shell]

    def turned(self, rotations: torch.Tensor, k: int) -> torch.Tensor:
        """The moving map's transform after each rotation [n, 3, 3], at the first k frequencies [n, k], shells of unit power."""
        places = torch.einsum("kc,ncd->nkd", self.frequency[:k] * (2 * self.size / self.reach), rotations)
        sampled = torch.nn.functional.grid_sample(self.table, places[None, None], align_corners=True)
        return self._white(torch.complex(sampled[0, 0, 0], sampled[0, 1, 0]))

    def scores(self, rotations: torch.Tensor, shifts: torch.Tensor, shell: int) -> torch.Tensor:
        """The score [shifts, rotations] of every pair; shifts [s, 3] in px move the moving map."""
        k = int((self.shell <= shell).sum())
        angle = 2 * torch.pi * shifts @ self.frequency[:k].T
        # correlation with a moved map: conj(fixed) * exp(-2 pi i k s) * moving
        target = torch.polar(torch.ones_like(angle), -angle) * self.fixed[:k].conj()
        real = torch.cat([target.real, -target.imag], dim=1) / k
        parts = []
        for chunk in rotations.split(max(1, _ROTATIONS_AT_ONCE * 1000 // max(k, 1000))):
            turned = self.turned(chunk, k)
            parts.append(real @ torch.cat([turned.real, turned.imag], dim=1).T)
        return torch.cat(parts, dim=1)

    def best(self, rotations: torch.Tensor, shifts: torch.Tensor, shell: int) -> tuple[float, torch.Tensor, torch.Tensor]:
        """The best score with its rotation and shift."""
        scores = self.scores(rotations, shifts, shell)
        place = int(scores.argmax())
        return float(scores.flatten()[place]), rotations[place % len(rotations)], shifts[place // len(rotations)]

    def search(self, rotations: torch.Tensor, shell: int, radius: float, keep: int = 12) -> list[tuple[float, torch.Tensor, torch.Tensor]]:
        """The best `keep` rotations over shifts of up to a quarter of the radius (at least two steps) each way."""
        step = self.size / shell / 4
        reach = max(2, round(radius / 4 / step))
        axis = torch.arange(-reach, reach + 1) * step
        shifts = torch.cartesian_prod(axis, axis, axis).to(rotations)
        value, place = self.scores(rotations, shifts, shell).max(dim=0)
        top = value.topk(min(keep, len(value))).indices
        return [(float(value[i]), rotations[i], shifts[place[i]]) for i in top]


def _full_transform(half: torch.Tensor, size: int, band: int) -> tuple[torch.Tensor, int]:
    """Real and imaginary part [1, 2, n, n, n] of a transform's middle, frequency 0 in the centre, and its largest frequency (n - 1) / 2."""
    reach = min(band, size) // 2 - 1
    wanted = torch.arange(-reach, reach + 1, device=half.device)
    right = half[wanted % size][:, wanted % size][:, :, : reach + 1]
    left = right[..., 1:].flip(0, 1, 2).conj()
    full = torch.cat([left, right], dim=-1)
    return torch.stack([full.real, full.imag])[None].float(), reach


def unit_steps() -> torch.Tensor:
    """The 27 points of -1, 0, 1 along each axis, [27, 3]."""
    axis = torch.tensor([-1.0, 0.0, 1.0])
    return torch.cartesian_prod(axis, axis, axis)


def nearby_rotations(rotation: torch.Tensor, degrees: float) -> torch.Tensor:
    """The rotation itself and 26 around it, each turned by `degrees` about one of 26 axes."""
    axes = unit_steps().to(rotation)
    axes = axes[axes.norm(dim=1) > 0]
    return torch.cat([rotation[None], axis_rotation(axes, degrees) @ rotation])


def all_rotations(cells: int = 10) -> torch.Tensor:
    """Rotations [n, 3, 3] about 13 degrees apart over SO(3): a cubic grid on four faces of the tesseract of quaternions."""
    axis = torch.tan((torch.arange(cells) + 0.5) / cells * torch.pi / 2 - torch.pi / 4)
    points = torch.cartesian_prod(axis, axis, axis)
    one = torch.ones(len(points), 1)
    faces = [torch.cat([points[:, :i], one, points[:, i:]], dim=1) for i in range(4)]
    return quaternion_to_matrix(torch.cat(faces))
