"""Pictures of CTF fits: rings observed beside rings fitted, profiles, and the defocus of all micrographs."""

from __future__ import annotations

from os import PathLike

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

PathName = str | PathLike[str]

_SHOWN = 12


def save_rings(path: PathName, rings: np.ndarray) -> None:
    """PNG of one micrograph's rings [box, box], values 0 to 1, row 0 at the top."""
    Image.fromarray((np.clip(rings, 0, 1) * 255).astype(np.uint8)).save(path)


def centre_part(rings: np.ndarray, share: float) -> np.ndarray:
    """The middle `share` (0 to 1) of a picture [box, box], where the rings are."""
    box = len(rings)
    half = min(box // 2, max(16, round(share * box / 2)))
    return rings[box // 2 - half : box // 2 + half, box // 2 - half : box // 2 + half]


def draw_ctf_fits(path: PathName, names: list[str], rings: list[np.ndarray], profiles: list[np.ndarray], captions: list[str]) -> None:
    """PNG of up to 12 fits: the rings (left half observed, right half fitted) and, beneath, the profile.

    profiles: [4, n] each: frequency (1/Å), observed, model, local correlation.
    """
    count = min(len(names), _SHOWN)
    columns = min(4, max(count, 1))
    rows = -(-count // columns)
    figure = Figure(figsize=(3.3 * columns, 5.2 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 2] * rows)
    for axis in axes.flat:
        axis.set_visible(False)
    for index in range(count):
        row, column = 2 * (index // columns), index % columns
        picture, curve = axes[row, column], axes[row + 1, column]
        picture.set_visible(True)
        picture.imshow(rings[index], cmap="gray", vmin=0, vmax=1)
        picture.set_axis_off()
        picture.set_title(f"{names[index]}\n{captions[index]}", fontsize=7)
        curve.set_visible(True)
        frequency, observed, model, correlation = profiles[index]
        scale = np.percentile(np.abs(observed - observed.mean()), 90) if len(observed) else 1.0
        curve.plot(
            frequency,
            np.clip(0.5 + (observed - observed.mean()) / (4 * max(scale, 1e-9)), -0.3, 1.3),
            color="#0072B2",
            linewidth=0.7,
            label="observed",
        )
        curve.plot(frequency, model, color="#D55E00", linewidth=0.7, label="fitted")
        curve.plot(frequency, correlation, color="#009E73", linewidth=1.0, label="correlation")
        curve.axhline(0.5, color="#999999", linewidth=0.6, linestyle=":")
        curve.set_ylim(-0.4, 1.35)
        curve.tick_params(labelsize=6)
        curve.set_xlabel("1/Å", fontsize=6)
    if count:
        axes[1, 0].legend(fontsize=5, frameon=False, loc="upper right", ncols=3)
    _save(figure, path)


def draw_ctf_summary(path: PathName, defocus: np.ndarray, astigmatism: np.ndarray, resolution: np.ndarray) -> None:
    """PNG of mean defocus, astigmatism and fit resolution of all micrographs [n], Å."""
    figure = Figure(figsize=(9.0, 2.8), layout="constrained")
    shown = ((defocus / 1e4, "defocus, µm"), (astigmatism, "astigmatism, Å"), (resolution, "fit seen to, Å"))
    for axis, (values, label) in zip(figure.subplots(1, 3), shown):
        axis.hist(values, bins=min(30, max(5, len(values) // 3)), color="#0072B2")
        axis.set_xlabel(label)
        axis.set_ylabel("micrographs")
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def _save(figure: Figure, path: PathName) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=100)
