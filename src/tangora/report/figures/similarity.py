"""Heat maps of the cosines between task vectors, a panel per mode."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tangora.report.data import Similarity
from tangora.report.summary import Summary, mode_name
from tangora.report.theme import Layout, color, panels

__all__ = ["absent", "draw"]

_STRONGEST = 0.5  # opacity of the largest value: its number stays legible on it in both themes


def absent(summary: Summary) -> str | None:
    """Nothing to draw without cosines."""
    if not summary.run.similarity:
        return summary.run.missing.get("similarity.json", "similarity.json is empty")
    return None


def draw(summary: Summary, layout: Layout) -> Figure:
    """Cells are the series colours at an opacity, so that they sit on a light and a dark ground."""
    found = summary.run.similarity
    modes = sorted(found, key=lambda m: (summary.run.modes.index(m) if m in summary.run.modes else 99, m))
    size = max(len(found[m].tasks) for m in modes)
    columns = 1 if layout.narrow else min(3, len(modes))
    cell = min(44.0, (layout.width - 110) / columns / size)
    figure, axes = panels(layout, len(modes), height=cell * size + 32, columns=columns)
    longest = max(len(t) for m in modes for t in found[m].tasks)
    width, height = figure.get_size_inches()
    slanted = 0.42 * layout.text * longest  # the names below the lowest row, at 45 degrees
    figure.set_size_inches(width, height + (slanted - 20) / 72)
    largest = max((abs(x) for m in modes for x in _off_diagonal(found[m])), default=1.0) or 1.0
    for axis, mode in zip(axes, modes, strict=True):
        axis.set_title(mode_name(mode))
        _cells(axis, found[mode], largest, layout.text - (1 if cell > 30 else 2))
    figure.draw_without_rendering()  # square panels settle only in the second round of the layout
    return figure


def _cells(axis: Axes, similarity: Similarity, largest: float, text: float) -> None:
    size = len(similarity.tasks)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    for i, row in enumerate(similarity.cosine):
        for j, value in enumerate(row):
            if i == j:
                continue
            paint = color("s0" if value >= 0 else "s1")
            strength = 0.0 if math.isnan(value) else min(1.0, abs(value) / largest) * _STRONGEST
            axis.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, facecolor=paint, alpha=strength))
            axis.text(j, i, _number(value), ha="center", va="center_baseline", fontsize=text)
    axis.set_box_aspect(1)
    axis.set_xlim(-0.5, size - 0.5)
    axis.set_ylim(size - 0.5, -0.5)
    axis.set_xticks(range(size), similarity.tasks, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(size), similarity.tasks)


def _off_diagonal(similarity: Similarity) -> list[float]:
    rows = enumerate(similarity.cosine)
    return [x for i, row in rows for j, x in enumerate(row) if i != j and not math.isnan(x)]


def _number(value: float) -> str:
    """Two decimals without the zero before the point, which would not fit."""
    return "–" if math.isnan(value) else f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")
