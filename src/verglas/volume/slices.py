"""Central slices of a map's transform, and their exact adjoint.

A map is divided by the transform of the interpolation kernel (sinc², one factor an axis), padded, transformed, and sampled
linearly at the slice's points; back-projection is the transpose of that chain, step by step. The same code serves 2D maps
(class averages, turned in the plane) and 3D maps. Conventions: RELION.md §1; method: METHOD.md §4.

    pixels = pixel_list(box, max_shell)
    slices = Projector(volume, max_shell).project(matrices, pixels)              # complex [n, k]
    sums = FourierSums(box, 3, max_shell)
    sums.add(matrices, pixels, numerators, weights)                              # then reconstruct.reconstruct(sums)

Maps in float32 are served by compiled code: slices.cpp on a CPU, slices_triton.py on a card. The code here defines what they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

from verglas.compute.native import native_library
from verglas.volume import slices_native
from verglas.volume.fourier import irfft_centred, packed_pixels, rfft_centred

_POINTS_AT_ONCE = {"cpu": 1 << 15, "cuda": 1 << 24}  # slice pixels sampled in one go, about 100 bytes each: a core's cache; a card's memory


@dataclass(frozen=True)
class Pixels:
    """Fourier pixels of a half plane, each counted once (on the column kx = 0 only ky > 0), sorted by shell.

    `kx`, `ky` float32 [k] in cycles a box, `shell` int64 [k] = round|k|, `index` int64 [k] into a flattened half transform
    [box, box // 2 + 1]. Pixels from `count` on only fill the list up; their `valid` is 0 and they sit at the origin.
    """

    box: int
    kx: torch.Tensor
    ky: torch.Tensor
    shell: torch.Tensor
    index: torch.Tensor
    valid: torch.Tensor
    count: int

    def __len__(self) -> int:
        return len(self.kx)

    def pack(self, half: torch.Tensor) -> torch.Tensor:
        """Values [..., k] of half transforms [..., box, box // 2 + 1]; 0 at the pixels that fill up."""
        return half.flatten(-2)[..., self.index] * self.valid

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """Half transforms [..., box, box // 2 + 1] of packed complex values [..., k], zero elsewhere; mates on kx = 0 filled in."""
        half = values.new_zeros(*values.shape[:-1], self.box * (self.box // 2 + 1))
        half[..., self.index[: self.count]] = values[..., : self.count]
        half = half.unflatten(-1, (self.box, self.box // 2 + 1))
        column = half[..., 0].clone()
        half[..., 1:, 0] += column[..., 1:].flip(-1).conj()
        return half


def pixel_list(box: int, max_shell: int, *, min_shell: int = 1, multiple: int = 1, device: torch.device | str = "cpu") -> Pixels:
    """The pixels of shells `min_shell` (0 takes in DC) to `max_shell`, filled up to a multiple of `multiple`.

    Raises ValueError unless 0 ≤ min_shell ≤ max_shell < box / 2.
    """
    if not 0 <= min_shell <= max_shell or 2 * max_shell >= box:
        raise ValueError(f"shells {min_shell} to {max_shell} do not lie in a box of {box} px")
    packed = packed_pixels(box, max_shell)
    first = int(packed.ends[min_shell - 1]) if min_shell > 0 else 0
    fields = [values[first:] for values in (packed.kx, packed.ky, packed.shell, packed.flat)]
    if min_shell == 0:
        fields = [torch.nn.functional.pad(values, (1, 0)) for values in fields]
    count = len(fields[0])
    fill = -count % multiple
    kx, ky, shell, index = (torch.nn.functional.pad(values, (0, fill)).to(device) for values in fields)
    shell[count:] = max_shell
    valid = (torch.arange(count + fill, device=device) < count).float()
    return Pixels(box, kx.float(), ky.float(), shell, index, valid, count)


def half_range(max_shell: int, padding: int) -> int:
    """Largest index along an axis of the padded transform that a slice of shells up to `max_shell` touches."""
    return max_shell * padding + (padding + 1) // 2


def sinc_squared(box: int, padding: int, dims: int, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
    """Transform of the linear interpolation kernel over a box padded `padding` times, [box] * dims, 1 at the centre."""
    line = torch.sinc((torch.arange(box, device=device, dtype=dtype) - box // 2) / (box * padding)) ** 2
    window = line
    for _ in range(dims - 1):
        window = window[..., None] * line
    return window


def kernels_for(grid: torch.Tensor) -> ModuleType | None:
    """The module of compiled code that serves a map's transform or sums, or None: then the plain code does."""
    if grid.dtype != torch.float32:
        return None
    if grid.device.type == "cpu":
        return slices_native if native_library(slices_native.SOURCE) is not None else None
    return _on_cards() if grid.device.type == "cuda" else None


@cache
def _on_cards() -> ModuleType | None:
    try:
        from verglas.volume import slices_triton
    except ImportError:
        return None
    return slices_triton


class Projector:
    """Samples central slices of one map [box] * 2 or 3 up to `max_shell`, in the map's dtype and on its device.

    `table` [(z,) y, x, 2]: the padded transform within ±`half_range`, x ≥ 0 only, and one more point at the end of each axis.
    """

    def __init__(self, volume: torch.Tensor, max_shell: int, padding: int = 2) -> None:
        self.dims, self.box, self.padding, self.max_shell = volume.dim(), volume.shape[-1], padding, max_shell
        self.half_range = half_range(max_shell, padding)
        flat = volume / sinc_squared(self.box, padding, self.dims, volume.device, volume.dtype)
        spectrum = rfft_centred(pad_centred(flat, self.box * padding), self.dims)
        # one point more, so that every point of a slice has a grid point on both sides
        around = (0, 0) + (0, 1) * self.dims
        self.table = torch.nn.functional.pad(torch.view_as_real(_cut(spectrum, self.half_range)), around).contiguous()

    def project(self, matrices: torch.Tensor, pixels: Pixels) -> torch.Tensor:
        """Slices of the orientations `matrices` [n, 3, 3] at `pixels`, complex [n, k]: transforms of projections, 0 at fill."""
        if (kernels := kernels_for(self.table)) is not None:
            return kernels.project(self.table, self.half_range, matrices, pixels, self.padding)  # type: ignore[no-any-return]
        out = torch.empty(len(matrices), len(pixels), dtype=self.table.dtype.to_complex(), device=self.table.device)
        for part in _parts(len(matrices), len(pixels), out.device):
            points, mirrored = _slice_points(matrices[part].to(self.table), pixels, self.padding, self.dims)
            real, imaginary = self._sample(points)
            out[part] = torch.complex(real, torch.where(mirrored, -imaginary, imaginary)) * pixels.valid
        return out

    def _sample(self, points: torch.Tensor) -> torch.Tensor:
        """Linear interpolation at points [n, k, dims] (x, y(, z); x ≥ 0): real and imaginary parts [2, n, k]."""
        grid = points / self.half_range
        grid[..., 0] = 2 * grid[..., 0] - 1
        n = len(points)
        grid = grid.reshape(n, *[1] * (self.dims - 1), -1, self.dims)
        inner = self.table[(slice(0, -1),) * self.dims].movedim(-1, 0)
        table = inner.expand(n, *inner.shape)  # a batch of one would run on one thread
        sampled = torch.nn.functional.grid_sample(table, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        return sampled.reshape(n, 2, -1).movedim(1, 0)


class FourierSums:
    """Numerator (complex) and weight (real) of back-projected slices, on the padded half grid kx ≥ 0, centred in the other axes."""

    def __init__(
        self,
        box: int,
        dims: int,
        max_shell: int,
        padding: int = 2,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.box, self.dims, self.max_shell, self.padding = box, dims, max_shell, padding
        self._half_range = half_range(max_shell, padding)
        side = 2 * self._half_range + 1
        self.shape = (*[side] * (dims - 1), self._half_range + 1)
        # four numbers a voxel on a card, which then adds to all of them at once; on the CPU that costs more cache than it saves
        width = 4 if torch.device(device).type == "cuda" else 3
        self._sums = torch.zeros(torch.Size(self.shape).numel(), width, device=device, dtype=dtype)

    @property
    def numerator(self) -> torch.Tensor:
        """Σ of the numerators with their Hermitian mates, complex, `shape`."""
        return _with_mates(torch.complex(self._sums[:, 0], self._sums[:, 1]).view(self.shape))

    @property
    def weight(self) -> torch.Tensor:
        """Σ of the weights with their mates, real, `shape`."""
        return _with_mates(self._sums[:, 2].reshape(self.shape))

    @property
    def data(self) -> torch.Tensor:
        """The accumulator itself [voxels, 3 or 4] (real, imaginary, weight, and nothing): what ranks add up."""
        return self._sums

    def shells(self) -> torch.Tensor:
        """Shell of the map for each voxel of the grid: round(|k| / padding), int64, `shape`."""
        line = torch.arange(-self._half_range, self._half_range + 1, device=self._sums.device, dtype=torch.float64) ** 2
        radius2 = line[self._half_range :]
        for axis in range(1, self.dims):
            radius2 = radius2 + line.view(-1, *[1] * axis)
        return (radius2.sqrt() / self.padding).round().long()

    def add(self, matrices: torch.Tensor, pixels: Pixels, numerators: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Spread slices [n, k] of orientations `matrices` [n, 3, 3]: complex numerators and, if given, real weights."""
        if (kernels := kernels_for(self._sums)) is not None:
            kernels.spread(self._sums, self.shape, matrices, pixels, self.padding, numerators, weights)
            return
        for part in _parts(len(matrices), len(pixels), self._sums.device):
            points, mirrored = _slice_points(matrices[part].to(self._sums), pixels, self.padding, self.dims)
            values = torch.where(mirrored, numerators[part].conj(), numerators[part]) * pixels.valid
            planes = [values.real.flatten().to(self._sums.dtype), values.imag.flatten().to(self._sums.dtype)]
            if weights is not None:
                planes.append((weights[part] * pixels.valid).flatten().to(self._sums.dtype))
            for index, share in _corners(points.view(-1, self.dims), self.shape):
                for total, plane in zip(self._sums.T, planes):
                    total.scatter_add_(0, index, plane * share)

    def adjoint(self) -> torch.Tensor:
        """The map that the exact transpose of `Projector.project` gives for the numerators added, [box] * dims.

        ⟨project(x), y⟩ = ⟨x, adjoint(y)⟩ with the real inner product Re Σ conj(a) b over the packed pixels.
        """
        padded = self.box * self.padding
        volume = irfft_centred(embed(self.numerator, padded), padded, self.dims) * (padded**self.dims / 2)
        return crop_centred(volume, self.box) / sinc_squared(self.box, self.padding, self.dims, volume.device, volume.dtype)


def pad_centred(volume: torch.Tensor, size: int) -> torch.Tensor:
    """The map in a box of `size`, zeros around, centre on centre (index N // 2)."""
    before = size // 2 - volume.shape[-1] // 2
    after = size - volume.shape[-1] - before
    return torch.nn.functional.pad(volume, (before, after) * volume.dim())


def crop_centred(volume: torch.Tensor, size: int) -> torch.Tensor:
    """The middle `size` voxels along every axis, centre on centre."""
    start = volume.shape[-1] // 2 - size // 2
    return volume[(slice(start, start + size),) * volume.dim()]


def embed(grid: torch.Tensor, padded: int) -> torch.Tensor:
    """A grid of `FourierSums` as the half transform of a box of `padded` pixels, in FFT order; ±padded/2 fall together.

    What an odd box without padding has no room for, half a pixel past Nyquist in x, is left out.
    """
    half = grid.shape[-1] - 1
    half_transform = grid.new_zeros(*[padded] * (grid.dim() - 1), padded // 2 + 1)
    there = grid[..., : padded // 2 + 1]
    half_transform.index_put_(_places(half, padded, grid.dim(), grid.device), there, accumulate=True)
    if 2 * half == padded:
        edge = half_transform[..., -1]
        axes = tuple(range(edge.dim()))
        half_transform[..., -1] = edge + edge.flip(axes).roll([1] * len(axes), axes).conj()
    return half_transform


def _cut(spectrum: torch.Tensor, half: int) -> torch.Tensor:
    """The inverse of `embed`: the part of a half transform within ±half, centred in all axes but the last."""
    part = spectrum[_places(half, spectrum.shape[0], spectrum.dim(), spectrum.device)]
    return torch.nn.functional.pad(part, (0, half + 1 - part.shape[-1]))


def _places(half: int, padded: int, dims: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    full = torch.arange(-half, half + 1, device=device) % padded
    axes = [full] * (dims - 1) + [torch.arange(min(half, padded // 2) + 1, device=device)]
    return tuple(torch.meshgrid(*axes, indexing="ij"))


def _parts(n: int, k: int, device: torch.device) -> Iterator[slice]:
    step = max(1, _POINTS_AT_ONCE[device.type] // max(k, 1))
    return (slice(start, start + step) for start in range(0, n, step))


def _slice_points(matrices: torch.Tensor, pixels: Pixels, padding: int, dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points Aᵀ(kx, ky, 0) in padded units with x ≥ 0 [n, k, dims], and where the mate was taken for that [n, k]."""
    plane = torch.stack([pixels.kx, pixels.ky], dim=1).to(matrices) * padding
    points = plane @ matrices[:, :2, :dims]
    mirrored = points[..., 0] < 0
    return torch.where(mirrored[..., None], -points, points), mirrored


def _corners(points: torch.Tensor, shape: tuple[int, ...]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Flat index and share [m] of each of the 2^dims grid points around points [m, dims] (x, y(, z))."""
    half, dims = shape[-1] - 1, points.shape[-1]
    low = points.floor()
    near = [1 - (points - low), points - low]
    strides = [1, shape[-1], shape[-1] * shape[-2]][:dims]
    low = low.long()  # int32 indices take a path that is ten times slower
    base = low[:, 0].clone()
    for axis in range(1, dims):
        base += (low[:, axis] + half) * strides[axis]
    for corner in range(2**dims):
        steps = [corner >> axis & 1 for axis in range(dims)]
        share = near[steps[0]][:, 0] * near[steps[1]][:, 1]
        if dims == 3:
            share *= near[steps[2]][:, 2]
        yield base + sum(step * stride for step, stride in zip(steps, strides)), share


def _with_mates(grid: torch.Tensor) -> torch.Tensor:
    """Add the Hermitian mates on the plane kx = 0; elsewhere they fall on kx < 0, which is not kept."""
    full = grid.clone()
    plane = grid[..., 0]
    full[..., 0] += plane.flip(tuple(range(plane.dim()))).conj()
    return full


def sampled_with_gradient(projector: Projector, matrices: torch.Tensor, pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices complex [n, k] of a 3D map, and the gradient [n, k, 3] of the interpolated transform there, by (x, y, z) in cycles a box."""
    points, mirrored = _slice_points(matrices.to(projector.table), pixels, projector.padding, 3)
    half, shape = projector.half_range, projector.table.shape[:3]
    low = points.floor()
    x, y, z = (points - low).unbind(-1)
    place = low.long()
    base = ((place[..., 2] + half) * shape[1] + place[..., 1] + half) * shape[2] + place[..., 0]
    table = torch.view_as_complex(projector.table).flatten()
    corner = [[[table[base + (up * shape[1] + right) * shape[2] + far] for far in (0, 1)] for right in (0, 1)] for up in (0, 1)]
    edge = [[corner[up][right][0] + x * (corner[up][right][1] - corner[up][right][0]) for right in (0, 1)] for up in (0, 1)]
    rise = [[corner[up][right][1] - corner[up][right][0] for right in (0, 1)] for up in (0, 1)]
    plane = [edge[up][0] + y * (edge[up][1] - edge[up][0]) for up in (0, 1)]
    by_x = [rise[up][0] + y * (rise[up][1] - rise[up][0]) for up in (0, 1)]
    by_y = [edge[up][1] - edge[up][0] for up in (0, 1)]
    value = plane[0] + z * (plane[1] - plane[0])
    slopes = [by_x[0] + z * (by_x[1] - by_x[0]), by_y[0] + z * (by_y[1] - by_y[0]), plane[1] - plane[0]]
    gradient = torch.stack(slopes, dim=-1) * projector.padding
    # the mate's value is the conjugate, and its gradient the conjugate with the other sign
    value = torch.where(mirrored, value.conj(), value) * pixels.valid
    return value, torch.where(mirrored[..., None], -gradient.conj(), gradient) * pixels.valid[:, None]
