"""Curves of the polish: a panel per mode, a line per polished fusion of the largest subset."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tangora.report.data import PolishRow
from tangora.report.figures import legend
from tangora.report.summary import Summary, method_name, mode_name
from tangora.report.theme import Layout, color, marker, panels, series_role

__all__ = ["absent", "draw"]


def absent(summary: Summary) -> str | None:
    """Return why there is nothing to draw: no fusion was polished."""
    return None if summary.polishes else "no fusion was polished"


def draw(summary: Summary, layout: Layout) -> Figure:
    """Draw the divergence from the experts by step: held out, and as trained on."""
    rows = summary.polishes
    modes = [mode for mode in summary.run.modes if any(row.mode == mode for row in rows)]
    methods = list(dict.fromkeys((row.method, row.space) for row in rows))
    figure, axes = panels(layout, len(modes), height=170 if layout.narrow else 210)
    for axis, mode in zip(axes, modes, strict=True):
        axis.set_title(mode_name(mode))
        for row in rows:
            if row.mode == mode:
                _curve(axis, row, methods.index((row.method, row.space)))
        axis.set_ylim(bottom=0)
    figure.supxlabel("optimizer step", fontsize=layout.text, color=color("muted"))
    figure.supylabel("divergence, nats", fontsize=layout.text, color=color("muted"))
    legend.above(figure, layout, [_line(i, *method) for i, method in enumerate(methods)])
    return figure


def _curve(axis: Axes, row: PolishRow, index: int) -> None:
    """Draw the mean over tasks on the held-out rows, from the start to the last step; and the step that was kept."""
    paint, count = color(series_role(index)), len(row.before)
    start, end = sum(row.before.values()) / count, sum(row.after.values()) / count
    points = [(0.0, start), *((v["step"], v["loss"]) for v in row.curves.validation if "loss" in v)]
    points = points if len(points) > 1 else [*points, (row.step, end)]
    axis.plot([step for step, _ in points], [loss for _, loss in points], marker(index), linestyle="-", color=paint)
    axis.axhline(end, color=paint, linewidth=0.8, linestyle=":")
    for other in row.others:  # the mean of curves that ended at other steps would jump
        more = [(v["step"], v["loss"]) for v in other.validation if "loss" in v]
        axis.plot([step for step, _ in more], [loss for _, loss in more], color=paint, alpha=0.4, linewidth=0.8)


def _line(index: int, method: str, space: str) -> Line2D:
    paint = color(series_role(index))
    return Line2D([], [], color=paint, marker=marker(index), label=method_name(method, space))
