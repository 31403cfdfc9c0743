"""Experts and fusions, task by task: a panel per method, a pair of bars per mode."""

from __future__ import annotations

import math
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tangora.evaluation.tables import Row
from tangora.report.figures import legend
from tangora.report.summary import Key, Summary, method_name
from tangora.report.theme import Layout, color, log_if_wide, panels, series_role
from tangora.tasks.metrics import direction

__all__ = ["absent", "draw"]

_BAR = 7.0  # pixels
_GAP = 12.0
Span = tuple[float, float, float]  # a value and its interval


def absent(summary: Summary) -> str | None:
    """Return why there is nothing to draw: no fusion."""
    return None if summary.largest else "scores.csv has no fused rows on the test split"


def draw(summary: Summary, layout: Layout) -> Figure:
    """Draw horizontal bars, so that the names of many tasks stay legible on a phone.

    If scores have no common scale, their shares of the best expert's score are drawn, which have one.
    """
    span, label = (_score, "test score") if summary.direction else (_share, "share of the best expert's score")
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
            _pairs(axis, summary, key, tasks, span, place=modes.index(key.mode), modes=len(modes))
        _zero_shot(axis, summary.zero_shot(tasks), tasks, span)
    axes[0].set_yticks(range(len(tasks)), [_short(t, layout) for t in tasks])
    axes[0].set_ylim(len(tasks) - 0.5, -0.5)
    lengths = [bar.get_width() for axis in axes for bar in axis.patches if isinstance(bar, Rectangle)]
    if summary.direction < 0 and log_if_wide(axes[0], "x", lengths):
        axes[0].set_xlim(min(lengths) / 2, None)  # the shortest bar would have no length
    else:
        axes[0].set_xlim(min(0.0, *axes[0].get_xlim()), None)
    figure.supxlabel(label, fontsize=layout.text, color=color("muted"))
    samples = [legend.mode_bar(summary.run.modes, m, pale=p) for m in modes for p in (True, False)]
    legend.above(figure, layout, [*samples, legend.plain_line("zero-shot", "-")])
    return figure


def _score(row: Row) -> Span:
    return row.score, _or_nan(row.ci_low), _or_nan(row.ci_high)


def _share(row: Row) -> Span:
    """Return the share of the best expert's score, with this expert held fixed in the interval."""
    share, (score, low, high) = _or_nan(row.normalized_best), _score(row)
    if direction([row.metric]) < 0:
        return share, _ratio(share * score, high), _ratio(share * score, low)
    return share, _ratio(share * low, score), _ratio(share * high, score)


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _pairs(
    axis: Axes,
    summary: Summary,
    key: Key,
    tasks: list[str],
    span: Callable[[Row], Span],
    *,
    place: int,
    modes: int,
) -> None:
    thick = _BAR / (2 * modes * _BAR + _GAP)
    top = (2 * place - modes + 0.5) * thick
    paint = color(series_role(summary.run.modes.index(key.mode)))
    experts, fused = summary.experts(key.mode, tasks), summary.fused_scores(key, summary.largest or "")
    for rows, offset, alpha in ((experts, top, legend.PALE), (fused, top + thick, 1.0)):
        present = [t for t in tasks if t in rows]
        places = [tasks.index(t) + offset for t in present]
        values, lows, highs = zip(*(span(rows[t]) for t in present), strict=True) if present else ((), (), ())
        axis.barh(places, values, height=thick * 0.94, color=paint, alpha=alpha)
        axis.hlines(places, lows, highs, color=color("fg"), linewidth=0.9)
        for of_seed in summary.at_seeds:
            own = (
                of_seed.experts(key.mode, tasks)
                if rows is experts
                else of_seed.fused_scores(key, summary.largest or "")
            )
            dots = [(span(own[t])[0], place) for t, place in zip(present, places, strict=True) if t in own]
            axis.plot([x for x, _ in dots], [y for _, y in dots], ".", color=color("fg"), alpha=0.55, markersize=2.5)


def _zero_shot(axis: Axes, rows: dict[str, Row], tasks: list[str], span: Callable[[Row], Span]) -> None:
    places = [tasks.index(t) for t in rows]
    ends = [p - 0.42 for p in places], [p + 0.42 for p in places]
    axis.vlines([span(r)[0] for r in rows.values()], *ends, color=color("fg"), linewidth=1.4)


def _short(name: str, layout: Layout) -> str:
    most = 12 if layout.narrow else 22
    return name if len(name) <= most else name[: most - 1] + "…"
