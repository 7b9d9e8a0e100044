"""Central slices of maps' transforms, and their exact adjoint.

A map is divided by the transform of the interpolation kernel (sinc², one factor an axis), padded, transformed, and sampled
linearly at the slice's points; back-projection is the transpose of that chain, step by step. The same code serves 2D maps
(class averages, turned in the plane) and 3D maps. Conventions: RELION.md §1; method: METHOD.md §4.

    pixels = pixel_list(box, max_shell)
    slices = Projector(volumes, max_shell).project(matrices, pixels, which)      # complex [n, k], of map which[i] each
    sums = FourierSums(box, 3, max_shell, maps=len(volumes))
    sums.add(matrices, pixels, numerators, weights, which)                       # then reconstruct.reconstruct(sums)

Maps in float32 are served by compiled code: slices.cpp on a CPU, slices_triton.py on a card. The code here defines what they do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch

from verglas.compute.kernels import compiled_for
from verglas.volume import slices_native
from verglas.volume.fixed_point import FixedPoint
from verglas.volume.fourier import packed_pixels
from verglas.volume.padded import AT_ONCE, batches, maps_of, parts, sinc_squared, transform_into

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


def slice_kernels(grid: torch.Tensor) -> ModuleType | None:
    """The module of compiled code that serves a map's transform or sums, or None: then the plain code does."""
    return compiled_for(grid, slices_native, "verglas.volume.slices_triton")


