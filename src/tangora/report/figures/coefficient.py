"""λ curves: validation score of every candidate with one coefficient for all tasks.

If the tasks' metrics have no common scale, a curve is of the share of the own experts' scores (`kept`), by which a run
chooses coefficients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tangora.evaluation.shares import finite, higher, kept
from tangora.report.data import CandidateRow
from tangora.report.figures import legend
from tangora.report.summary import Summary, method_name
from tangora.report.theme import Layout, color, log_if_wide, marker, panels, series_role
from tangora.support.json_text import parse_json

__all__ = ["absent", "chosen", "curves", "draw"]

Curve = tuple[str, str, str, str]  # mode, method, space, parameters


def absent(summary: Summary) -> str | None:
    """Return why there is nothing to draw: no grid."""
    if "candidates.csv" in summary.run.missing:
        return summary.run.missing["candidates.csv"]
    return None if curves(summary) else "no method was tried with more than one λ on the validation split"


def curves(summary: Summary) -> dict[Curve, dict[float, float]]:
    """Return curve -> λ -> mean validation score (or share) over the largest subset, for curves of two λ or more."""
    if summary.at_seeds:
        return _mean_curves([curves(one) for one in summary.at_seeds])
    inside = set((summary.largest or "").split("+"))
    scores: dict[Curve, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for c in summary.run.candidates:
        if c.split != "validation" or c.subset != summary.largest or c.task not in inside:
            continue
        weight, value = _scalar(c.weights), _value(summary, c)
        if weight is not None and value is not None:
            scores[c.mode, c.method, c.space, c.parameters][weight].append(value)
    most = max((len(ys) for points in scores.values() for ys in points.values()), default=0)
    means = {
        curve: {x: fmean(ys) for x, ys in sorted(points.items()) if len(ys) == most} for curve, points in scores.items()
    }
    return {curve: points for curve, points in means.items() if len(points) > 1}


def _mean_curves(by_seed: Sequence[Mapping[Curve, Mapping[float, float]]]) -> dict[Curve, dict[float, float]]:
    """Return the means over seeds, at the λ that were tried with every seed."""
    means = {
        curve: {x: fmean(of[curve][x] for of in by_seed) for x in points if all(x in of[curve] for of in by_seed)}
        for curve, points in by_seed[0].items()
        if all(curve in of for of in by_seed)
    }
    return {curve: points for curve, points in means.items() if len(points) > 1}


def chosen(summary: Summary) -> dict[Curve, float]:
    """Return curve -> the λ that the run chose for the largest subset.

    It is not always at the largest score: of equal ones the run takes that of the least loss, and it compares the mean
    shares of the own experts.
    """
    found: dict[Curve, float] = {}
    written = {(c.mode, c.method, c.space, c.parameters) for c in summary.run.candidates if c.split == "validation"}
    for row in summary.rows:
        if row.subset != summary.largest or row.selection != "validation":
            continue
        values = _settings(row.coefficients)
        weight = _scalar(values.pop("weights", None))
        given = values.pop("parameters", values)
        for curve in written:
            if curve[:3] == (row.mode, row.method, row.space) and _settings(curve[3]) == given and weight is not None:
                found[curve] = weight
    return found


def _settings(text: str) -> dict[str, Any]:
    """Return what a cell of a table holds in JSON; nothing if it holds something else."""
    try:
        values = parse_json(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _value(summary: Summary, candidate: CandidateRow) -> float | None:
    """Return a candidate's score, or its finite share of the expert's if scores have no common scale."""
    if summary.direction:
        return candidate.score
    expert = summary.validated.get((candidate.mode, candidate.task))
    if expert is None:
        return None
    zero = summary.zero_validated.get(candidate.task)
    return finite(kept(candidate.score, expert.score, zero, higher_is_better=higher(expert.metric)))


def draw(summary: Summary, layout: Layout) -> Figure:
    """Draw a panel per method, with a line per mode and space."""
    each = summary.at_seeds or [summary]
    lines, faint = curves(summary), [curves(one) for one in each if one is not summary]
    marked = [chosen(one) for one in each]
    modes, sense = summary.run.modes, summary.direction or 1  # of shares more is better
    methods = list(dict.fromkeys(method for _, method, _, _ in lines))
    columns = min(layout.columns, 3)
    figure, axes = panels(layout, len(methods), height=200 if layout.narrow else 280, columns=columns)
    for axis, method in zip(axes, methods, strict=True):
        axis.set_title(method_name(method))
        own = {curve: points for curve, points in lines.items() if curve[1] == method}
        _panel(axis, own, faint, modes, sense, marked)
    figure.supxlabel("coefficient λ", fontsize=layout.text, color=color("muted"))
    axes[0].set_ylabel("validation score" if summary.direction else "share of own experts")
    if summary.direction < 0:
        log_if_wide(axes[0], "y", [y for points in lines.values() for y in points.values()])
    shown = sorted({(modes.index(mode), legend.dashes(space) != "-", space) for mode, _, space, _ in lines})
    legend.above(figure, layout, [legend.mode_line(modes, modes[i], space) for i, _, space in shown])
    return figure


def _panel(
    axis: Axes,
    lines: Mapping[Curve, Mapping[float, float]],
    of_seeds: Sequence[Mapping[Curve, Mapping[float, float]]],
    modes: list[str],
    sense: int,
    marked: Sequence[Mapping[Curve, float]],
) -> None:
    groups: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for curve in lines:
        groups[curve[0], curve[2]].append(curve)
    for (mode, space), candidates in groups.items():
        index = modes.index(mode)
        paint, dashes = color(series_role(index)), legend.dashes(space)
        places = [_best({curve: lines[curve] for curve in candidates}, of_seed, sense) for of_seed in marked]
        best = max(candidates, key=lambda curve: sum(curve == place for place, _ in places))
        for points in (of_seed[best] for of_seed in of_seeds if best in of_seed):
            axis.plot(list(points), list(points.values()), dashes, color=paint, alpha=0.3, linewidth=0.8)
        for curve in candidates:
            faint: dict[str, Any] = {} if curve == best else {"alpha": 0.3, "linewidth": 1.0}
            axis.plot(list(lines[curve]), list(lines[curve].values()), dashes, color=paint, **faint)
        for curve, top in dict.fromkeys(places):
            axis.plot(top, lines[curve][top], marker(index), color=paint, markersize=9)


def _best(
    lines: Mapping[Curve, Mapping[float, float]], marked: Mapping[Curve, float], sense: int
) -> tuple[Curve, float]:
    """Return the curve and the λ that were chosen; those of the best score if a run has not recorded its choice."""
    for curve, points in lines.items():
        if marked.get(curve) in points:
            return curve, marked[curve]
    best = max(lines, key=lambda curve: max(sense * y for y in lines[curve].values()))
    return best, max(lines[best], key=lambda x: sense * lines[best][x])


def _scalar(weights: object) -> float | None:
    """Return the one λ for all tasks, from a number or equal entries."""
    if isinstance(weights, list) and weights and all(w == weights[0] for w in weights):
        weights = weights[0]
    return float(weights) if isinstance(weights, (int, float)) and not isinstance(weights, bool) else None
