"""A micrograph with its picks as circles, beside the truth or an expert's marks where there are any."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

_PICKED, _TRUE = "#39ff6a", "#ff9f1c"
_WIDTH = 7.0  # inches
_COARSEST = 1200  # px along the longer side


def draw_picks(
    path: str | PathLike[str],
    micrograph: np.ndarray,
    pixel_size: float,
    picks: np.ndarray,
    diameter: float,
    *,
    truth: np.ndarray | None = None,
    low_pass: float = 20.0,
    title: str = "",
) -> None:
    """Write a PNG of `micrograph` [y, x], low-passed to `low_pass` Å, with circles of `diameter` Å around `picks` [n, 2] (x, y in px).

    `truth` [m, 2]: true positions or an expert's, as larger circles of another colour.
    """
    picture = _readable(micrograph, pixel_size, low_pass)
    height, width = micrograph.shape
    figure = Figure(figsize=(_WIDTH, _WIDTH * height / width + 0.35), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="antialiased")
    size = diameter / pixel_size
    if truth is not None:
        _circles(axes, truth, 1.25 * size, _TRUE)
    _circles(axes, picks, size, _PICKED)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axes.set_title(title or f"{len(picks)} picks", fontsize=9)
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})


def _readable(micrograph: np.ndarray, pixel_size: float, low_pass: float) -> np.ndarray:
    """The micrograph low-passed, coarse enough for a picture, and stretched to 0 … 1."""
    sigma = max(0.187 * low_pass / pixel_size, 0.5)  # half amplitude at the low-pass filter's resolution
    step = max(1, min(int(sigma), round(max(micrograph.shape) / _COARSEST)))
    smooth = gaussian_filter(np.asarray(micrograph, np.float32), sigma)[::step, ::step]
    low, high = np.quantile(smooth, [0.005, 0.995])
    return np.clip((smooth - low) / max(high - low, 1e-12), 0, 1)


def _circles(axes: Any, positions: np.ndarray, size: float, colour: str) -> None:
    positions = np.asarray(positions, np.float64).reshape(-1, 2)
    rings = EllipseCollection(
        size,
        size,
        0,
        units="xy",
        offsets=positions,
        transOffset=axes.transData,
        facecolors="none",
        edgecolors=colour,
        linewidths=0.8,
    )
    axes.add_collection(rings)


def draw_scores(path: str | PathLike[str], scores: np.ndarray, threshold: float, title: str = "") -> None:
    """Write a PNG with the histogram of all peaks' scores [n] and the threshold that parts noise from particles."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(scores, bins=80, color="#8fa7bf")
    if np.isfinite(threshold):
        axes.axvline(threshold, color="#d1495b", linewidth=1.2)
    axes.set(xlabel="score of the peak", ylabel="peaks")
    axes.set_title(title or f"{int((scores > threshold).sum())} of {len(scores)} peaks above {threshold:.3f}", fontsize=9)
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})
