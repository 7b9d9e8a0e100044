"""How far estimated poses and shifts are from the true ones, once all that cannot be known is taken off.

A refinement may end in any of the group's equivalent settings, in the mirror image, and (C1, Cn) turned as a whole. So the found poses
are compared after the best of: mirror or not, each element of the group's normaliser, and one common rotation of all particles. What
was taken is reported: a common rotation that is not near an element of the normaliser means a reference off its symmetry axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from verglas.volume.rotations import euler_to_matrix, nearest_rotation, rotation_distance
from verglas.volume.symmetry import group_name, has_free_axis, normaliser, symmetry_operators

_FAR = 30.0  # degrees from which on a pose is simply wrong, and no longer pulls at the common rotation's choice
_SAMPLE = 2000  # particles that the candidates are tried on
_STARTS = 48  # pairs of poses that propose a rotation where the group leaves it open


@dataclass(frozen=True)
class PoseErrors:
    """Errors of n particles after alignment: F' = mirror F common, compared with T g, F found and T true poses.

    degrees, view_degrees [n]: of the whole rotation, and of the view direction alone. shift [n] or None: Å.
    mirrored: the found poses belong to the mirror image. common [3, 3]: the rotation taken. operator [3, 3]: the element of the
    normaliser nearest to it. common_degrees: how far it is from that (for Cn: of the axis alone; for C1: 0).
    offset [3] or None: shift of the found map against the true one, Å (x, y, z), as far as the group leaves it open.
    """

    degrees: torch.Tensor
    view_degrees: torch.Tensor
    mirrored: bool
    common: torch.Tensor
    operator: torch.Tensor
    common_degrees: float
    shift: torch.Tensor | None = None
    offset: torch.Tensor | None = None

    def summary(self) -> dict[str, float]:
        """Median, mean and 90 % of the pose errors in degrees, the part within 10 degrees; the shifts' median, 90 % and rms in Å."""
        quantile = torch.quantile(self.degrees, torch.tensor([0.5, 0.9], dtype=torch.float64))
        figures = {
            "pose_median": float(quantile[0]),
            "pose_mean": float(self.degrees.mean()),
            "pose_90": float(quantile[1]),
            "within_10_degrees": float((self.degrees < 10).double().mean()),
            "view_median": float(self.view_degrees.median()),
            "common_degrees": self.common_degrees,
            "mirrored": float(self.mirrored),
        }
        if self.shift is not None:
            figures |= {
                "shift_median": float(self.shift.median()),
                "shift_90": float(torch.quantile(self.shift, 0.9)),
                "shift_rms": float(self.shift.square().mean().sqrt()),
            }
        return figures


def pose_errors(
    found_angles: torch.Tensor,
    true_angles: torch.Tensor,
    group: str = "C1",
    *,
    found_origins: torch.Tensor | None = None,
    true_origins: torch.Tensor | None = None,
    common_rotation: bool = True,
) -> PoseErrors:
    """Errors of found against true Euler angles [n, 3] (degrees) modulo the group, and of the origins [n, 2] (Å) where both are given.

    common_rotation: fit one rotation of all particles; otherwise only the elements of the normaliser are tried. With a free rotation
    the errors of very few particles say nothing: one particle always fits.
    Raises ValueError where shapes don't match or a value isn't finite, InputError for an unknown group.
    """
    _check(found_angles, true_angles, found_origins, true_origins)
    found, true = (euler_to_matrix(angles.double().cpu()) for angles in (found_angles, true_angles))
    operators, group = symmetry_operators(group), group_name(group)
    best: tuple[float, bool, torch.Tensor] | None = None
    for mirrored in (False, True):
        seen = _mirrored(found) if mirrored else found
        cost, common = _align(seen, true, operators, group, common_rotation)
        # a tie, as a flat or tiny set may give it, is no ground to call it mirrored
        if best is None or cost < best[0] - 1e-9:
            best = cost, mirrored, common
    assert best is not None
    _, mirrored, common = best
    turned = (_mirrored(found) if mirrored else found) @ common
    partner = _partners(turned, true, operators)
    degrees = rotation_distance(turned, partner)
    cosine = (turned[:, 2] * partner[:, 2]).sum(dim=1).clamp(-1, 1)
    operator, left_over = _nearest_operator(common, group)
    errors = degrees, torch.rad2deg(torch.acos(cosine)), mirrored, common, operator, left_over
    if found_origins is None or true_origins is None:
        return PoseErrors(*errors)
    return PoseErrors(*errors, *_shift_errors(found_origins.double().cpu() - true_origins.double().cpu(), found, operators))


