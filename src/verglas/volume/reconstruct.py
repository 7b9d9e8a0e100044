"""Maps from back-projected sums: the Wiener filter V = N / (D + 1/tau2), with the interpolation undone.

    sums = FourierSums(box, 3, max_shell, maps=2); add_symmetric(sums, "D2", ...)
    symmetrise(sums, "D2")
    volumes = reconstruct(sums, tau2)

Method: METHOD.md §4, §5. With numerators Σ C X / σ² and weights Σ C² / σ², the result is in the units of the images.
"""

from __future__ import annotations

from functools import lru_cache, partial

import torch

from verglas.volume.fourier import irfft_centred, rfft_centred, shell_index, sum_by
from verglas.volume.masks import radius_grid, raised_cosine
from verglas.volume.padded import maps_of, sinc_squared
from verglas.volume.slices import FourierSums, Pixels
from verglas.volume.symmetry import symmetry_operators

_CORNER_EDGE_PX = 3.0
_LEAST_WEIGHT = 1e-3  # of the shell's mean: keeps voxels that no slice came near from being blown up


def reconstruct(sums: FourierSums, tau2: torch.Tensor | None = None) -> torch.Tensor:
    """The maps [m, box, box(, box)] of `sums`; `tau2` [(m,) shells] is the prior variance of a component (see `weight_of_shells`), or None.

    Shells past the end of `tau2` or with tau2 = 0 are left empty, as are those that hold no weight.
    """
    mean, prior = _mean_weight(sums), torch.zeros((), dtype=torch.float64, device=sums.data.device)
    if tau2 is not None:
        variance = sums.padding**sums.dims * _of_length(tau2.double(), sums.max_shell + 1)
        prior = 1 / variance.clamp(min=1e-30)
        mean = torch.where(variance > 0, mean + prior, 0.0)
    # what lies beyond the last shell is left empty too
    added, least = (_of_length(each.expand_as(mean).to(sums.data), sums.max_shell + 2) for each in (prior, _LEAST_WEIGHT * mean))
    padded = sums.box * sums.padding
    window = sinc_squared(sums.box, sums.padding, sums.dims, sums.data.device, sums.data.dtype)
    # the mask's edge spreads signal into shells that hold no data, where half maps would seem to agree
    empty = shell_index(sums.box, sums.dims, sums.data.device) > sums.max_shell
    out = torch.empty(sums.maps, *window.shape, dtype=window.dtype, device=window.device)
    for maps in sums.batches():
        values = partial(_filtered, sums, added[maps], least[maps], maps)
        rounded = _without_corners(maps_of(values, sums.rows(), sums.box, padded) / window)
        out[maps] = irfft_centred(rfft_centred(rounded, sums.dims).masked_fill(empty, 0.0), sums.box, sums.dims)
    return out


def _filtered(sums: FourierSums, added: torch.Tensor, least: torch.Tensor, maps: slice, rows: slice) -> torch.Tensor:
    """Numerators over weights plus `added` [maps, shells], which are no less than `least` [maps, shells]; 0 where that is 0."""
    shells = sums.shells(rows).clamp_(max=least.shape[1] - 1)
    least = least[:, shells]
    weight = torch.maximum(sums.weights(maps, rows).add_(added[:, shells]), least)
    return sums.numerators(maps, rows).mul_(torch.where(least > 0, 1 / weight, 0.0))


