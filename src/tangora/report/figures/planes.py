"""The plane of two task vectors, a panel per mode and pair: disentanglement error as cells, joint loss as contours.

Shades are one series colour with different opacities, so that they work on light and dark backgrounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from tangora.report.analyses import PlaneEntry
from tangora.report.figures import legend
from tangora.report.summary import Summary, mode_name
from tangora.report.theme import Layout, color, panels

__all__ = ["absent", "error", "loss"]

Grid = npt.NDArray[np.float64]
_STRONGEST = 0.85  # opacity of the highest shade
_BANDS = 8


def absent(summary: Summary) -> str | None:
    """Return why there is nothing to draw: no planes."""
    return None if summary.run.analyses.planes else "analysis/planes.json has no planes"


def error(summary: Summary, layout: Layout) -> Figure:
    """Draw the disentanglement error, with one scale for every panel."""
    planes = _ordered(summary)
    highest = max(np.max(plane.error) for plane in planes)
    edges = np.asarray(MaxNLocator(_BANDS, steps=[1, 2, 2.5, 5, 10]).tick_values(0.0, max(float(highest), 0.01)))
    figure = _draw(planes, layout, lambda axis, plane: _cells(axis, plane, edges), lambda p: f"ξ {p.mean_error:.2f}")
    shades = [
        Patch(facecolor=color("s0"), alpha=_opacity(i, len(edges)), label=f"{'' if i else 'ξ '}to {high:.3g}")
        for i, high in enumerate(edges[1:])
    ]
    legend.above(
        figure, layout, [*shades, Line2D([], [], color=color("fg"), linewidth=1.1, label="[0, 1]²"), *_marks()]
    )
    return figure


def loss(summary: Summary, layout: Layout) -> Figure:
    """Draw the joint loss, with contours of one pair at the same heights in every mode."""
    planes = _ordered(summary)
    levels = {pair: _levels([p for p in planes if p.tasks == pair]) for pair in {p.tasks for p in planes}}
    figure = _draw(planes, layout, lambda axis, p: _contours(axis, p, levels[p.tasks], layout), lambda _: "")
    lowest = Line2D([], [], color=color("s1"), marker="*", markersize=11, linestyle="", label="lowest on the grid")
    legend.above(figure, layout, [*_marks(), lowest])
    return figure


def _draw(
    planes: Sequence[PlaneEntry],
    layout: Layout,
    paint: Callable[[Axes, PlaneEntry], None],
    note: Callable[[PlaneEntry], str],
) -> Figure:
    columns = min(layout.columns, len({plane.mode for plane in planes}))  # modes side by side, a row per pair
    side = layout.width / max(columns, 2)
    figure, axes = panels(layout, len(planes), height=min(side + 20, 320), columns=columns)
    for axis, plane in zip(axes, planes, strict=True):
        axis.set_title(" · ".join(part for part in (mode_name(plane.mode), note(plane)) if part))
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        paint(axis, plane)
        axis.plot(0, 0, "o", color=color("fg"), markersize=6)
        axis.plot([1, 0], [0, 1], "s", color=color("fg"), markersize=6)
        axis.set_box_aspect(1)
        axis.set_xticks([0, 0.5, 1])
        axis.set_yticks([0, 0.5, 1])
        axis.tick_params(labelbottom=True, labelleft=True)
        axis.set_xlabel(f"λ {plane.tasks[0]}")
        axis.set_ylabel(f"λ {plane.tasks[1]}")
    figure.draw_without_rendering()  # square panels need a second round of layout
    return figure


def _cells(axis: Axes, plane: PlaneEntry, edges: Grid) -> None:
    """Draw a cell around every point of the grid, one path per shade; cells of exactly 0 stay empty."""
    values, places = np.asarray(plane.error), np.asarray(plane.coefficients)
    half = (places[1] - places[0]) / 2
    bands = np.clip(np.digitize(values, edges) - 1, 0, len(edges) - 2)
    for band in range(len(edges) - 1):
        corners = [(places[i], places[j]) for i, j in zip(*np.nonzero((bands == band) & (values > 0)), strict=True)]
        if corners:
            squares = [_square(x, y, half) for x, y in corners]
            shade = _opacity(band, len(edges))
            axis.add_patch(PathPatch(Path.make_compound_path(*squares), facecolor=color("s0"), alpha=shade))
    low, high = places[0] - half, places[-1] + half
    axis.add_patch(Rectangle((-half, -half), 1 + 2 * half, 1 + 2 * half, fill=False, edgecolor=color("fg"), lw=1.1))
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)


def _contours(axis: Axes, plane: PlaneEntry, levels: Grid, layout: Layout) -> None:
    values, places = np.asarray(plane.loss).T, np.asarray(plane.coefficients)
    for i, (low, high) in enumerate(itertools.pairwise(levels)):
        shade = _opacity(len(levels) - 2 - i, len(levels))  # the lower, the stronger
        axis.contourf(places, places, values, levels=[low, high], colors=[color("s0")], alpha=shade)
    lines = axis.contour(places, places, values, levels=levels[1:-1], colors=[color("muted")], linewidths=0.8)
    axis.clabel(
        lines,
        levels[2 : -1 : 4 if layout.narrow else 2],
        fmt="%.2f",
        fontsize=layout.text - 1,
        colors=[color("fg")],
        inline_spacing=3,
    )
    row, column = np.unravel_index(values.argmin(), values.shape)
    axis.plot(places[column], places[row], "*", color=color("s1"), markersize=11)


def _levels(planes: Sequence[PlaneEntry]) -> Grid:
    """Return heights of contours, denser towards the lowest loss, where the differences matter."""
    values = np.concatenate([np.ravel(plane.loss) for plane in planes])
    bottom, middle = float(values.min()), float(np.quantile(values, 0.75))
    heights = bottom + max(middle - bottom, 1e-6) * np.linspace(0.0, 1.0, _BANDS + 1) ** 1.5
    return np.unique([bottom, *heights[1:], max(float(values.max()), heights[-1] + 1e-6)])


def _opacity(band: int, edges: int) -> float:
    return _STRONGEST * (band + 0.6) / (edges - 1)


def _square(x: float, y: float, half: float) -> Path:
    corners = [
        (x - half, y - half),
        (x + half, y - half),
        (x + half, y + half),
        (x - half, y + half),
        (x - half, y - half),
    ]
    return Path(corners, closed=True)


def _marks() -> list[Line2D]:
    return [
        Line2D([], [], color=color("fg"), marker="o", markersize=6, linestyle="", label="φ₀"),
        Line2D([], [], color=color("fg"), marker="s", markersize=6, linestyle="", label="experts"),
    ]


def _ordered(summary: Summary) -> list[PlaneEntry]:
    """Return the planes by pair in the file's order, then by mode in the run's order."""
    planes, modes = summary.run.analyses.planes, summary.run.modes
    pairs = list(dict.fromkeys(plane.tasks for plane in planes))
    place = {mode: i for i, mode in enumerate([*modes, *(p.mode for p in planes if p.mode not in modes)])}
    return sorted(planes, key=lambda plane: (pairs.index(plane.tasks), place[plane.mode]))
