"""Pictures of maps: slices through the centre, projections, and a shaded view of the surface."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from verglas.volume.fourier import fourier_crop, fourier_pad

PathName = str | PathLike[str]

_AXES = (("z", "x", "y"), ("y", "x", "z"), ("x", "y", "z"))
# Turns of the map before it is looked at from +z.
_VIEWS = {"along z": (0.0, 0.0), "along x": (0.0, 90.0), "along y": (90.0, 0.0), "oblique": (28.0, 34.0)}
_BLOCK = 8  # rays each way that are looked after together
_COARSE = 4  # voxels each way, of the map that tells where the surface may be
_FINEST = 256  # voxels of a box, more than a picture has pixels
_PIXELS, _COLOUR = 240, "#8fc1e6"  # of a picture, and of its surface
_MARGINS = {"left": 0.065, "right": 0.99, "bottom": 0.075, "top": 0.91, "wspace": 0.24, "hspace": 0.3}  # fitting them takes half the time
_LIGHT = np.array([-0.45, 0.60, 0.75])  # from over the viewer's left shoulder; z points to the viewer


def surface_level(density: np.ndarray, share: float = 0.0) -> float:
    """A level for the surface of a map: the value that `share` of the voxels in the inscribed sphere reach.

    Without a share, where Otsu's rule parts particle from solvent.
    """
    from verglas.volume.masks import otsu_threshold, radius_grid

    tensor = torch.as_tensor(density)
    if share <= 0:
        return otsu_threshold(tensor)
    inside = tensor[radius_grid(tensor.shape[-1]) < tensor.shape[-1] / 2]
    return float(inside.kthvalue(max(1, round((1 - share) * inside.numel()))).values)


def shaded_surface(
    density: np.ndarray, level: float, turn: tuple[float, float] = (28.0, 34.0), pixels: int = _PIXELS, colour: str = _COLOUR
) -> np.ndarray:
    """The surface of a map [z, y, x] at `level` as an RGBA picture [pixels, pixels, 4], 0 to 1, transparent where there is none.

    Seen from +z with x to the right and y upwards (row 0 is the bottom), so that the hand is right, after turning the map by `turn`
    degrees about the horizontal and the vertical axis. Parallel rays; light from the upper left, creases darkened.
    """
    return next(_shaded(density, level, [turn], pixels, colour))


def draw_surface(path: PathName, density: np.ndarray, level: float | None = None, title: str = "") -> None:
    """PNG of the map's surface from four sides. `level`: density of the surface, default Otsu's."""
    level = surface_level(density) if level is None else level
    figure, axes = _row(len(_VIEWS), title or f"surface at {level:.3g}")
    for axis, name, picture in zip(axes, _VIEWS, _shaded(density, level, _VIEWS.values()), strict=True):
        axis.imshow(picture, origin="lower", interpolation="antialiased")
        axis.set_title(name, fontsize=9)
    _save(figure, path)


def draw_slices(path: PathName, density: np.ndarray, pixel_size: float, mask: np.ndarray | None = None, title: str = "") -> None:
    """PNG of the three slices through the centre (with the outline of a mask, if given) above the three projections."""
    figure = Figure(figsize=(9, 6.3))
    axes = figure.subplots(2, 3, gridspec_kw=_MARGINS)
    centre, extent = density.shape[0] // 2, _extent(density.shape[0], pixel_size)
    low, high = np.percentile(density, [0.5, 99.9])
    for axis, (normal, across, up) in enumerate(_AXES):
        top, bottom = axes[0, axis], axes[1, axis]
        plane = np.take(density, centre, axis)
        top.imshow(plane, cmap="gray", origin="lower", extent=extent, vmin=low, vmax=high, interpolation="bicubic")
        if mask is not None and np.take(mask, centre, axis).max() > 0:
            top.contour(np.take(mask, centre, axis), [0.5], colors="#e8a33d", linewidths=1, origin="lower", extent=extent)
        bottom.imshow(density.sum(axis), cmap="gray", origin="lower", extent=extent, interpolation="bicubic")
        top.set_title(f"slice at {normal} = 0", fontsize=9)
        bottom.set_title(f"projection along {normal}", fontsize=9)
        for panel in (top, bottom):
            panel.set_xlabel(f"{across} (Å)", fontsize=8)
            panel.set_ylabel(f"{up} (Å)", fontsize=8)
            panel.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def draw_maps_in_a_row(path: PathName, maps: list[np.ndarray], names: list[str], title: str = "") -> None:
    """PNG of the central slices (above) and surfaces (below) of several maps, such as classes or iterations."""
    figure = Figure(figsize=(2.4 * len(maps) + 0.4, 5.2), layout="constrained")
    axes = figure.subplots(2, len(maps), squeeze=False)
    for (top, bottom), density, name in zip(axes.T, maps, names, strict=True):
        top.imshow(density[density.shape[0] // 2], cmap="gray", origin="lower", interpolation="bicubic")
        if density.max() > density.min():
            bottom.imshow(shaded_surface(density, surface_level(density), pixels=180), origin="lower")
        top.set_title(name, fontsize=9)
        for axis in (top, bottom):
            axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _row(count: int, title: str) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(2.6 * count, 3.0), layout="constrained")
    axes = figure.subplots(1, count)
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    return figure, axes


def _save(figure: Figure, path: PathName) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)


def _extent(size: int, pixel_size: float) -> tuple[float, float, float, float]:
    low, high = (-(size // 2) - 0.5) * pixel_size, (size - size // 2 - 0.5) * pixel_size
    return low, high, low, high


def _shaded(
    density: np.ndarray, level: float, turns: Iterable[tuple[float, float]], pixels: int = _PIXELS, colour: str = _COLOUR
) -> Iterator[np.ndarray]:
    """`shaded_surface` at each of the turns."""
    volume, rays, rotations = _fine(density), 2 * pixels, [_turn(*turn) for turn in turns]
    view = _View.of(volume, level, rays, max(64, volume.shape[-1] // 2), _reach(density, level))

    def seen(rotation: torch.Tensor, strips: list[Future[torch.Tensor]]) -> np.ndarray:
        depth = torch.cat([strip.result() for strip in strips])
        picture: np.ndarray = _lit(*_met(view, rotation, depth), colour).reshape(pixels, 2, pixels, 2, 4).mean(axis=(1, 3))
        picture[..., :3] /= np.maximum(picture[..., 3:], 0.25)
        return picture

    threads = torch.get_num_threads()
    strips = torch.arange(rays // _BLOCK).chunk(max(1, threads // len(rotations)))
    try:  # the steps are short: threads within them cost more than they do
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            met = [[pool.submit(_first_hit, view, rotation, strip) for strip in strips] for rotation in rotations]
            yield from pool.map(seen, rotations, met)
    finally:
        torch.set_num_threads(threads)


def _lit(depth: np.ndarray, normal: np.ndarray, colour: str) -> np.ndarray:
    """RGBA [rays, rays, 4] from `_met`; colours are those of points hit, and 0 beside them."""
    hit = np.isfinite(depth)
    light = _LIGHT / np.linalg.norm(_LIGHT)
    diffuse = np.clip(normal @ light, 0, 1)
    half = light + np.array([0.0, 0.0, 1.0])
    gloss = np.clip(normal @ (half / np.linalg.norm(half)), 0, 1) ** 30
    shade = (0.36 + 0.66 * diffuse) * _creases(depth, hit)[hit] * (1.08 - 0.38 * depth[hit])
    base = np.array(matplotlib.colors.to_rgb(colour))
    picture = np.zeros((*depth.shape, 4))
    picture[hit, :3] = np.clip(base * shade[:, None] + 0.16 * gloss[:, None], 0, 1)
    picture[hit, 3] = 1
    return picture


def _fine(density: np.ndarray) -> torch.Tensor:
    """The map with voxels small enough to look smooth, and no smaller than a picture shows, [1, 1, n, n, n]."""
    tensor = torch.as_tensor(np.ascontiguousarray(density), dtype=torch.float32)
    if len(tensor) < 144:
        tensor = fourier_pad(tensor, min(2 * len(tensor), 192), dims=3)
    elif len(tensor) > _FINEST:
        tensor = fourier_crop(tensor, _FINEST, dims=3)
    return tensor[None, None]


def _turn(about_x: float, about_y: float) -> torch.Tensor:
    """Rotation [3, 3] that takes viewing coordinates (x, y, z) to the map's."""
    a, b = np.deg2rad(about_x), np.deg2rad(about_y)
    first = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    second = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    return torch.as_tensor(second @ first, dtype=torch.float32)


