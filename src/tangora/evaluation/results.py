"""Tidy scores: one row per (mode, method, subset, selection, split, task, metric), with intervals.

Each absolute score has two normalized ones: by the expert of the same mode (see `kept`), and by the best mode's expert
(fair across modes, since a weak expert is easy to match). Rows with ``task`` ``mean`` average the tasks in the subset,
those with ``mean_all`` every task. A task's primary metric comes first. The others follow in further rows, and are
averaged if every task has them. Intervals are percentiles of a bootstrap over test rows. All candidates share its
resamples, so that differences and ratios are paired.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.evaluation.bootstrap import Bootstrap, Samples, interval
from tangora.evaluation.tables import Row, write_csv
from tangora.support.seams import METRICS
from tangora.tasks.metrics import score

if TYPE_CHECKING:
    from tangora.evaluation.evaluator import Result
    from tangora.tasks import Task

__all__ = ["Bootstrap", "Outcome", "Row", "interval", "kept", "rank_kept", "rows", "shares", "summary", "write_csv"]


@dataclass(frozen=True)
class Outcome:
    """A chosen candidate (or an expert, or the base) and its results.

    Attributes:
        results: split -> task -> result.
    """

    mode: str
    method: str
    space: str
    subset: tuple[str, ...]
    selection: str
    coefficients: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Result]]


def kept(score: float, expert: float, *, higher_is_better: bool = True) -> float:
    """Return a model's share of an expert's score: 1 is as good as the expert.

    - Higher is better: ``score / expert``. NaN if the expert's score is 0 or below (a correlation).
    - Lower is better: ``expert / score``, so that twice the errors keep a half. A score of 0 has the share 1 of an
      expert with 0, and an infinite share of another. Of perplexities, which are at least 1, it is the ratio of the
      geometric means of the right tokens' probabilities: the model's by the expert's.

    >>> kept(0.6, 0.8), kept(0.2, 0.1, higher_is_better=False)
    (0.7499999999999999, 0.5)
    >>> kept(0.3, 0.0)
    nan
    """
    if higher_is_better:
        return score / expert if expert > 0 else math.nan
    if score > 0:
        return expert / score
    return 1.0 if expert == score else math.inf


def rank_kept(scores: Mapping[str, float], experts: Mapping[str, float], metrics: Mapping[str, str]) -> float:
    """Return the mean of `kept` over tasks, the rank of a candidate: the highest is the best.

    A task without a share, because its expert's score is 0 or below, is left out for every candidate. If no task is
    left, the mean is 0 for every candidate, and their losses decide. A candidate with a NaN score comes last.

    Args:
        scores: task -> the candidate's score.
        experts: task -> the score of its expert.
        metrics: task -> the name of its primary metric.

    >>> rank_kept({"a": 0.4, "b": 0.1}, {"a": 0.8, "b": -0.2}, {"a": "accuracy", "b": "matthews"})
    0.5
    """
    if any(math.isnan(value) for value in scores.values()):
        return -math.inf
    shares = [kept(s, experts[t], higher_is_better=METRICS.get(metrics[t]).higher_is_better) for t, s in scores.items()]
    defined = [share for share in shares if not math.isnan(share)]
    return float(np.mean(defined)) if defined else 0.0


def rows(outcomes: Sequence[Outcome], tasks: Sequence[Task], bootstrap: Bootstrap) -> list[Row]:
    """Return every row of ``scores.csv``, in the order of ``outcomes``."""
    experts = _experts(outcomes)
    by_name = {task.name: task for task in tasks}
    table: list[Row] = []
    for outcome in outcomes:
        for split, results in outcome.results.items():
            own = [
                _row(outcome, split, by_name[t], metric, r, experts, bootstrap)
                for t, r in results.items()
                for metric in by_name[t].metrics
            ]
            table += own
            if split == "test":
                table += _means(outcome, own, by_name, bootstrap)
    return table


def _experts(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], dict[str, Result]]:
    """Return (split, task) -> mode -> the expert's result on its own task."""
    experts: dict[tuple[str, str], dict[str, Result]] = {}
    for outcome in outcomes:
        if outcome.method == "expert":
            for split, results in outcome.results.items():
                own = outcome.subset[0]
                if own in results:
                    experts.setdefault((split, own), {})[outcome.mode] = results[own]
    return experts


def _score(task: Task, split: str, metric: str, result: Result) -> float:
    """Return a result's score by one of the task's metrics; the primary one was measured with the predictions."""
    return result.score if metric == task.metric else score(metric, result.values, task.splits[split].targets)


def _row(
    outcome: Outcome,
    split: str,
    task: Task,
    metric: str,
    result: Result,
    experts: Mapping[tuple[str, str], Mapping[str, Result]],
    bootstrap: Bootstrap,
) -> Row:
    of_task = {m: _score(task, split, metric, r) for m, r in experts.get((split, task.name), {}).items()}
    measured = _score(task, split, metric, result)
    low, high = interval(bootstrap.samples(task, split, result.values, metric))
    return Row(
        **_head(outcome),
        in_subset=task.name in outcome.subset,
        task=task.name,
        split=split,
        metric=metric,
        score=measured,
        normalized=_share(metric, measured, of_task.get(outcome.mode)),
        normalized_best=_share(metric, measured, _best(metric, of_task.values())),
        ci_low=low,
        ci_high=high,
    )


def _best(metric: str, scores: Iterable[float]) -> float | None:
    chosen = max if METRICS.get(metric).higher_is_better else min
    return chosen(scores, default=None)


def _share(metric: str, measured: float, expert: float | None) -> float | None:
    """Return the value of `kept`, if there is an expert and the share is finite."""
    if expert is None:
        return None
    share = kept(measured, expert, higher_is_better=METRICS.get(metric).higher_is_better)
    return share if math.isfinite(share) else None


