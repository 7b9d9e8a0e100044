"""A map from back-projected sums: the Wiener filter V = N / (D + 1/tau2), with the interpolation undone.

    sums = FourierSums(box, 3, max_shell); sums.add(...)
    volume = reconstruct(symmetrised(sums, "D2"), tau2)

Method: METHOD.md §4, §5. With numerators Σ C X / σ² and weights Σ C² / σ², the result is in the units of the images.
"""

from __future__ import annotations

import torch

from verglas.volume.fourier import irfft_centred, rfft_centred, shell_index
from verglas.volume.masks import radius_grid, raised_cosine
from verglas.volume.slices import FourierSums, Pixels, crop_centred, embed, sinc_squared
from verglas.volume.symmetry import symmetry_operators

_CORNER_EDGE_PX = 3.0
_LANES = 256
_LEAST_WEIGHT = 1e-3  # of the shell's mean: keeps voxels that no slice came near from being blown up


def reconstruct(sums: FourierSums, tau2: torch.Tensor | None = None) -> torch.Tensor:
    """The map [box] * dims of `sums`; `tau2` [shells] is the prior variance of a component (see `weight_of_shells`), or None.

    Shells past the end of `tau2` or with tau2 = 0 are left empty, as are those that hold no weight.
    """
    shells, weight = sums.shells(), sums.weight
    inside = shells <= sums.max_shell
    shells = shells.clamp(max=sums.max_shell)
    mean = _shell_mean(weight, shells, inside, sums.max_shell + 1)
    if tau2 is not None:
        tau2 = _of_length(tau2.to(weight), sums.max_shell + 1)
        prior = sums.padding**sums.dims * tau2.double()
        mean = torch.where(prior > 0, mean + 1 / prior.clamp(min=1e-300), 0.0)
        weight = weight + (1 / prior.clamp(min=1e-30)).to(weight)[shells]
    weight = torch.maximum(weight, (_LEAST_WEIGHT * mean).to(weight)[shells])
    kept = inside & (mean > 0)[shells] & (weight > 0)
    values = torch.where(kept, sums.numerator / torch.where(kept, weight, 1.0), 0.0)
    padded = sums.box * sums.padding
    volume = crop_centred(irfft_centred(embed(values, padded), padded, sums.dims), sums.box)
    rounded = _without_corners(volume / sinc_squared(sums.box, sums.padding, sums.dims, volume.device, volume.dtype))
    # the mask's edge spread signal into shells that hold no data, where half maps would seem to agree
    empty = shell_index(sums.box, sums.dims, volume.device) > sums.max_shell
    return irfft_centred(rfft_centred(rounded, sums.dims).masked_fill(empty, 0.0), sums.box, sums.dims)


