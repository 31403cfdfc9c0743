"""Fused score against the number of tasks: a panel per method, a line per mode and space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tangora.report.figures import legend
from tangora.report.means import Mean
from tangora.report.summary import Key, Summary, mean_score, method_name
from tangora.report.theme import Layout, color, log_if_wide, marker, panels, series_role

__all__ = ["absent", "absolute", "kept", "no_mean"]


def absent(summary: Summary) -> str | None:
    """Return why there is nothing to draw: no fusion."""
    return None if summary.fused else "scores.csv has no fused rows on the test split"


def no_mean(summary: Summary) -> str | None:
    """Return why there is no mean score to draw: no fusion, or metrics without a common scale."""
    if summary.direction:
        return absent(summary)
    return "the tasks' metrics have no common scale, so that a mean of their scores says nothing"


def absolute(summary: Summary, layout: Layout) -> Figure:
    """Draw the mean test score over the fused tasks."""
    return _draw(summary, layout, "score")


def kept(summary: Summary, layout: Layout) -> Figure:
    """Draw the mean share of the same mode's experts."""
    return _draw(summary, layout, "kept")


def _draw(summary: Summary, layout: Layout, value: str) -> Figure:
    keys = summary.shown()
    methods = list(dict.fromkeys((k.method, k.oracle) for k in keys))
    columns = layout.columns if len(methods) != 6 or layout.narrow else 3
    figure, axes = panels(layout, len(methods), height=190 if layout.narrow else 270, columns=columns)
    sizes = [1, *summary.sizes]
    for axis, (method, oracle) in zip(axes, methods, strict=True):
        axis.set_title(method_name(method) + (" †" if oracle else ""))
        axis.grid(visible=False, axis="x")
        axis.set_xticks(_sparse(sizes))
        lines = [k for k in keys if (k.method, k.oracle) == (method, oracle)]
        for place, key in enumerate(lines):
            _line(axis, summary, key, value, shift=0.07 * (place - (len(lines) - 1) / 2))
        _baseline(axis, summary, value)
    if value == "score" and summary.direction < 0:
        ends = [mean_score(summary.zero_shot()), *(mean_score(summary.experts(key.mode)) for key in keys)]
        fused = [mean.score for key in keys for mean in summary.fused[key].values()]
        log_if_wide(axes[0], "y", [*fused, *(end for end in ends if end is not None)])
    figure.supxlabel("fused tasks", fontsize=layout.text, color=color("muted"))
    axes[0].set_ylabel("test score" if value == "score" else "share of own experts")
    for below in axes[columns::columns]:
        below.set_ylabel(axes[0].get_ylabel())
    legend.above(figure, layout, _legend(summary, keys, value))
    return figure


def _line(axis: Axes, summary: Summary, key: Key, value: str, *, shift: float) -> None:
    index = summary.run.modes.index(key.mode)
    paint = color(series_role(index))
    dots = [(m.n_tasks + shift, y) for m in summary.fused[key].values() if (y := _of(m, value)) is not None]
    if value == "score":
        experts = [mean_score(one.experts(key.mode)) for one in summary.at_seeds]
        dots += [(1, score) for score in experts if score is not None]
    dots += [(n + shift, y) for n, m in summary.by_size(key).items() for y in _with_seeds(m, value)]
    axis.plot([x for x, _ in dots], [y for _, y in dots], ".", color=paint, alpha=0.4, markersize=4.5)
    points = {n: _of(m, value) for n, m in summary.by_size(key).items()}
    expert = mean_score(summary.experts(key.mode))
    if expert is not None:
        points = {1: expert if value == "score" else 1.0, **points}
    defined = {n: v for n, v in points.items() if v is not None}
    xs = [n + (shift if n > 1 else 0) for n in defined]
    axis.plot(xs, list(defined.values()), legend.dashes(key.space), color=paint, marker=marker(index))
    spans = [(n + shift, *_interval(m, value)) for n, m in summary.by_size(key).items()]
    axis.vlines(*zip(*spans, strict=True), color=paint, linewidth=1.1)


def _of(mean: Mean, value: str) -> float | None:
    return mean.score if value == "score" else mean.kept


def _with_seeds(mean: Mean, value: str) -> Sequence[float]:
    return mean.seeds if value == "score" else mean.kept_seeds


def _interval(mean: Mean, value: str) -> tuple[float, float]:
    low, high = (mean.low, mean.high) if value == "score" else (mean.kept_low, mean.kept_high)
    return (math.nan, math.nan) if low is None or high is None else (low, high)


def _baseline(axis: Axes, summary: Summary, value: str) -> None:
    rows = summary.zero_shot()
    if not rows:
        return
    if value == "score":
        axis.axhline(fmean(r.score for r in rows.values()), color=color("fg"), linewidth=1.2, linestyle=":")
    else:
        axis.axhline(1.0, color=color("fg"), linewidth=1.2, linestyle=":")


def _legend(summary: Summary, keys: list[Key], value: str) -> list[object]:
    modes = summary.run.modes
    handles: list[object] = []
    for index, _, space in sorted({(modes.index(k.mode), legend.dashes(k.space) != "-", k.space) for k in keys}):
        handles.append(legend.mode_line(modes, modes[index], space))
    if summary.zero_shot():
        handles.append(legend.plain_line("zero-shot" if value == "score" else "nothing lost"))
    return handles


def _sparse(sizes: list[int]) -> list[int]:
    """Return at most eight ticks, with both ends."""
    step = -(-(len(sizes) - 1) // 7) if len(sizes) > 1 else 1
    return sorted({*sizes[::step], sizes[-1]})
