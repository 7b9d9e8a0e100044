"""The particles as the engine sees them: masked and unmasked transforms, packed and whitened, with their CTFs.

seen = Observations(particles, source, mask_diameter=120, device=device)
batch = seen.batch(rows, assignments, sigma2, pixels)

Compiled code serves: observations.cpp on a CPU, observations_triton.py on a card. The code here defines what it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from verglas.compute.kernels import compiled_for
from verglas.compute.ranks import ALONE, Ranks
from verglas.errors import InputError
from verglas.optics.aberrations import aberration_phase
from verglas.optics.ctf import ctf
from verglas.particles import ImageSource, ParticleSet, beam_tilt, ctf_parameters, magnification
from verglas.refine import observations_native
from verglas.refine.assignments import Assignments
from verglas.refine.reading import images_ahead, to_device
from verglas.volume.fourier import fourier_pad, rfft_centred
from verglas.volume.masks import soft_circle
from verglas.volume.slices import Pixels, pixel_list

_ON_CARDS = "verglas.refine.observations_triton"
_WITHOUT_EFFECT = {"ctf_bfactor": 0.0, "ctf_scale": 1.0}  # of a CTF's parameters
_FINER = 3  # sampling of images that are freed of anisotropic magnification
MASK_EDGE_PX = 5.0  # RELION's rlnWidthMaskEdge
_TRANSFORMED_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 25}  # pixels of images: a share of a core's cache; beyond, a card works no faster
_CHECKED_AT_ONCE = 1 << 26  # bytes of images
_TOO_STRONG = 30.0  # times the median deviation of the images: no particle's contrast varies so


@dataclass(frozen=True)
class Batch:
    """Some particles, ready to be compared. Transforms are divided by the noise's deviation of their shell.

    rows int64 [b]; masked, unmasked complex64 [b, k]; ctf float32 [b, k] (times the scale, over the deviation);
    power float64 [b, shells]: Σ|X|² of the masked image in each shell, not whitened, over the half plane's pixels.
    """

    rows: torch.Tensor
    masked: torch.Tensor
    unmasked: torch.Tensor
    ctf: torch.Tensor
    power: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Layout:
    """What the files of a run tell of its images: box, pixel size (Å), micrographs, and each particle's group, int64 [n] on the CPU."""

    box: int
    pixel_size: float
    micrographs: np.ndarray
    scale_group: torch.Tensor
    noise_group: torch.Tensor


