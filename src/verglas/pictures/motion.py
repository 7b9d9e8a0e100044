"""Pictures of motion: paths of the field and of its patches, and how far all movies moved."""

from __future__ import annotations

from os import PathLike

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

PathName = str | PathLike[str]

_EXAGGERATED = 60  # times that paths are drawn larger than the field
_SHOWN = 12


def draw_motion(
    path: PathName,
    names: list[str],
    shapes: list[tuple[int, int]],
    overall: list[np.ndarray],
    places: list[np.ndarray],
    local: list[np.ndarray],
    pixel_sizes: list[float],
) -> None:
    """PNG of up to 12 movies' motion: the drift of the whole field and, beneath, local motion over the field, 60 times enlarged.

    shapes: (y, x) px; overall: shifts [frames, 2], px; places: [n, 2] px; local: shifts [n, frames, 2], px; pixel sizes in Å.
    Drawn is where the specimen went (minus the shifts that undo it), first frame dark, last one light.
    """
    count = min(len(names), _SHOWN)
    columns = min(4, max(count, 1))
    rows = -(-count // columns)
    figure = Figure(figsize=(3.1 * columns, 5.4 * rows), layout="constrained")
    axes = np.atleast_2d(figure.subplots(2 * rows, columns, squeeze=False))
    for axis in axes.flat:
        axis.set_visible(False)
    for index in range(count):
        row, column = 2 * (index // columns), index % columns
        _plot_drift(axes[row, column], -overall[index] * pixel_sizes[index], names[index])
        _plot_local(axes[row + 1, column], shapes[index], places[index], -local[index], pixel_sizes[index])
    _save(figure, path)


def _plot_drift(axis: Axes, track: np.ndarray, name: str) -> None:
    axis.set_visible(True)
    axis.plot(track[:, 0], track[:, 1], "-", color="#999999", linewidth=0.8, zorder=1)
    axis.scatter(track[:, 0], track[:, 1], c=np.arange(len(track)), cmap="viridis", s=14, zorder=2)
    axis.set_title(name, fontsize=8)
    axis.set_aspect("equal", "datalim")
    axis.invert_yaxis()
    axis.tick_params(labelsize=7)
    axis.set_xlabel("drift x, Å", fontsize=7)
    axis.set_ylabel("drift y, Å", fontsize=7)


def _plot_local(axis: Axes, shape: tuple[int, int], places: np.ndarray, local: np.ndarray, pixel_size: float) -> None:
    axis.set_visible(True)
    axis.set_xlim(0, shape[1])
    axis.set_ylim(shape[0], 0)
    axis.set_aspect("equal")
    axis.tick_params(labelsize=7)
    colour = Normalize(0, max(1, local.shape[1] - 1)) if local.size else None
    for place, track in zip(places, local):
        drawn = place + _EXAGGERATED * track
        axis.plot(drawn[:, 0], drawn[:, 1], "-", color="#999999", linewidth=0.8, zorder=1)
        axis.scatter(drawn[:, 0], drawn[:, 1], c=np.arange(len(drawn)), cmap="viridis", norm=colour, s=4, zorder=2)
    if local.size and np.abs(local).max() > 0:
        length = np.linalg.norm(local[:, -1] - local[:, 0], axis=-1).max() * pixel_size
        axis.set_xlabel(f"local motion × {_EXAGGERATED}, up to {length:.1f} Å", fontsize=7)
    else:
        axis.set_xlabel("no local motion", fontsize=7)


def draw_motion_summary(path: PathName, total: np.ndarray, early: np.ndarray) -> None:
    """PNG of the accumulated motion of all movies [n], Å: in order, total and early."""
    figure = Figure(figsize=(6.6, 3.0), layout="constrained")
    axis = figure.subplots()
    number = np.arange(1, len(total) + 1)
    axis.plot(number, total, "o-", markersize=3, linewidth=0.7, color="#0072B2", label="total")
    axis.plot(number, early, "o-", markersize=3, linewidth=0.7, color="#D55E00", label="early")
    axis.set_xlabel("movie")
    axis.set_ylabel("accumulated motion, Å")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: PathName) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