class Projector:
    """Samples central slices of maps [m, box, box(, box)] up to `max_shell`, in the maps' dtype and on their device.

    `table` [m, (z,) y, x, 2]: the padded transforms within ±`half_range`, x ≥ 0 only, and one more point at the end of each axis.
    """

    def __init__(self, volumes: torch.Tensor, max_shell: int, padding: int = 2) -> None:
        self.dims, self.box, self.padding, self.max_shell = volumes.dim() - 1, volumes.shape[-1], padding, max_shell
        self.half_range = half_range(max_shell, padding)
        # one point more, so that every point of a slice has a grid point on both sides
        shape = *[2 * self.half_range + 2] * (self.dims - 1), self.half_range + 2
        self.table = volumes.new_zeros(len(volumes), *shape, 2)
        own: tuple[slice, ...] = (slice(None), *[slice(-1)] * self.dims)
        grid = torch.view_as_complex(self.table)[own]
        window, padded = sinc_squared(self.box, padding, self.dims, volumes.device, volumes.dtype), self.box * padding
        for maps in batches(len(volumes), self.dims, padded, volumes.device):
            transform_into(volumes[maps] / window, padded, grid[maps])

    def project(self, matrices: torch.Tensor, pixels: Pixels, which: torch.Tensor | None = None) -> torch.Tensor:
        """Slices of the orientations `matrices` [n, 3, 3] at `pixels`, complex [n, k]: transforms of projections, 0 at fill.

        `which` int64 [n]: the map of each slice; of the first map all where it is not given.
        """
        if (kernels := slice_kernels(self.table)) is not None:
            return kernels.project(self.table, self.half_range, self.padding, matrices, pixels, which)  # type: ignore[no-any-return]
        if which is None:
            return self._project(0, matrices, pixels)
        out = torch.zeros(len(matrices), len(pixels), dtype=self.table.dtype.to_complex(), device=self.table.device)
        for number in range(len(self.table)):
            own = torch.nonzero(which == number)[:, 0]
            out[own] = self._project(number, matrices[own], pixels)
        return out

    def project_with_gradient(self, matrices: torch.Tensor, pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor]:
        """Slices [n, k] of the first map, a 3D one, and the gradients [n, k, 3] of its transform there, by cycles a box in x, y and z."""
        points, mirrored = _slice_points(matrices.to(self.table), pixels, self.padding, 3)
        half, shape = self.half_range, self.table.shape[1:4]
        low = points.floor()
        x, y, z = (points - low).unbind(-1)
        place = low.long()
        base = ((place[..., 2] + half) * shape[1] + place[..., 1] + half) * shape[2] + place[..., 0]
        table = torch.view_as_complex(self.table[0]).flatten()
        corner = [[[table[base + (up * shape[1] + right) * shape[2] + far] for far in (0, 1)] for right in (0, 1)] for up in (0, 1)]
        edge = [[corner[up][right][0] + x * (corner[up][right][1] - corner[up][right][0]) for right in (0, 1)] for up in (0, 1)]
        rise = [[corner[up][right][1] - corner[up][right][0] for right in (0, 1)] for up in (0, 1)]
        plane = [edge[up][0] + y * (edge[up][1] - edge[up][0]) for up in (0, 1)]
        by_x = [rise[up][0] + y * (rise[up][1] - rise[up][0]) for up in (0, 1)]
        by_y = [edge[up][1] - edge[up][0] for up in (0, 1)]
        value = plane[0] + z * (plane[1] - plane[0])
        slopes = [by_x[0] + z * (by_x[1] - by_x[0]), by_y[0] + z * (by_y[1] - by_y[0]), plane[1] - plane[0]]
        gradient = torch.stack(slopes, dim=-1) * self.padding
        # the mate's value is the conjugate, and its gradient the conjugate with the other sign
        value = torch.where(mirrored, value.conj(), value) * pixels.valid
        return value, torch.where(mirrored[..., None], -gradient.conj(), gradient) * pixels.valid[:, None]

    def _project(self, number: int, matrices: torch.Tensor, pixels: Pixels) -> torch.Tensor:
        """Slices of one map."""
        out = torch.empty(len(matrices), len(pixels), dtype=self.table.dtype.to_complex(), device=self.table.device)
        for part in _parts(len(matrices), len(pixels), out.device):
            points, mirrored = _slice_points(matrices[part].to(self.table), pixels, self.padding, self.dims)
            real, imaginary = self._sample(number, points)
            out[part] = torch.complex(real, torch.where(mirrored, -imaginary, imaginary)) * pixels.valid
        return out

    def _sample(self, number: int, points: torch.Tensor) -> torch.Tensor:
        """Linear interpolation of a map at points [n, k, dims] (x, y(, z); x ≥ 0): real and imaginary parts [2, n, k]."""
        grid = points / self.half_range
        grid[..., 0] = 2 * grid[..., 0] - 1
        n = len(points)
        grid = grid.reshape(n, *[1] * (self.dims - 1), -1, self.dims)
        inner = self.table[number][(slice(-1),) * self.dims].movedim(-1, 0)
        table = inner.expand(n, *inner.shape)  # a batch of one would run on one thread
        sampled = torch.nn.functional.grid_sample(table, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        return sampled.reshape(n, 2, -1).movedim(1, 0)


class FourierSums:
    """Numerators (complex) and weights (real) of back-projected slices of `maps` maps.

    `data` [maps, voxels, 3] (real, imaginary, weight) is what ranks add up, on the padded grids of `shape` [(z,) y, x]: x ≥ 0 only,
    centred in the other axes. A card adds whole numbers (see `fixed_point`), of twice the size, until `data` is read or `settle` called.
    """

    def __init__(
        self,
        box: int,
        dims: int,
        max_shell: int,
        padding: int = 2,
        *,
        maps: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.box, self.dims, self.max_shell, self.padding, self.maps = box, dims, max_shell, padding, maps
        self._half_range = half_range(max_shell, padding)
        self._side = 2 * self._half_range + 1
        self.shape = (*[self._side] * (dims - 1), self._half_range + 1)
        self._like = torch.empty(0, device=device, dtype=dtype)
        self._data: torch.Tensor | None = None
        self._counted = self._counters() if self._like.is_cuda and slice_kernels(self._like) is not None else None

    @property
    def data(self) -> torch.Tensor:
        """The sums [maps, voxels, 3], to be read and written."""
        self.settle()
        if self._data is None:
            self._data = self._like.new_zeros(self.maps, math.prod(self.shape), 3)
        return self._data

    def settle(self) -> None:
        """Make `data` of what a card has added, and free the memory that this took."""
        if self._counted is not None:
            added, self._counted = self._counted.floats(), None
            self._data = added if self._data is None else self._data.add_(added)

    def _counters(self) -> FixedPoint:
        return FixedPoint(self.maps, math.prod(self.shape), self._like.device)

    def batches(self) -> Iterator[slice]:
        """Which maps to work on together: see `padded.batches`."""
        return batches(self.maps, self.dims, self.box * self.padding, self._like.device)

    def rows(self) -> list[slice]:
        """Runs of the grid's rows (y) to work on together: all of flat maps."""
        if self.dims == 2:
            return [slice(0, self._side)]
        return list(parts(self._side, math.prod(self.shape) // self._side, AT_ONCE[self._like.device.type]))

    def grid(self, maps: slice = slice(None), rows: slice = slice(None)) -> torch.Tensor:
        """`data` as a grid [maps, (z,) rows, x, 3], a view."""
        return self.data[maps].unflatten(1, self.shape)[..., rows, :, :]

    def numerators(self, maps: slice = slice(None), rows: slice = slice(None)) -> torch.Tensor:
        """Σ of the numerators with their Hermitian mates, complex [maps, (z,) rows, x]."""
        return torch.complex(self._with_mates(0, 1, maps, rows), self._with_mates(1, -1, maps, rows))

    def weights(self, maps: slice = slice(None), rows: slice = slice(None)) -> torch.Tensor:
        """Σ of the weights with their mates, real [maps, (z,) rows, x]."""
        return self._with_mates(2, 1, maps, rows)

    def _with_mates(self, place: int, sign: int, maps: slice, rows: slice) -> torch.Tensor:
        """One of the sums with its mates on the plane kx = 0; elsewhere they fall on kx < 0, which is not kept."""
        first, last, _ = rows.indices(self._side)
        found = self.grid(maps, rows)[..., place].clone()
        mates = self.grid(maps, slice(self._side - last, self._side - first))[..., 0, place]
        found[..., 0].add_(mates.flip(tuple(range(1, self.dims))), alpha=sign)
        return found

    def shells(self, rows: slice = slice(None)) -> torch.Tensor:
        """Shell of the map for each voxel of the grid: round(|k| / padding), int64 [(z,) rows, x]."""
        line = torch.arange(-self._half_range, self._half_range + 1, device=self._like.device, dtype=torch.float64) ** 2
        radius2 = line[self._half_range :] + line[rows, None]
        if self.dims == 3:
            radius2 = radius2 + line[:, None, None]
        return (radius2.sqrt_() / self.padding).round_().long()

    def add(
        self,
        matrices: torch.Tensor,
        pixels: Pixels,
        numerators: torch.Tensor,
        weights: torch.Tensor | None = None,
        which: torch.Tensor | None = None,
    ) -> None:
        """Spread slices [n, k] of orientations `matrices` [n, 3, 3]: complex numerators and, if given, real weights.

        `which` int64 [n]: the map of each slice, in any order; all into the first where it is not given.
        """
        if (kernels := slice_kernels(self._like)) is not None:
            if self._like.is_cuda:
                self._counted = self._counted or self._counters()
            kernels.spread(self._counted or self.data, self.shape, self.padding, matrices, pixels, numerators, weights, which)
            return
        totals = self.data.flatten(0, 1).T
        for part in _parts(len(matrices), len(pixels), totals.device):
            points, mirrored = _slice_points(matrices[part].to(totals), pixels, self.padding, self.dims)
            values = torch.where(mirrored, numerators[part].conj(), numerators[part]) * pixels.valid
            planes = [values.real.flatten().to(totals.dtype), values.imag.flatten().to(totals.dtype)]
            if weights is not None:
                planes.append((weights[part] * pixels.valid).flatten().to(totals.dtype))
            first = 0 if which is None else (which[part] * self.data.shape[1]).repeat_interleave(len(pixels))
            for index, share in _corners(points.view(-1, self.dims), self.shape):
                for total, plane in zip(totals, planes):
                    total.scatter_add_(0, first + index, plane * share)

    def adjoint(self) -> torch.Tensor:
        """The maps that the exact transpose of `Projector.project` gives for the numerators added, [maps, box, box(, box)].

        ⟨project(x), y⟩ = ⟨x, adjoint(y)⟩ with the real inner product Re Σ conj(a) b over the packed pixels.
        """
        padded = self.box * self.padding
        found = torch.cat([maps_of(partial(self.numerators, maps), self.rows(), self.box, padded) for maps in self.batches()])
        return found * (padded**self.dims / 2) / sinc_squared(self.box, self.padding, self.dims, found.device, found.dtype)


def _parts(n: int, k: int, device: torch.device) -> Iterator[slice]:
    return parts(n, k, _POINTS_AT_ONCE[device.type])


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