class Observations:
    """Particles with their images. `noise_group` is the optics group; `scale_group` the micrograph, both int64 [n] from 0."""

    def __init__(
        self,
        particles: ParticleSet,
        source: ImageSource,
        *,
        mask_diameter: float,
        device: torch.device | str = "cpu",
        correct_ctf: bool = True,
        intact_until_first_peak: bool = False,
        read_ahead: bool = True,
    ) -> None:
        self.source, self.device, self._read_ahead = source, torch.device(device), read_ahead
        self.box, self.pixel_size = source.box, source.pixel_size
        self.particles, self.mask_diameter = particles, mask_diameter
        self.mask = soft_circle(self.box, mask_diameter / 2 / self.pixel_size, MASK_EDGE_PX, self.device)
        self.noise_group = torch.as_tensor(particles.optics_index, device=self.device)
        self.noise_groups = len(particles.optics)
        names = particles.column("micrograph_name", "all").astype(str)
        self.micrographs, micrograph = np.unique(names, return_inverse=True)
        self.scale_group = torch.as_tensor(micrograph, device=self.device)
        self._intact = intact_until_first_peak
        self._ctf = _with_effect(ctf_parameters(particles, self.device)) if correct_ctf else None
        self._even = _zernike(particles, "even_zernike")
        self._odd = _zernike(particles, "odd_zernike") if correct_ctf else None
        self._tilt = beam_tilt(particles) if correct_ctf else None
        matrices = magnification(particles) if correct_ctf else None
        self.magnification = None if matrices is None or bool((matrices == torch.eye(2)).all()) else matrices
        self.all_pixels = pixel_list(self.box, (self.box - 1) // 2, device=self.device)
        self._shell_starts = self._starts(self.all_pixels)
        self.pixels_of_shell = torch.bincount(self.all_pixels.shell, minlength=self.shells)

    def __len__(self) -> int:
        return len(self.particles)

    @property
    def shells(self) -> int:
        """Shells of a spectrum, 0 to the last below Nyquist."""
        return (self.box - 1) // 2 + 1

    def layout(self) -> Layout:
        """What files tell of the images."""
        return Layout(self.box, self.pixel_size, self.micrographs, self.scale_group.cpu(), self.noise_group.cpu())

    def read(self, rows: torch.Tensor) -> torch.Tensor:
        """Images [b, N, N] of particles `rows` as the source has them, on the device."""
        return to_device(self.source.read(rows.cpu().numpy()), self.device)

    def reading_ahead(self, parts: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each part (rows int64 [b]) with its images as `read` gives them; the next part is read while the caller works with one."""
        if not self._read_ahead:
            yield from ((part, self.read(part)) for part in parts)
            return
        with closing(images_ahead(self.read, [part.cpu() for part in parts], self.device)) as images:
            yield from zip(parts, images)

    def images(self, rows: torch.Tensor, assignments: Assignments, read: torch.Tensor | None = None) -> torch.Tensor:
        """Images [b, N, N] over their norm correction, moved by the whole pixels of their origins, free of anisotropic magnification.

        `read`: what `read` gave for these rows, where it is at hand.
        """
        images = self.read(rows) if read is None else read
        images = _moved(images, assignments.norm[rows], assignments.whole_shifts(rows, self.pixel_size))
        if self.magnification is None:
            return images
        return unmagnified(images, self.magnification.to(images)[self.noise_group[rows]])

    def _masked_and_whole(self, rows: torch.Tensor, assignments: Assignments, images: torch.Tensor) -> torch.Tensor:
        """`images` of what was read: under the mask, and as they are [2, b, N, N]."""
        if self.magnification is None:
            return masked_and_whole(images, assignments.norm[rows], assignments.whole_shifts(rows, self.pixel_size), self.mask)
        images = self.images(rows, assignments, images)
        return torch.stack([images * self.mask, images])

    def batch(
        self,
        rows: torch.Tensor,
        assignments: Assignments,
        sigma2: torch.Tensor,
        pixels: Pixels,
        *,
        exact_origins: bool = False,
        read: torch.Tensor | None = None,
    ) -> Batch:
        """The particles `rows` at `pixels`, whitened by `sigma2` [noise groups, shells] (variance of a real component).

        `exact_origins` also applies the part of the origins that is less than a pixel (where no shifts are searched). `read`: see `images`.
        """
        whiten = (sigma2.rsqrt().float()[:, pixels.shell] * pixels.valid)[self.noise_group[rows]]
        scale = assignments.scale[self.scale_group[rows]].to(whiten)[:, None]
        ctf = self._ctf_of(rows, pixels).mul_(whiten).mul_(scale)
        factor: torch.Tensor = whiten * _centring(pixels)
        undo = self._undo_aberrations(rows, pixels)
        if undo is not None:
            factor = factor * undo
        if exact_origins:
            factor = factor * shift_factors(pixels, assignments.part_shifts(rows, self.pixel_size))
        masked, unmasked, power = self._transforms(rows, assignments, pixels, factor, read)
        return Batch(rows, masked, unmasked, ctf, power)

    def _transforms(
        self, rows: torch.Tensor, assignments: Assignments, pixels: Pixels, factor: torch.Tensor, read: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the images under the mask and whole: transforms at `pixels` times `factor` [b, k]; of the former also the power [b, shells].

        A few images at a time: all of their whole transforms, and what makes them, would take several times the images' own memory.
        """
        images = self.read(rows) if read is None else read
        masked, unmasked = torch.empty(2, len(rows), len(pixels), dtype=torch.complex64, device=self.device)
        power = torch.empty(len(rows), self.shells, dtype=torch.float64, device=self.device)
        finer = 1 if self.magnification is None else _FINER**2
        at_once = max(torch.get_num_threads(), _TRANSFORMED_AT_ONCE[self.device.type] // (finer * self.box**2))
        for first in range(0, len(rows), at_once):
            some = slice(first, first + at_once)
            both = torch.fft.rfft2(self._masked_and_whole(rows[some], assignments, images[some])).flatten(2)
            power[some] = power_by_shell(both[0], self.all_pixels.index, self._shell_starts)
            for transforms, out in zip(both, (masked, unmasked)):
                keep_times(transforms, pixels.index, factor[some], out[some])
        return masked, unmasked, power

    def power_spectra(self, rows: torch.Tensor, assignments: Assignments) -> tuple[torch.Tensor, torch.Tensor]:
        """Σ|X|² in each shell [b, shells] of the masked images, and their transforms [b, all pixels]."""
        spectrum = self.all_pixels.pack(rfft_centred(self.images(rows, assignments) * self.mask))
        return self.shell_sum(spectrum.abs().square(), self.all_pixels), spectrum

    def shell_sum(self, values: torch.Tensor, pixels: Pixels) -> torch.Tensor:
        """Σ over the pixels of each shell: [..., k] → float64 [..., shells]; the list is sorted by shell, so sums are differences."""
        own = values[..., : pixels.count]
        if own.is_cuda and own.numel() == own.shape[-1]:  # of a single row a card adds up its parts in any order
            return self.shell_sum(torch.stack([values, values]), pixels)[0]
        return _sums_between(own, self._starts(pixels))

    def _starts(self, pixels: Pixels) -> torch.Tensor:
        """Where each shell begins among the pixels, which are sorted by shell, and where the last ends [shells + 1]."""
        return torch.searchsorted(pixels.shell[: pixels.count], torch.arange(self.shells + 1, device=self.device))

    def _frequencies(self, pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
        extent = self.box * self.pixel_size
        return pixels.kx / extent, pixels.ky / extent

    def _ctf_of(self, rows: torch.Tensor, pixels: Pixels) -> torch.Tensor:
        if self._ctf is None:
            return torch.ones(len(rows), len(pixels), device=self.device)
        optics = {"even_zernike": self._even}
        per_row = {name: value.to(self.device)[self.noise_group[rows]] for name, value in optics.items() if value is not None}
        parameters = {name: value[rows] for name, value in self._ctf.items()}
        kx, ky = self._frequencies(pixels)
        return ctf(kx, ky, **parameters, **per_row, intact_until_first_peak=self._intact)

    def _undo_aberrations(self, rows: torch.Tensor, pixels: Pixels) -> torch.Tensor | None:
        if self._ctf is None or (self._tilt is None and self._odd is None):
            return None
        group = self.noise_group[rows]
        optics = {"beam_tilt": self._tilt, "odd_zernike": self._odd}
        per_row = {name: value.to(self.device)[group] for name, value in optics.items() if value is not None}
        lens = {name: self._ctf[name][rows] for name in ("voltage", "spherical_aberration")}
        kx, ky = self._frequencies(pixels)
        return aberration_phase(kx, ky, **lens, **per_row).conj()


def masked_and_whole(images: torch.Tensor, norm: torch.Tensor, shifts: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Images [b, N, N] over `norm` [b], moved by whole `shifts` [b, 2] px (x, y) around the edges: times `mask`, and not [2, b, N, N]."""
    kernels = compiled_for(mask, observations_native, _ON_CARDS)  # the images may be float16
    if kernels is not None:
        return kernels.masked_and_whole(images, norm, shifts, mask)
    whole = _moved(images, norm, shifts)
    return torch.stack([whole * mask, whole])


def _moved(images: torch.Tensor, norm: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Images [b, N, N], float32, over `norm` [b] and moved by whole `shifts` [b, 2] px."""
    return rolled(images.float() / norm.float()[:, None, None], shifts)


def power_by_shell(transforms: torch.Tensor, index: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Σ|X|² of flattened transforms [b, n] over the pixels `index` [k] of each shell, which begins at `starts` [shells + 1] of them.

    float64 [b, shells].
    """
    kernels = compiled_for(transforms.real, observations_native, _ON_CARDS)
    if kernels is not None:
        return kernels.power_by_shell(transforms, index, starts)
    chosen = transforms[:, index]
    return _sums_between(chosen.real.square() + chosen.imag.square(), starts)


def keep_times(transforms: torch.Tensor, index: torch.Tensor, factor: torch.Tensor, out: torch.Tensor) -> None:
    """Flattened transforms [b, n] at the pixels `index` [k] times `factor` [b, k], real or complex, into `out` [b, k]."""
    native = compiled_for(transforms.real, observations_native)
    if native is None:
        torch.mul(transforms[:, index], factor, out=out)
    else:
        native.keep_times(transforms, index, factor, out)


def _sums_between(values: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Sums of values [..., k] from each of `starts` [m + 1] to the next, float64 [..., m]: differences of the running sum."""
    running = torch.nn.functional.pad(torch.cumsum(values, -1, dtype=torch.float64), (1, 0))
    return running[..., starts].diff(dim=-1)


def _centring(pixels: Pixels) -> torch.Tensor:
    """What makes the transform of an image about its first pixel that about its middle, N // 2 [k]: signs, for an odd N phases."""
    if pixels.box % 2 == 0:
        return 1.0 - 2.0 * ((pixels.kx + pixels.ky) % 2)
    return shift_factors(pixels, pixels.kx.new_full((2,), -(pixels.box // 2)))


def shift_factors(pixels: Pixels, shifts: torch.Tensor) -> torch.Tensor:
    """Phase factors [..., k], complex64, that move images by `shifts` [..., 2] pixels (x, y)."""
    turn = -2 * torch.pi / pixels.box * shifts
    phase = torch.addcmul(turn[..., :1] * pixels.kx, turn[..., 1:], pixels.ky)
    return torch.complex(phase.cos(), phase.sin())  # torch.polar takes twice as long on a CPU


def rolled(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Images [b, N, N] moved by whole pixels [b, 2] (x, y), around the edges."""
    box = images.shape[-1]
    line = torch.arange(box, device=images.device)
    x, y = ((line - shifts[:, axis, None]) % box for axis in (0, 1))
    return images[torch.arange(len(images), device=images.device)[:, None, None], y[:, :, None], x[:, None, :]]


def unmagnified(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Images [b, N, N] whose transform at M k is what it was at k, for anisotropic magnifications M [b, 2, 2] (RELION.md §2).

    Then CTF, aberrations and slices are all taken at k itself. x'(r) = |M| x(Mᵀ r), sampled on a grid three times as fine.
    """
    box = images.shape[-1]
    fine = fourier_pad(images, _FINER * box)
    line = torch.arange(box, device=images.device, dtype=images.dtype) - box // 2
    places = torch.stack(torch.meshgrid(line, line, indexing="ij")[::-1], dim=-1)
    source = torch.einsum("bij,yxi->byxj", matrices, places) * _FINER + (_FINER * box) // 2
    grid = 2 * source / (_FINER * box - 1) - 1
    sampled = torch.nn.functional.grid_sample(fine[:, None], grid, mode="bicubic", padding_mode="border", align_corners=True)
    return sampled[:, 0] * torch.linalg.det(matrices)[:, None, None]


def unusable(source: ImageSource, ranks: Ranks = ALONE, device: torch.device | str = "cpu") -> dict[int, str]:
    """Particles that would poison the rest, with what is wrong: not finite, constant, or far stronger than the others.

    Each of the `ranks` reads its share of them, and all learn everything.
    """
    device, own = torch.device(device), ranks.share(torch.arange(len(source)))
    parts = [part for part in own.split(max(1, _CHECKED_AT_ONCE // (4 * source.box**2))) if len(part)]
    with closing(images_ahead(lambda part: to_device(source.read(part.numpy()), device), parts, device)) as images:
        found = [_deviations(of_part).cpu() for of_part in images]
    deviation = torch.cat([part for of_rank in ranks.everyones(found) for part in of_rank])
    finite = torch.isfinite(deviation)
    usual = deviation[finite & (deviation > 0)].median() if (finite & (deviation > 0)).any() else deviation.new_tensor(1.0)
    reasons: dict[int, str] = {}
    for index in torch.nonzero(~finite | (deviation < 1e-6 * usual) | (deviation > _TOO_STRONG * usual))[:, 0].tolist():
        value = float(deviation[index])
        if not np.isfinite(value):
            reasons[index] = "holds values that are not numbers"
        elif value < 1e-6 * float(usual):
            reasons[index] = "is constant"
        else:
            reasons[index] = f"is {value / float(usual):.0f} times as strong as the others"
    return reasons


def check_mask_diameter(mask_diameter: float, box: int, pixel_size: float) -> None:
    """Raise InputError for a mask that does not fit in the box or holds next to nothing."""
    least, widest = 4 * pixel_size, box * pixel_size
    if not least <= mask_diameter <= widest:
        problem = f"{mask_diameter:g} Å does not fit a box of {box} px of {pixel_size:g} Å ({widest:g} Å)"
        raise InputError("--mask-diameter", problem, f"Give a diameter from {least:.0f} to {widest:.0f} Å")


def _deviations(images: torch.Tensor) -> torch.Tensor:
    return images.double().flatten(1).std(dim=1)


def _with_effect(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters [n] of a CTF but for factors of 1, each of which would cost passes over all pixels."""
    idle = [name for name, value in _WITHOUT_EFFECT.items() if bool((parameters[name] == value).all())]
    return {name: values for name, values in parameters.items() if name not in idle}


def _zernike(particles: ParticleSet, column: str) -> torch.Tensor | None:
    """Coefficients of the optics groups [groups, c], zeros where a group has fewer, or None where there are none."""
    if column not in particles.optics.table:
        return None
    rows = [[float(value) for value in str(text).strip("[]").split(",") if value] for text in particles.optics.table[column]]
    longest = max(map(len, rows))
    return torch.tensor([row + [0.0] * (longest - len(row)) for row in rows]) if longest else None