def _check(found: torch.Tensor, true: torch.Tensor, found_origins: torch.Tensor | None, true_origins: torch.Tensor | None) -> None:
    n = len(true)
    shapes = {"found angles": (found, (n, 3)), "true angles": (true, (n, 3))}
    shapes |= {"found origins": (found_origins, (n, 2)), "true origins": (true_origins, (n, 2))}  # type: ignore[dict-item]
    for name, (values, shape) in shapes.items():
        if values is None:
            continue
        if n == 0 or tuple(values.shape) != shape:
            raise ValueError(f"{name} have the shape {tuple(values.shape)}, expected {shape} and at least one particle")
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} of row {int((~torch.isfinite(values)).any(dim=1).nonzero()[0])} are not finite")


def _mirrored(poses: torch.Tensor) -> torch.Tensor:
    """Poses that give, on the inverted map, the same images: a projection sees f(r) along the view as f(-r) turned by 180 degrees."""
    return torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=poses.dtype)) @ poses


def _partners(found: torch.Tensor, true: torch.Tensor, operators: torch.Tensor) -> torch.Tensor:
    """Of the copies T g of each true pose [n, 3, 3] the one nearest to the found pose."""
    between = (true.mT @ found).flatten(1)  # tr(F^T T g) = <T^T F, g>
    return true @ operators[(between @ operators.flatten(1).T).argmax(dim=1)]


def _cost(found: torch.Tensor, true: torch.Tensor, operators: torch.Tensor) -> float:
    return float(rotation_distance(found, _partners(found, true, operators)).clamp(max=_FAR).mean())


def _align(
    found: torch.Tensor, true: torch.Tensor, operators: torch.Tensor, group: str, common_rotation: bool
) -> tuple[float, torch.Tensor]:
    """The lowest cost over all candidates for the common rotation, and that rotation."""
    picked = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:_SAMPLE]
    some, some_true = found[picked], true[picked]
    candidates = _cosets(normaliser(group), operators)
    if common_rotation and has_free_axis(group):
        proposed = some[:_STARTS].mT @ some_true[:_STARTS]
        candidates = torch.cat([candidates, proposed])
    costs = [_cost(some @ candidate, some_true, operators) for candidate in candidates]
    first = min(range(len(costs)), key=costs.__getitem__)
    common = candidates[first]
    if common_rotation:
        fitted = _fit(found, true, operators, common)
        if _cost(found @ fitted, true, operators) < _cost(found @ common, true, operators):
            common = fitted
    return _cost(found @ common, true, operators), common


def _cosets(elements: torch.Tensor, operators: torch.Tensor) -> torch.Tensor:
    """One of each set of elements that differ by an operator of the group only."""
    kept: list[torch.Tensor] = []
    for element in elements:
        if all(float((element - other @ operators).abs().amax(dim=(1, 2)).min()) > 1e-6 for other in kept):
            kept.append(element)
    return torch.stack(kept)


def _fit(found: torch.Tensor, true: torch.Tensor, operators: torch.Tensor, common: torch.Tensor, rounds: int = 10) -> torch.Tensor:
    """The rotation Q for which F Q is nearest to T g in the sum of absolute angles (weighted means, a few rounds)."""
    for _ in range(rounds):
        turned = found @ common
        partner = _partners(turned, true, operators)
        error = rotation_distance(turned, partner)
        weight = torch.where(error < _FAR, 1 / error.clamp(min=0.01), 0.0)
        if not float(weight.sum()):
            break
        common = nearest_rotation(torch.einsum("n,nji,njk->ik", weight, found, partner))
    return common


def _nearest_operator(common: torch.Tensor, group: str) -> tuple[torch.Tensor, float]:
    """The element of the normaliser that is nearest to the common rotation, and what the group forbids of the rest in degrees."""
    elements = normaliser(group)
    if not has_free_axis(group):
        distance = rotation_distance(elements, common)
        return elements[distance.argmin()], float(distance.min())
    if group == "C1":
        return common, 0.0
    up = 1.0 if common[2, 2] >= 0 else -1.0
    flip = torch.diag(torch.tensor([1.0, up, up], dtype=common.dtype))
    return flip, float(torch.rad2deg(torch.atan2(common[2, :2].norm(), common[2, 2].abs())))


def _shift_errors(
    difference: torch.Tensor, found: torch.Tensor, operators: torch.Tensor, rounds: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    """Length of each difference of origins [n, 2] after the best common offset of the map, and that offset [3].

    A found map that is shifted by t changes the origins by (A t)[:2]; the group leaves only a t that its operators keep.
    """
    values, vectors = torch.linalg.eigh(operators.mean(dim=0))
    basis = vectors[:, values > 0.5]
    offset = torch.zeros(3, dtype=torch.float64)
    design = found[:, :2] @ basis
    for _ in range(rounds if basis.shape[1] else 0):
        length = (difference - found[:, :2] @ offset).norm(dim=1)
        weight = 1 / length.clamp(min=0.01)
        normal = torch.einsum("n,nia,nib->ab", weight, design, design)
        offset = basis @ (torch.linalg.pinv(normal) @ torch.einsum("n,nia,ni->a", weight, design, difference))
    return (difference - found[:, :2] @ offset).norm(dim=1), offset