def _reach(density: np.ndarray, level: float) -> float:
    """How far the surface reaches from the centre as a part of half the box, with a margin."""
    half = density.shape[0] / 2
    above = np.argwhere(density >= level) - density.shape[0] // 2
    return min(1.0, 1.06 * float(np.sqrt((above**2).sum(axis=1).max())) / half + 0.03) if len(above) else 1.0


@dataclass(frozen=True)
class _View:
    """A map [1, 1, n, n, n], the level of its surface, and the rays that meet it: across [rays], and their steps along [steps].

    1 is half the box. `near` [m, m, m]: whether blocks of `_COARSE` voxels have the level within a step and half a block of rays.
    """

    volume: torch.Tensor
    level: float
    side: torch.Tensor
    along: torch.Tensor
    near: torch.Tensor

    @classmethod
    def of(cls, volume: torch.Tensor, level: float, rays: int, steps: int, reach: float) -> _View:
        """Rays over −`reach` to `reach`."""
        side, along = torch.linspace(-reach, reach, rays), torch.linspace(reach, -reach, steps)  # from the viewer on
        voxels = (volume.shape[-1] - 1) / 2
        aside = _BLOCK * float(side[1] - side[0]) * voxels / math.sqrt(2)
        margin = math.ceil((math.hypot(aside, float(along[0] - along[1]) * voxels) + 1.5) / _COARSE)
        highest = torch.nn.functional.max_pool3d(volume[0], _COARSE, ceil_mode=True)
        highest = torch.nn.functional.max_pool3d(highest, 2 * margin + 1, stride=1, padding=margin)
        return cls(volume, level, side, along, highest[0] >= level)

    def blocks_near(self, rotation: torch.Tensor, strip: torch.Tensor) -> torch.Tensor:
        """Whether blocks of rays, of some rows of blocks, may meet the level at a step or the next one, [steps, rows, blocks]."""
        middles = self.side.reshape(-1, _BLOCK).mean(dim=1)
        z, y, x = torch.meshgrid(self.along, middles[strip], middles, indexing="ij")
        places = torch.stack([x, y, z], dim=-1) @ rotation.T
        voxel = ((places + 1) / 2 * (self.volume.shape[-1] - 1)).round().long()
        x, y, z = (voxel // _COARSE).clamp(0, len(self.near) - 1).unbind(-1)
        outside = (places.abs() > 1).any(-1)  # where maps are 0
        return self.near[z, y, x] | (outside & (self.level <= 0))


def _first_hit(view: _View, rotation: torch.Tensor, strip: torch.Tensor) -> torch.Tensor:
    """Where along each ray, of some rows of blocks, the surface is first met, [rows, rays]; NaN: nowhere.

    Rays that have met it are done; where nothing is near, none is followed.
    """
    along, side = view.along, view.side.reshape(-1, _BLOCK)[strip].flatten()
    y, x = (grid.flatten() for grid in torch.meshgrid(side, view.side, indexing="ij"))
    by_block = torch.arange(len(y)).view(len(strip), _BLOCK, -1, _BLOCK).transpose(1, 2).flatten(2)
    depth, before = torch.full((len(y),), float("nan")), torch.full((len(y),), -float("inf"))
    for z, near in zip(along, view.blocks_near(rotation, strip)):
        own = by_block[near].flatten()
        own = own[depth[own].isnan()]
        value = _sample(view.volume, torch.stack([x[own], y[own], z.expand(len(own))], dim=-1), rotation)
        crossed = value >= view.level
        # where between the two steps the level was met; a ray that starts inside meets it at its first step
        part = ((value - view.level) / (value - before[own]).clamp(min=1e-12)).nan_to_num(0.0, 0.0, 0.0)
        depth[own[crossed]] = (z - part * (along[1] - along[0]))[crossed]
        before[own] = value
    return depth.view(len(side), -1)


def _met(view: _View, rotation: torch.Tensor, depth: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Depth [rays, rays] from 0, near, to 1, far, and the outward normals [hits, 3] of rays that met the surface at `depth`."""
    y, x = torch.meshgrid(view.side, view.side, indexing="ij")
    hit, reach = ~depth.isnan(), float(view.along[0])
    return (1 - depth.numpy() / reach) / 2, _normals(view.volume, torch.stack([x[hit], y[hit], depth[hit]], dim=-1), rotation)


def _sample(volume: torch.Tensor, places: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Values at viewing coordinates [n, 3] in -1 to 1, 0 outside."""
    grid = (places @ rotation.T)[None, None, None]
    return torch.nn.functional.grid_sample(volume, grid, align_corners=True)[0, 0, 0, 0]


def _normals(volume: torch.Tensor, places: torch.Tensor, rotation: torch.Tensor) -> np.ndarray:
    """Unit vectors down the density's gradient, in viewing coordinates, from differences over two voxels each way."""
    reach = 4.0 / volume.shape[-1]
    slopes = []
    for axis in torch.eye(3):
        slopes.append(_sample(volume, places - reach * axis, rotation) - _sample(volume, places + reach * axis, rotation))
    normal = torch.stack(slopes, dim=-1)
    return torch.nn.functional.normalize(normal, dim=-1).numpy()


def _creases(depth: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Factor 0.45 to 1.1 that darkens what lies deeper than its surroundings, at three sizes."""
    filled = np.where(hit, depth, np.float32(1))
    factor = np.ones_like(filled)
    for sigma in (5.0, 12.0, 28.0):
        factor -= 2.0 * np.clip(filled - _smooth(filled, sigma), -0.02, 0.08)
    return np.clip(factor, 0.45, 1.1)


def _smooth(picture: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    blurred: np.ndarray = gaussian_filter(picture, sigma, mode="nearest")
    return blurred
