"""The gap between networks and their expansions along the paths to their experts."""

from __future__ import annotations

import math
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tangora.report.analyses import PathEntry
from tangora.report.figures import legend
from tangora.report.summary import Summary
from tangora.report.theme import Layout, color, marker, panels, series_role

__all__ = ["absent", "draw"]


def absent(summary: Summary) -> str | None:
    """Return why there is nothing to draw: no paths."""
    return None if summary.run.analyses.paths else "analysis/linearity.json has no paths"


def draw(summary: Summary, layout: Layout) -> Figure:
    """Draw distance and agreement, a line per mode: the mean over its experts, which are drawn faintly."""
    paths = summary.run.analyses.paths
    modes = list(dict.fromkeys([*summary.run.modes, *(p.mode for p in paths)]))
    figure, axes = panels(layout, 2, height=260, columns=1 if layout.narrow else 2, share_y=False)
    for axis, (title, name) in zip(axes, (("distance", "distance"), ("same prediction", "agreement")), strict=True):
        axis.set_title(title)
        for index, mode in enumerate(modes):
            _lines(axis, [p for p in paths if p.mode == mode], name, index)
        axis.set_ylim(bottom=0)
    axes[1].set_ylim(top=1.03)
    axes[0].set_ylabel("of the network's own movement")
    axes[1].set_ylabel("share of rows")
    figure.supxlabel("a, along φ₀ + a·τ", fontsize=layout.text, color=color("muted"))
    present = {p.mode for p in paths}
    legend.above(figure, layout, [legend.mode_line(modes, mode) for mode in modes if mode in present])
    return figure


def _lines(axis: Axes, paths: list[PathEntry], name: str, index: int) -> None:
    paint = color(series_role(index))
    by_position: dict[float, list[float]] = {}
    for one in paths:
        values: list[float] = getattr(one, name)
        finite = [(a, v) for a, v in zip(one.path, values, strict=True) if math.isfinite(v)]
        axis.plot([a for a, _ in finite], [v for _, v in finite], color=paint, alpha=0.25, linewidth=1.0)
        for a, value in finite:
            by_position.setdefault(a, []).append(value)
    means = {a: fmean(values) for a, values in sorted(by_position.items())}
    axis.plot(list(means), list(means.values()), color=paint, marker=marker(index))
