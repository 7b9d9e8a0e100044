"""Many small images in rows: particles, class averages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_TILE = 1.25  # inches
_CAPTION = 0.22
_MOST = 120


def save_gallery(
    path: str | PathLike[str], images: np.ndarray, captions: Sequence[str] | None = None, title: str = "", columns: int = 0
) -> None:
    """Write a PNG of `images` [n, y, x] in the order given, each stretched by itself, with `captions` [n] under them.

    At most 120 are shown; the title says so then. `columns` 0: about half as many again as rows.
    """
    shown = min(len(images), _MOST)
    columns = columns or max(1, min(shown, math.ceil(math.sqrt(1.5 * shown))))
    rows = max(1, math.ceil(shown / columns))
    tile = _TILE + (_CAPTION if captions else 0)
    figure = Figure(figsize=(columns * (_TILE + 0.06), rows * (tile + 0.06) + 0.35))
    hspace = 0.04 + (_CAPTION / _TILE if captions else 0)
    bottom = 0.005 + (_CAPTION / (rows * tile) if captions else 0)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=bottom, top=1 - 0.35 / (rows * tile + 0.35), wspace=0.04, hspace=hspace)
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if place < shown:
            low, high = _stretch(images[place])
            axes.imshow(images[place], cmap="gray", vmin=low, vmax=high, interpolation="antialiased")
            if captions:
                axes.text(0.5, -0.03, captions[place], transform=axes.transAxes, ha="center", va="top", fontsize=5.5)
    if shown < len(images):
        title = f"{title}  ({shown} of {len(images)} shown)".strip()
    figure.suptitle(title, fontsize=9, y=0.995, va="top")
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})


def save_classes(
    path: str | PathLike[str], averages: np.ndarray, occupancy: np.ndarray, resolution: np.ndarray | None = None, title: str = ""
) -> None:
    """Write a PNG of class averages [k, y, x], the fullest first, with number (from 1), share and, if given, resolution (Å)."""
    order = np.argsort(-np.asarray(occupancy), kind="stable")
    captions = []
    for k in order:
        known = resolution is not None and np.isfinite(resolution[k])
        captions.append(f"{k + 1}: {100 * occupancy[k]:.1f} %" + (f", {resolution[k]:.1f} Å" if known and resolution is not None else ""))
    save_gallery(path, np.asarray(averages)[order], captions, title)


def _stretch(image: np.ndarray) -> tuple[float, float]:
    """Grey range of an image, from its 0.05th to its 99.95th percentile (± 3.3 deviations of noise); constant images come out grey."""
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, [0.05, 99.95]) if len(finite) else (0.0, 0.0)
    return (float(low), float(high)) if high > low else (float(low) - 1, float(high) + 1)