def _without_corners(volume: torch.Tensor) -> torch.Tensor:
    """The map with what lies outside the sphere that fits the box replaced by its mean there: in corners slices hold noise only."""
    distance = radius_grid(volume.shape[-1], volume.dim(), volume.device) - (volume.shape[-1] // 2 - _CORNER_EDGE_PX)
    inside = raised_cosine(distance, _CORNER_EDGE_PX).to(volume.dtype)
    outside = ((1 - inside) * volume).sum() / (1 - inside).sum()
    return inside * volume + (1 - inside) * outside


def weight_of_shells(sums: FourierSums) -> torch.Tensor:
    """Mean weight a Fourier component of the map (not of the padded one) has in each shell, float64 [max_shell + 1].

    Its inverse is the variance of the noise left in the map, RELION's `rlnReferenceSigma2` in our scale.
    """
    shells = sums.shells()
    inside = shells <= sums.max_shell
    mean = _shell_mean(sums.weight, shells.clamp(max=sums.max_shell), inside, sums.max_shell + 1)
    return mean * sums.padding**sums.dims


def symmetrised(sums: FourierSums, group: str) -> FourierSums:
    """The sums with the operators of `group` that map the grid onto itself applied (each exactly); see `slice_operators`."""
    operators = _grid_operators(symmetry_operators(group))
    if sums.dims == 2 or len(operators) == 1:
        return sums
    half = sums.shape[-1] - 1
    full = _full_grid(sums)
    out = FourierSums(sums.box, sums.dims, sums.max_shell, sums.padding, device=full.device, dtype=full.dtype)
    total = torch.zeros(*sums.shape, 3, device=full.device, dtype=full.dtype)
    for operator in operators:
        total += _turned(full, operator)[:, :, half:]
    total[:, :, 0] /= 2  # the mates on that plane are in already, and `FourierSums` adds them again
    out.data[:, :3] = total.view(-1, 3)
    return out


def slice_operators(group: str) -> torch.Tensor:
    """Operators [m, 3, 3] to back-project each slice with, so that `symmetrised` afterwards makes the whole of `group`.

    They are one of each coset of the subgroup of axis permutations: 1 for C2, C4, D2, D4, O; 3 for C3 and D3; 5 for I.
    """
    operators = symmetry_operators(group)
    exact = _grid_operators(operators)
    cosets: list[torch.Tensor] = []
    for operator in operators:
        if not any(bool(((exact @ kept - operator).abs().amax(dim=(1, 2)) < 1e-6).any()) for kept in cosets):
            cosets.append(operator)
    return torch.stack(cosets)


def add_symmetric(
    sums: FourierSums, group: str, matrices: torch.Tensor, pixels: Pixels, numerators: torch.Tensor, weights: torch.Tensor | None = None
) -> None:
    """`sums.add` with the operators of `slice_operators(group)`: a slice at A also counts as one at A Sᵀ."""
    operators = slice_operators(group) if sums.dims == 3 else torch.eye(3, dtype=torch.float64)[None]
    for operator in operators.to(matrices):
        sums.add(matrices @ operator.T, pixels, numerators, weights)


def _grid_operators(operators: torch.Tensor) -> torch.Tensor:
    """Those that only permute and flip the axes."""
    rounded = operators.round()
    return rounded[(operators - rounded).abs().amax(dim=(1, 2)) < 1e-6]


def _full_grid(sums: FourierSums) -> torch.Tensor:
    """The whole grid [L, L, L, 3] (real, imaginary, weight) from the half that is kept."""
    half = torch.cat([torch.view_as_real(sums.numerator), sums.weight[..., None]], dim=-1)
    mates = half.flip((0, 1, 2)) * half.new_tensor([1, -1, 1])
    return torch.cat([mates[:, :, :-1], half], dim=2)


def _turned(full: torch.Tensor, operator: torch.Tensor) -> torch.Tensor:
    """G with G(k) = full(Sᵀ k) for an operator S that permutes and flips the axes; the grid is indexed [z, y, x]."""
    source = operator.T.round().long()  # row: axis of the source point; its one entry: which axis of k, and the sign
    order, flips = [0, 0, 0], []
    for axis in range(3):
        of_k = int(source[axis].abs().argmax())
        order[2 - of_k] = 2 - axis
        if source[axis, of_k] < 0:
            flips.append(2 - axis)
    return full.flip(flips).permute(*order, 3)


def _shell_mean(values: torch.Tensor, shells: torch.Tensor, inside: torch.Tensor, count: int) -> torch.Tensor:
    """Mean of `values` over the grid points of each shell, float64 [count]."""
    member = inside.double()
    total, points = (_sum_by(shells.flatten(), part.flatten(), count) for part in (values.double() * member, member))
    return total / points.clamp(min=1)


def _sum_by(index: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """Sum of the values [n] of each index, [count]; on a card over many copies of the few sums, which else all would wait for."""
    lanes = _LANES if values.is_cuda else 1
    place = index + count * (torch.arange(len(index), device=index.device) % lanes)
    return values.new_zeros(lanes * count).index_add_(0, place, values).view(lanes, count).sum(0)


def _of_length(values: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(values[:length], (0, max(0, length - len(values))))
