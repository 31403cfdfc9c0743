"""Experts and fusions, task by task: a panel per method, a pair of bars per mode."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tangora.evaluation.tables import Row
from tangora.report.figures import legend
from tangora.report.summary import Key, Summary, method_name
from tangora.report.theme import Layout, color, panels, series_role

__all__ = ["absent", "draw"]

_BAR = 7.0  # pixels
_GAP = 12.0


def absent(summary: Summary) -> str | None:
    """Return why there is nothing to draw: no fusion."""
    return None if summary.largest else "scores.csv has no fused rows on the test split"


def draw(summary: Summary, layout: Layout) -> Figure:
    """Draw horizontal bars, so that the names of many tasks stay legible on a phone."""
    subset = summary.largest or ""
    keys = [k for k in summary.shown() if subset in summary.fused[k]]
    methods = [k.method for k in keys]
    groups = sorted({(k.method, k.space, k.oracle) for k in keys}, key=lambda g: (methods.index(g[0]), *g[1:]))
    modes = [m for m in summary.run.modes if any(k.mode == m for k in keys)]
    tasks = [t for t in summary.run.tasks if t in subset.split("+")]
    height = len(tasks) * (2 * len(modes) * _BAR + _GAP)
    across = {4: 2}.get(len(groups), 3) if not layout.narrow else 2
    figure, axes = panels(layout, len(groups), height=height + 30, columns=across)
    for axis, group in zip(axes, groups, strict=True):
        title = method_name(group[0], group[1]) + (" †" if group[2] else "")
        axis.set_title(title.replace(" (", "\n(") if layout.narrow else title)
        axis.grid(visible=False, axis="y")
        chosen = [k for k in keys if (k.method, k.space, k.oracle) == group]
        for key in chosen:
            _pairs(axis, summary, key, tasks, place=modes.index(key.mode), modes=len(modes))
        _zero_shot(axis, summary.zero_shot(tasks), tasks)
    axes[0].set_yticks(range(len(tasks)), [_short(t, layout) for t in tasks])
    axes[0].set_ylim(len(tasks) - 0.5, -0.5)
    axes[0].set_xlim(min(0.0, *axes[0].get_xlim()), None)
    figure.supxlabel("test score", fontsize=layout.text, color=color("muted"))
    samples = [legend.mode_bar(summary.run.modes, m, pale=p) for m in modes for p in (True, False)]
    legend.above(figure, layout, [*samples, legend.plain_line("zero-shot", "-")])
    return figure


def _pairs(axis: Axes, summary: Summary, key: Key, tasks: list[str], *, place: int, modes: int) -> None:
    thick = _BAR / (2 * modes * _BAR + _GAP)
    top = (2 * place - modes + 0.5) * thick
    paint = color(series_role(summary.run.modes.index(key.mode)))
    experts, fused = summary.experts(key.mode, tasks), summary.fused_scores(key, summary.largest or "")
    for rows, offset, alpha in ((experts, top, legend.PALE), (fused, top + thick, 1.0)):
        present = [t for t in tasks if t in rows]
        places = [tasks.index(t) + offset for t in present]
        axis.barh(places, [rows[t].score for t in present], height=thick * 0.94, color=paint, alpha=alpha)
        _whiskers(axis, places, [rows[t] for t in present])


def _whiskers(axis: Axes, places: list[float], rows: list[Row]) -> None:
    spans = [(r.ci_low or math.nan, r.ci_high or math.nan) for r in rows]
    axis.hlines(places, [low for low, _ in spans], [high for _, high in spans], color=color("fg"), linewidth=0.9)


def _zero_shot(axis: Axes, rows: dict[str, Row], tasks: list[str]) -> None:
    places = [tasks.index(t) for t in rows]
    ends = [p - 0.42 for p in places], [p + 0.42 for p in places]
    axis.vlines([r.score for r in rows.values()], *ends, color=color("fg"), linewidth=1.4)


def _short(name: str, layout: Layout) -> str:
    most = 12 if layout.narrow else 22
    return name if len(name) <= most else name[: most - 1] + "…"