def _without_corners(volumes: torch.Tensor) -> torch.Tensor:
    """Maps [m, ...] with what lies outside the sphere that fits the box replaced by its mean there: in corners slices hold noise only."""
    dims = volumes.dim() - 1
    distance = radius_grid(volumes.shape[-1], dims, volumes.device) - (volumes.shape[-1] // 2 - _CORNER_EDGE_PX)
    inside = raised_cosine(distance, _CORNER_EDGE_PX).to(volumes.dtype)
    outside = ((1 - inside) * volumes).sum(tuple(range(1, dims + 1)), keepdim=True) / (1 - inside).sum()
    return inside * volumes + (1 - inside) * outside


def weight_of_shells(sums: FourierSums) -> torch.Tensor:
    """Mean weight a Fourier component of each map (not of the padded one) has in each shell, float64 [m, max_shell + 1].

    Its inverse is the variance of the noise left in the map, RELION's `rlnReferenceSigma2` in our scale.
    """
    return _mean_weight(sums) * sums.padding**sums.dims


def _mean_weight(sums: FourierSums) -> torch.Tensor:
    """Mean weight of the grid points of each shell, float64 [m, max_shell + 1]."""
    count = sums.max_shell + 2  # one for the corners
    total = torch.zeros(sums.maps, count, dtype=torch.float64, device=sums.data.device)
    points = torch.zeros_like(total[0])
    for rows in sums.rows():
        shells = sums.shells(rows).clamp_(max=count - 1).flatten()
        points += sum_by(shells, torch.ones_like(shells, dtype=torch.float64), count)
        for maps in sums.batches():
            total[maps] += sum_by(shells, sums.weights(maps, rows).flatten(1).double(), count)
    return (total / points.clamp(min=1))[:, :-1]


def symmetrise(sums: FourierSums, group: str) -> None:
    """Apply the operators of `group` that map the grid onto itself to the sums, each exactly, in place; see `slice_operators`."""
    operators = _grid_operators(symmetry_operators(group))
    if sums.dims == 2 or len(operators) == 1:
        return
    for grid in sums.grid():
        plane = grid[:, :, 0]
        mates = plane.flip(0, 1)
        mates[..., 1].neg_()
        plane += mates
        total = torch.zeros_like(grid)
        for operator in operators:
            _add_turned(total, grid, operator, sums.rows())
        total[:, :, 0] /= 2  # the mates on that plane are in already, and `FourierSums` adds them again
        grid.copy_(total)


@lru_cache(maxsize=32)
def slice_operators(group: str) -> torch.Tensor:
    """Operators [m, 3, 3], the identity first, to back-project each slice with, so that `symmetrise` afterwards makes the whole of `group`.

    They are one of each coset of the subgroup of axis permutations: 1 for C2, C4, D2, D4, O; 3 for C3 and D3; 5 for I. The tensor is
    shared between calls: don't write into it.
    """
    operators = symmetry_operators(group)
    exact = _grid_operators(operators)
    cosets: list[torch.Tensor] = []
    for operator in operators:
        if not any(bool(((exact @ kept - operator).abs().amax(dim=(1, 2)) < 1e-6).any()) for kept in cosets):
            cosets.append(operator)
    return torch.stack(cosets)


def add_symmetric(
    sums: FourierSums,
    group: str,
    matrices: torch.Tensor,
    pixels: Pixels,
    numerators: torch.Tensor,
    weights: torch.Tensor | None = None,
    which: torch.Tensor | None = None,
) -> None:
    """`sums.add` with the operators of `slice_operators(group)`: a slice at A also counts as one at A Sᵀ.

    Flat maps have no symmetry.
    """
    sums.add(matrices, pixels, numerators, weights, which)
    for operator in slice_operators(group)[1:] if sums.dims == 3 else ():
        sums.add(matrices @ operator.T.to(matrices), pixels, numerators, weights, which)


def _grid_operators(operators: torch.Tensor) -> torch.Tensor:
    """Those that only permute and flip the axes."""
    rounded = operators.round()
    return rounded[(operators - rounded).abs().amax(dim=(1, 2)) < 1e-6]


def _add_turned(total: torch.Tensor, half: torch.Tensor, operator: torch.Tensor, runs: list[slice]) -> None:
    """Add G(k) = F(Sᵀ k) to `total` [z, y, x, 3], for an S that permutes and flips the axes, a run of planes z at a time.

    F is the whole grid whose half x ≥ 0 is `half` [z, y, x, 3] (real, imaginary, weight), mates on x = 0 included.
    """
    source = operator.T.round().long().tolist()  # row: axis (x, y, z) of the source point; its one entry: which axis of k, and the sign
    of_k = [next(axis for axis in range(3) if row[axis]) for row in source]
    signs = [row[axis] for row, axis in zip(source, of_k)]
    origin = half.shape[2] - 1
    for run in runs:
        spans = [(0, origin), (-origin, origin), (run.start - origin, run.stop - 1 - origin)]
        low, high = spans[of_k[0]]
        for own, turn in (((max(low, 0), high), signs[0]), ((low, min(high, -1)), -signs[0])):  # −1: the mate lies in the half
            if own[0] <= own[1]:
                spans[of_k[0]] = own
                _add_part(total, half, spans, of_k, [turn * sign for sign in signs], turn)


def _add_part(total: torch.Tensor, half: torch.Tensor, spans: list[tuple[int, int]], of_k: list[int], signs: list[int], turn: int) -> None:
    """`_add_turned` for the points within `spans` (of x, y, z, ends included), whose source points are signs · k[of_k]."""
    origin = half.shape[2] - 1
    places, into, order, flips = [slice(0)] * 3, [slice(0)] * 3, [0] * 3, []
    for axis, (of, sign) in enumerate(zip(of_k, signs)):
        ends = sorted(sign * end for end in spans[of])
        places[2 - axis] = slice(ends[0] + origin * (axis > 0), ends[1] + 1 + origin * (axis > 0))
        into[2 - of] = slice(spans[of][0] + origin * (of > 0), spans[of][1] + 1 + origin * (of > 0))
        order[2 - of] = 2 - axis
        if sign < 0:
            flips.append(2 - axis)
    found = half[tuple(places)].flip(flips).permute(*order, 3)
    sums = total[tuple(into)]
    for place, sign in enumerate((1, turn, 1)):
        sums[..., place].add_(found[..., place], alpha=sign)


def _of_length(values: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(values[..., :length], (0, max(0, length - values.shape[-1])))
