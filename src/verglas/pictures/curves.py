"""Curves against resolution: Fourier shell correlations and the Guinier plot."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PathName = str | PathLike[str]

# The four half-map curves and those against a model or the truth; safe for colour-blind eyes (Okabe & Ito).
_STYLE = {
    "corrected": ("#000000", "-", 2.0),
    "masked": ("#0072B2", "-", 1.2),
    "unmasked": ("#009E73", "-", 1.2),
    "phase-randomised": ("#D55E00", "-", 1.2),
    "against model": ("#CC79A7", "--", 1.6),
    "against truth": ("#CC79A7", "--", 1.6),
}


def draw_fsc(
    path: PathName, curves: Mapping[str, np.ndarray], size: int, pixel_size: float, resolution: float | None = None, title: str = ""
) -> None:
    """PNG of FSC curves by name, each [shells] from shell 0, for maps of `size` voxels of `pixel_size` Å.

    Lines at 0.143 and 0.5; `resolution` (Å) is marked where it is given.
    """
    figure = Figure(figsize=(6.6, 4.4), layout="constrained")
    axis = figure.subplots()
    plot_fsc(axis, curves, size, pixel_size, resolution)
    axis.set_title(title, fontsize=11)
    _save(figure, path)


def plot_fsc(axis: Axes, curves: Mapping[str, np.ndarray], size: int, pixel_size: float, resolution: float | None = None) -> None:
    """Draw FSC curves into `axis`; see `draw_fsc`."""
    lowest = 0.0
    for name, curve in curves.items():
        colour, line, width = _STYLE.get(name, (None, "-", 1.4))
        axis.plot(np.arange(1, len(curve)) / (size * pixel_size), curve[1:], line, color=colour, linewidth=width, label=name)
        lowest = min(lowest, float(np.min(curve[1:])))
    for level in (0.5, 0.143):
        axis.axhline(level, color="#999999", linewidth=0.8, linestyle=":")
        axis.text(0.003, level, f" {level:g}", transform=axis.get_yaxis_transform(), fontsize=7, color="#777777", va="bottom")
    if resolution is not None and np.isfinite(resolution):
        axis.axvline(1 / resolution, color="#555555", linewidth=0.9)
        side = "right" if 2 * pixel_size / resolution > 0.85 else "left"
        axis.annotate(f" {resolution:.2f} Å ", (1 / resolution, 0.55), fontsize=9, ha=side)
    axis.set_xlim(0, 0.5 / pixel_size)
    axis.set_ylim(max(-0.3, min(-0.06, lowest - 0.03)), 1.03)
    axis.set_ylabel("Fourier shell correlation")
    resolution_axis(axis, pixel_size)
    axis.legend(fontsize=8, frameon=False, loc="upper right")


def draw_guinier(
    path: PathName,
    squared: np.ndarray,
    curves: Mapping[str, np.ndarray],
    line: tuple[float, float, float, float] | None = None,
    title: str = "",
) -> None:
    """PNG of ln(amplitude) against 1/d² (Å⁻²), each curve [shells]; values of -99 (no power) are left out.

    `line`: slope, intercept and the two ends (Å) of the fit.
    """
    figure = Figure(figsize=(6.6, 4.4), layout="constrained")
    axis = figure.subplots()
    lowest = min(float(np.min(np.asarray(curve)[np.asarray(curve) > -30], initial=0.0)) for curve in list(curves.values())[:2])
    for name, curve in curves.items():
        shown = (np.asarray(curve) > -90) & (squared > 0)
        axis.plot(squared[shown], np.asarray(curve)[shown], marker=".", markersize=3, linewidth=1.2, label=name)
    if line is not None and line[2] > 0 and line[3] > 0:
        slope, intercept, *ends = line
        x = 1 / np.array(ends) ** 2
        axis.plot(x, intercept + slope * x, "k--", linewidth=1.2, label=f"fit, B = {4 * slope:.0f} Å²")
    axis.set_xlabel("1/d² (Å⁻²)")
    axis.set_ylabel("ln (mean amplitude)")
    axis.set_ylim(bottom=lowest - 1)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False)
    axis.set_title(title, fontsize=11)
    _save(figure, path)


def resolution_axis(axis: Axes, pixel_size: float) -> None:
    """Label a frequency axis (1/Å) with resolutions in Å, up to Nyquist."""
    nyquist = 2 * pixel_size
    wanted = [value for value in (50, 30, 20, 15, 12, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.7, 2.5, 2.2, 2, 1.8, 1.5) if value > nyquist]
    kept: list[float] = []
    for value in wanted:  # at least a fifteenth of the axis between two labels
        if not kept or 1 / value - 1 / kept[-1] > 1 / (15 * nyquist):
            kept.append(value)
    axis.set_xticks([1 / value for value in kept], [f"{value:g}" for value in kept])
    axis.set_xlabel("resolution (Å)")
    axis.grid(axis="x", alpha=0.25)


def _save(figure: Figure, path: PathName) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
