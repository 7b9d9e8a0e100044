"""Fourier shell correlation, the resolution read from it, and its correction by phase randomisation.

RELION's rules: a shell is round(|k|), sums run over the half transform as stored (no weight for the half that isn't), and the
resolution is the last shell before the curve first falls under the threshold, never interpolated.
"""

from __future__ import annotations

import math

import torch

from verglas.volume.fourier import irfft_centred, rfft_centred, shell_counts, shell_index, shell_sums

# power of a shell, relative to the whole spectrum's mean, that float32 transforms leave where there is nothing
_ROUNDING = 1e-13


def fsc(first: torch.Tensor, second: torch.Tensor, dims: int = 3) -> torch.Tensor:
    """Correlation of two maps [..., N, N, N] (dims 3) or images [..., N, N] (dims 2) in shells 0 to N//2, [..., N//2+1], float64.

    A shell in which either has no power counts as 0; shell 0, the mean alone, as 1.
    """
    if first.shape[-dims:] != second.shape[-dims:]:
        raise ValueError(f"FSC of maps of unlike shape: {tuple(first.shape)} and {tuple(second.shape)}")
    return fsc_of_transforms(rfft_centred(first, dims), rfft_centred(second, dims), first.shape[-1], dims)


def fsc_of_transforms(first: torch.Tensor, second: torch.Tensor, size: int, dims: int = 3) -> torch.Tensor:
    """`fsc` of half transforms of edge `size`."""
    cross = shell_sums(first.real * second.real + first.imag * second.imag, size, dims)
    norm, empty = torch.ones_like(cross), torch.zeros_like(cross, dtype=torch.bool)
    counts = shell_counts(size, dims, device=cross.device)
    for transform in (first, second):
        power = shell_sums(transform.real.square() + transform.imag.square(), size, dims)
        empty |= power <= _ROUNDING * counts * power.sum(dim=-1, keepdim=True) / counts.sum()
        norm = norm * power.sqrt()
    curve = torch.where(empty, 0.0, cross / norm.clamp(min=1e-300))
    curve[..., 0] = 1.0
    return curve


def resolution_shell(curve: torch.Tensor, threshold: float = 0.143) -> int:
    """The last shell before the curve [shells] first falls under `threshold` (counted from shell 1); 0 where shell 1 is under it.

    The last shell of all where the curve never falls. A value that is not a number counts as under it.
    """
    under = torch.nonzero(~(curve[1:] >= threshold))
    return int(under[0]) if len(under) else len(curve) - 1


def shell_to_resolution(shell: int, size: int, pixel_size: float) -> float:
    """Resolution of a shell in Å, N pixel / shell; infinite for shell 0."""
    return size * pixel_size / shell if shell else math.inf


def resolution(curve: torch.Tensor, size: int, pixel_size: float, threshold: float = 0.143) -> float:
    """Resolution in Å at which the curve is read for `threshold`: `resolution_shell`, then `shell_to_resolution`."""
    return shell_to_resolution(resolution_shell(curve, threshold), size, pixel_size)


def randomisation_shell(unmasked: torch.Tensor, threshold: float = 0.8) -> int:
    """The first shell (from 1) whose unmasked FSC is under 0.8: phases are randomised from here on. The last shell if none is."""
    return min(resolution_shell(unmasked, threshold) + 1, len(unmasked) - 1)


def phase_randomise(volume: torch.Tensor, from_shell: int, generator: torch.Generator | None = None, dims: int = 3) -> torch.Tensor:
    """A map (or image) with the amplitudes of `volume` and, from `from_shell` on, random phases (Chen et al. 2013).

    The phases are those of white noise drawn from `generator`, so they have the symmetry of a real map's.
    """
    size = volume.shape[-1]
    noise = torch.randn(volume.shape, generator=generator, device=generator.device if generator is not None else None).to(volume)
    transform, phases = rfft_centred(volume, dims), rfft_centred(noise, dims)
    mixed = transform.abs() * torch.sgn(phases)
    return irfft_centred(torch.where(shell_index(size, dims, volume.device) >= from_shell, mixed, transform), size, dims)


def solvent_corrected(
    half1: torch.Tensor, half2: torch.Tensor, mask: torch.Tensor, unmasked: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """FSC of half maps [N, N, N] inside a mask: as it is, with phases randomised, corrected by that ([shells] each), and the first shell
    whose phases were randomised, which is found in `unmasked`, the FSC of the maps themselves [shells]. The phases hang on `seed` alone.
    """
    start = randomisation_shell(unmasked)
    generator = torch.Generator().manual_seed(seed)
    random1, random2 = (phase_randomise(half, start, generator) for half in (half1, half2))
    masked, randomised = (fsc(a * mask, b * mask)[: len(unmasked)] for a, b in ((half1, half2), (random1, random2)))
    return masked, randomised, corrected_fsc(unmasked, masked, randomised, start), start


def corrected_at(shell: int | torch.Tensor, from_shell: int) -> bool | torch.Tensor:
    """Whether the FSC of a shell is corrected for phases that were randomised from another on: two shells later, where none leak in."""
    return shell >= from_shell + 2


def corrected_fsc(unmasked: torch.Tensor, masked: torch.Tensor, randomised: torch.Tensor, from_shell: int) -> torch.Tensor:
    """(FSC_masked - FSC_random) / (1 - FSC_random), where `corrected_at` says; before that FSC_masked.

    `masked`, `randomised`: FSC of the masked maps before and after the phases were randomised from `from_shell`, [shells]. 0 where
    `unmasked`, that of the maps themselves, is 0: in a shell without power the mask's edge spreads what it has from others.
    """
    corrected = (masked - randomised) / (1 - randomised).clamp(min=1e-12)
    shells = torch.arange(len(masked), device=masked.device)
    curve = torch.where(torch.as_tensor(corrected_at(shells, from_shell)), corrected, masked)
    return torch.where(unmasked == 0, 0.0, curve)
