"""Legends: one per figure, above the panels, never over data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tangora.report.summary import mode_name
from tangora.report.theme import Layout, color, marker, series_role

__all__ = ["PALE", "above", "dashes", "mode_bar", "mode_line", "plain_line"]

PALE = 0.38  # opacity of an expert's bar
_ROW = 1.5  # height of a row, in text sizes


def dashes(space: str) -> str:
    """Return the line style of a space; spaces from other packages are dotted."""
    return {"delta": "-", "": "-", "factors": "--", "core": "-."}.get(space, ":")


def mode_line(modes: Sequence[str], mode: str, space: str = "delta") -> Line2D:
    """Return the legend entry of a mode's line in a space."""
    index = modes.index(mode)
    shape: dict[str, Any] = {"linestyle": dashes(space), "marker": marker(index)}
    label = mode_name(mode) + (f" ({space})" if dashes(space) != "-" else "")
    return Line2D([], [], color=color(series_role(index)), label=label, **shape)


def mode_bar(modes: Sequence[str], mode: str, *, pale: bool = False) -> Patch:
    """Return the legend entry of a mode's bar."""
    label = f"{mode_name(mode)} {'expert' if pale else 'fused'}"
    return Patch(facecolor=color(series_role(modes.index(mode))), alpha=PALE if pale else 1.0, label=label)


def plain_line(label: str, linestyle: Literal["-", ":"] = ":") -> Line2D:
    """Return the legend entry of a line without a mode."""
    return Line2D([], [], color=color("fg"), linewidth=1.2, linestyle=linestyle, label=label)


def above(figure: Figure, layout: Layout, handles: Sequence[Any]) -> None:
    """Put a legend over the panels, in as many columns as fit; more rows make the figure higher."""
    columns = _columns(layout, [len(h.get_label()) for h in handles])
    rows = -(-len(handles) // columns)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + (rows - 1) * _ROW * layout.text / 72)
    # matplotlib fills columns first; readers read rows first
    order = [row * columns + column for column in range(columns) for row in range(rows)]
    figure.legend(
        handles=[handles[i] for i in order if i < len(handles)],
        loc="outside upper left",
        ncols=columns,
        borderpad=0.1,
        borderaxespad=0.2,
        columnspacing=1.6,
        handlelength=2.2,
    )


def _columns(layout: Layout, lengths: Sequence[int]) -> int:
    """Return the largest number of columns that fit side by side."""
    for columns in range(len(lengths), 1, -1):
        widths = [max(lengths[c::columns]) * 0.6 + 4.6 for c in range(columns)]
        if sum(widths) * layout.text <= layout.width:
            return columns
    return 1
