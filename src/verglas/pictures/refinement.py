"""How a refinement went: resolution and certainty over the iterations, and where the particles look from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#999999"


def draw_progress(path: str | PathLike[str], history: Sequence[Mapping[str, float]], title: str = "") -> None:
    """PNG of resolution (Å), mean largest probability and changes over the iterations; `history` has one row an iteration."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    number = [row["iteration"] for row in history]
    left.plot(number, [row["resolution"] for row in history], "o-", color=_BLUE, markersize=3, label="resolution")
    left.plot(number, [row["compared_to"] for row in history], "--", color=_GREY, linewidth=1, label="compared to")
    left.set_yscale("log")
    left.set_yticks([5, 10, 20, 40, 80], ["5", "10", "20", "40", "80"])
    left.minorticks_off()
    left.set(xlabel="iteration", ylabel="Å")
    left.legend(frameon=False, fontsize=8)
    right.plot(number, [row["max_probability"] for row in history], "o-", color=_ORANGE, markersize=3, label="largest probability")
    if "class_change" in history[0]:
        right.plot(number, [row["class_change"] for row in history], "-", color=_BLUE, linewidth=1, label="share that changed class")
    right.set(xlabel="iteration", ylim=(0, 1.02))
    right.legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    _save(figure, path)


def draw_directions(path: str | PathLike[str], rot: np.ndarray, tilt: np.ndarray, title: str = "view directions") -> None:
    """PNG of the density of view directions (degrees, [n] each) on an equal-area map of the sphere (Mollweide)."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.add_subplot(projection="mollweide")
    longitude = np.radians((np.asarray(rot) + 180.0) % 360.0 - 180.0)
    latitude = np.radians(90.0 - np.asarray(tilt))
    # bins of equal area: even in longitude and in the sine of the latitude
    edges = np.linspace(-np.pi, np.pi, 37), np.linspace(-1, 1, 19)
    counts, _, _ = np.histogram2d(longitude, np.sin(latitude), bins=edges)
    mesh = axis.pcolormesh(edges[0], np.arcsin(edges[1]), counts.T, cmap="viridis")
    axis.set_xticklabels([])
    axis.set_yticks(np.radians([-60, -30, 0, 30, 60]), ["150°", "120°", "90°", "60°", "30°"], fontsize=7)
    axis.set_title(f"{title}: {len(latitude)} particles", fontsize=10)
    figure.colorbar(mesh, ax=axis, shrink=0.7, label="particles")
    _save(figure, path)


def _save(figure: Figure, path: str | PathLike[str]) -> None:
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})