def _means(outcome: Outcome, own: Sequence[Row], tasks: Mapping[str, Task], bootstrap: Bootstrap) -> list[Row]:
    means = []
    for name, members in (("mean", [r for r in own if r.in_subset]), ("mean_all", list(own))):
        count = len({r.task for r in members})
        if not members or (name == "mean_all" and count < len(tasks)):
            continue
        primary = [r for r in members if r.metric == tasks[r.task].metric]
        means.append(_mean(outcome, name, primary, tasks, bootstrap))
        for metric in dict.fromkeys(r.metric for r in members):
            of_metric = [r for r in members if r.metric == metric]
            if len(of_metric) == count and of_metric != primary:
                means.append(_mean(outcome, name, of_metric, tasks, bootstrap))
    return means


def _mean(outcome: Outcome, name: str, chosen: Sequence[Row], tasks: Mapping[str, Task], bootstrap: Bootstrap) -> Row:
    """Return the mean over tasks, from one row of each."""
    results = outcome.results["test"]
    samples = [bootstrap.samples(tasks[r.task], r.split, results[r.task].values, r.metric) for r in chosen]
    low, high = interval(np.mean(samples, axis=0))
    return Row(
        **_head(outcome),
        in_subset=name == "mean",
        task=name,
        split="test",
        metric=_common([r.metric for r in chosen]),
        score=float(np.mean([r.score for r in chosen])),
        normalized=_mean_or_none([r.normalized for r in chosen]),
        normalized_best=_mean_or_none([r.normalized_best for r in chosen]),
        ci_low=low,
        ci_high=high,
    )


def _head(outcome: Outcome) -> dict[str, Any]:
    return {
        "mode": outcome.mode,
        "method": outcome.method,
        "space": outcome.space,
        "subset": "+".join(outcome.subset),
        "n_tasks": len(outcome.subset),
        "selection": outcome.selection,
        "coefficients": json.dumps(dict(outcome.coefficients)) if outcome.coefficients else "",
    }


def _common(metrics: Sequence[str]) -> str:
    return metrics[0] if len(set(metrics)) == 1 else "mixed"


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    defined = [v for v in values if v is not None]
    return float(np.mean(defined)) if defined and len(defined) == len(values) else None


def summary(outcomes: Sequence[Outcome], tasks: Sequence[Task], bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Return, per mode, method, space, selection and number of tasks, means over subsets of absolute and kept scores.

    ``absolute`` is the mean test score over the tasks in a subset, by their primary metrics. ``kept`` is their mean
    share (`kept`) of the expert of the same mode, and ``kept_best`` of the best mode's expert. Each has a paired
    bootstrap 95 % interval over test rows. A share is None if one of the tasks has none.
    """
    experts = _experts(outcomes)
    by_name = {task.name: task for task in tasks}
    groups: dict[tuple[str, str, str, str, int], list[Outcome]] = {}
    for outcome in outcomes:
        if "test" in outcome.results and outcome.subset:
            head = (outcome.mode, outcome.method, outcome.space, outcome.selection, len(outcome.subset))
            groups.setdefault(head, []).append(outcome)
    table = []
    for head, members in groups.items():
        entry: dict[str, Any] = dict(zip(("mode", "method", "space", "selection", "n_tasks"), head, strict=True))
        entry["subsets"] = len(members)
        for name in ("absolute", "kept", "kept_best"):
            measured = [_measured(o, name, experts, by_name, bootstrap) for o in members]
            if any(m is None for m in measured):
                entry[name] = entry[f"{name}_low"] = entry[f"{name}_high"] = None
                continue
            defined = [m for m in measured if m is not None]
            entry[name] = float(np.mean([value for value, _ in defined]))
            entry[f"{name}_low"], entry[f"{name}_high"] = interval(np.mean([s for _, s in defined], axis=0))
        table.append(entry)
    return table


def _measured(
    outcome: Outcome,
    measure: str,
    experts: Mapping[tuple[str, str], Mapping[str, Result]],
    tasks: Mapping[str, Task],
    bootstrap: Bootstrap,
) -> tuple[float, Samples] | None:
    """Return a measure of one outcome over the tasks of its subset, and its bootstrap samples."""
    values, samples = [], []
    for name in outcome.subset:
        task, result = tasks[name], outcome.results["test"].get(name)
        if result is None:
            return None
        value, drawn = result.score, bootstrap.samples(task, "test", result.values)
        if measure != "absolute":
            expert = _reference(task, experts.get(("test", name), {}), outcome.mode if measure == "kept" else None)
            share = _share(task.metric, value, expert.score) if expert is not None else None
            if expert is None or share is None:
                return None
            value, drawn = share, shares(task.metric, drawn, bootstrap.samples(task, "test", expert.values))
        values.append(value)
        samples.append(drawn)
    return float(np.mean(values)), np.mean(samples, axis=0)


def shares(metric: str, drawn: Samples, expert: Samples) -> Samples:
    """Return `kept` on every resample; NaN, which intervals leave out, for one without a finite share."""
    above, below = (drawn, expert) if METRICS.get(metric).higher_is_better else (expert, drawn)
    shares: Samples = above / np.where(below > 0, below, np.nan)
    return shares


def _reference(task: Task, of_task: Mapping[str, Result], mode: str | None) -> Result | None:
    """Return the expert of a mode, or the best one."""
    if mode is not None:
        return of_task.get(mode)
    sign = 1 if METRICS.get(task.metric).higher_is_better else -1
    return max(of_task.values(), key=lambda r: sign * r.score, default=None)
