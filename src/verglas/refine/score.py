"""Log-likelihoods of images against slices, as matrix products (METHOD.md §1).

    score[i, t, r] = Re Σ_k conj(X̃_ik S_tk) C̃_ik P_rk − ½ Σ_k C̃_ik² |P_rk|²

Complex numbers are kept as pairs of reals, so a complex row of k pixels is a real row of 2k. Everything is summed in float32.
"""

from __future__ import annotations

import torch


def reals(values: torch.Tensor) -> torch.Tensor:
    """Complex [..., k] seen as real [..., 2k]."""
    return torch.view_as_real(values).flatten(-2)


def power(slices: torch.Tensor) -> torch.Tensor:
    """|P|² [..., k] of slices in real pairs [..., 2k]."""
    return slices.unflatten(-1, (-1, 2)).square().sum(-1)


def shifted(images: torch.Tensor, ctf: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """CTF-weighted images moved by each shift, real pairs [b, t, 2k].

    images complex [b, k]; ctf [b, k]; shifts: factors [t, k] for all images, or [b, t, k] of each image's own.
    """
    moved = (images * ctf)[:, None, :] * (shifts if shifts.dim() == 3 else shifts[None])
    return reals(moved)


class DenseSlices:
    """All coarse slices of an iteration, ready for products with every image.

    With `half_precision` the product runs in bf16 on slices whose mean has been taken off (the mean's own product stays in
    float32): scores are then rounded to 0.4 % of their spread over poses, not of their size.
    """

    def __init__(self, slices: torch.Tensor, half_precision: bool) -> None:
        self.power = power(slices)
        self.half_precision = half_precision
        self.mean = slices.mean(0) if half_precision else None
        self.slices = (slices - self.mean).bfloat16() if self.mean is not None else slices

    def __len__(self) -> int:
        return len(self.slices)

    def products(self, moved: torch.Tensor) -> torch.Tensor:
        """Real parts of the products [b, t, r] of shifted images [b, t, 2k] with all slices."""
        flat = moved.flatten(0, 1)
        if self.mean is None:
            cross = flat @ self.slices.T
        else:
            cross = (flat.bfloat16() @ self.slices.T).float()
            cross += (flat @ self.mean)[:, None]
        return cross.view(*moved.shape[:2], -1)

    def energies(self, ctf: torch.Tensor) -> torch.Tensor:
        """Half the energies [b, r] of all slices seen through ctf [b, k]; scores are products less these."""
        return 0.5 * ctf.square() @ self.power.T

    def correlations(self, moved: torch.Tensor, ctf: torch.Tensor) -> torch.Tensor:
        """Normalised cross-correlations [b, t, r], up to a factor of each image; in float32."""
        assert self.mean is None
        cross = (moved.flatten(0, 1) @ self.slices.T).view(*moved.shape[:2], -1)
        return cross / (ctf.square() @ self.power.T).sqrt().clamp(min=1e-20)[:, None]


def own_scores(moved: torch.Tensor, ctf: torch.Tensor, slices: torch.Tensor, *, correlation: bool = False) -> torch.Tensor:
    """Scores [b, r, t] of each image against slices of its own: moved [b, t, 2k], ctf [b, k], slices [b, r, 2k]."""
    cross = torch.bmm(slices, moved.mT)
    energy = torch.bmm(power(slices), ctf.square()[:, :, None])
    return cross / energy.sqrt().clamp(min=1e-20) if correlation else cross - 0.5 * energy
