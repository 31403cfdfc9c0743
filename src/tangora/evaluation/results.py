"""Tidy scores: one row per (mode, method, subset, selection, split, task, metric), with intervals.

Each absolute score has two normalized ones: by the expert of the same mode (see `kept`), and by the best mode's expert
(fair across modes, since a weak expert is easy to match). An expert that is worse than zero-shot has no shares: cells
are empty, ``note`` says why, and means leave the task out. Rows with ``task`` ``mean`` average the tasks in the subset,
those with ``mean_all`` every task. A task's primary metric comes first. The others follow in further rows, and are
averaged if every task has them. Intervals are percentiles of a bootstrap over test rows. All candidates share its
resamples, so that differences and ratios are paired.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.evaluation.bootstrap import Bootstrap, Samples, interval
from tangora.evaluation.shares import finite, higher, kept, mean_share, no_share, rank_kept, shares
from tangora.evaluation.tables import Row, write_csv
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


@dataclass(frozen=True)
class _References:
    """The results that scores are compared with.

    Args:
        experts: (split, task) -> mode -> the expert's result on its own task.
        zero_shot: (split, task) -> the base's result.
    """

    experts: Mapping[tuple[str, str], Mapping[str, Result]]
    zero_shot: Mapping[tuple[str, str], Result]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> _References:
        experts: dict[tuple[str, str], dict[str, Result]] = {}
        zero_shot: dict[tuple[str, str], Result] = {}
        for outcome in outcomes:
            for split, results in outcome.results.items():
                if outcome.method == "zero_shot":
                    zero_shot |= {(split, name): result for name, result in results.items()}
                elif outcome.method == "expert" and (own := outcome.subset[0]) in results:
                    experts.setdefault((split, own), {})[outcome.mode] = results[own]
        return cls(experts, zero_shot)

    def expert(self, task: Task, split: str, metric: str, mode: str | None) -> _Expert | None:
        """Return the expert of a mode, or with None that of the best mode; None if there is none."""
        of_task = self.experts.get((split, task.name), {})
        sign = 1 if higher(metric) else -1
        if mode is None:
            mode = max(of_task, key=lambda m: sign * _score(task, split, metric, of_task[m]), default=None)
        if mode is None or mode not in of_task:
            return None
        base = self.zero_shot.get((split, task.name))
        zero_shot = _score(task, split, metric, base) if base is not None else None
        return _Expert(mode, metric, of_task[mode], _score(task, split, metric, of_task[mode]), zero_shot)


@dataclass(frozen=True)
class _Expert:
    """An expert's result on its own task, with its score and the base's by one metric."""

    mode: str
    metric: str
    result: Result
    score: float
    zero_shot: float | None

    @property
    def reason(self) -> str | None:
        return no_share(self.score, self.zero_shot, higher_is_better=higher(self.metric))

    def share(self, measured: float) -> float | None:
        return finite(kept(measured, self.score, self.zero_shot, higher_is_better=higher(self.metric)))


def rows(outcomes: Sequence[Outcome], tasks: Sequence[Task], bootstrap: Bootstrap) -> list[Row]:
    """Return every row of ``scores.csv``, in the order of ``outcomes``."""
    references = _References.of(outcomes)
    by_name = {task.name: task for task in tasks}
    table: list[Row] = []
    for outcome in outcomes:
        for split, results in outcome.results.items():
            own = [
                _row(outcome, split, by_name[t], metric, r, references, bootstrap)
                for t, r in results.items()
                for metric in by_name[t].metrics
            ]
            table += own
            if split == "test":
                table += _means(outcome, own, by_name, references, bootstrap)
    return table


def _score(task: Task, split: str, metric: str, result: Result) -> float:
    """Return a result's score by one of the task's metrics; the primary one was measured with the predictions."""
    return result.score if metric == task.metric else score(metric, result.values, task.splits[split].targets)


def _row(
    outcome: Outcome,
    split: str,
    task: Task,
    metric: str,
    result: Result,
    references: _References,
    bootstrap: Bootstrap,
) -> Row:
    own, best = (references.expert(task, split, metric, mode) for mode in (outcome.mode, None))
    measured = _score(task, split, metric, result)
    low, high = interval(bootstrap.samples(task, split, result.values, metric))
    return Row(
        **_head(outcome),
        in_subset=task.name in outcome.subset,
        task=task.name,
        split=split,
        metric=metric,
        score=measured,
        normalized=own.share(measured) if own is not None else None,
        normalized_best=best.share(measured) if best is not None else None,
        ci_low=low,
        ci_high=high,
        note=_note(task.name, own),
    )


def _note(task: str, own: _Expert | None) -> str:
    """Return why a row has no share of its own expert."""
    return "" if own is None or own.reason is None else f"the {own.mode} expert of {task} is {own.reason}"


def _means(
    outcome: Outcome, own: Sequence[Row], tasks: Mapping[str, Task], references: _References, bootstrap: Bootstrap
) -> list[Row]:
    means = []
    for name, members in (("mean", [r for r in own if r.in_subset]), ("mean_all", list(own))):
        count = len({r.task for r in members})
        if not members or (name == "mean_all" and count < len(tasks)):
            continue
        primary = [r for r in members if r.metric == tasks[r.task].metric]
        means.append(_mean(outcome, name, primary, tasks, references, bootstrap))
        for metric in dict.fromkeys(r.metric for r in members):
            of_metric = [r for r in members if r.metric == metric]
            if len(of_metric) == count and of_metric != primary:
                means.append(_mean(outcome, name, of_metric, tasks, references, bootstrap))
    return means


def _mean(
    outcome: Outcome,
    name: str,
    chosen: Sequence[Row],
    tasks: Mapping[str, Task],
    references: _References,
    bootstrap: Bootstrap,
) -> Row:
    """Return the mean over tasks, from one row of each; of shares, over the tasks whose experts have one."""
    results = outcome.results["test"]
    samples = [bootstrap.samples(tasks[r.task], r.split, results[r.task].values, r.metric) for r in chosen]
    low, high = interval(np.mean(samples, axis=0))
    best = [references.expert(tasks[r.task], r.split, r.metric, None) for r in chosen]
    unshared = [expert is not None and expert.reason is not None for expert in best]
    return Row(
        **_head(outcome),
        in_subset=name == "mean",
        task=name,
        split="test",
        metric=_common([r.metric for r in chosen]),
        score=float(np.mean([r.score for r in chosen])),
        normalized=mean_share((r.normalized, bool(r.note)) for r in chosen),
        normalized_best=mean_share((r.normalized_best, left) for r, left in zip(chosen, unshared, strict=True)),
        ci_low=low,
        ci_high=high,
        note="; ".join(f"left out: {r.note}" for r in chosen if r.note),
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


def summary(outcomes: Sequence[Outcome], tasks: Sequence[Task], bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Return, per mode, method, space, selection and number of tasks, means over subsets of absolute and kept scores.

    ``absolute`` is the mean test score over the tasks in a subset, by their primary metrics. ``kept`` is their mean
    share (`kept`) of the expert of the same mode, and ``kept_best`` of the best mode's expert. Each has a paired
    bootstrap 95 % interval over test rows. Tasks whose expert has no share are left out of means of shares.
    A share is None if no task is left, or if it is infinite.
    """
    references = _References.of(outcomes)
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
            measured = [_measured(o, name, references, by_name, bootstrap) for o in members]
            if any(m is None for m in measured):
                entry[name] = entry[f"{name}_low"] = entry[f"{name}_high"] = None
                continue
            defined = [m for m in measured if m is not None]
            entry[name] = float(np.mean([value for value, _ in defined]))
            entry[f"{name}_low"], entry[f"{name}_high"] = interval(np.mean([s for _, s in defined], axis=0))
        table.append(entry)
    return table


def _measured(
    outcome: Outcome, measure: str, references: _References, tasks: Mapping[str, Task], bootstrap: Bootstrap
) -> tuple[float, Samples] | None:
    """Return a measure of one outcome over the tasks of its subset, and its bootstrap samples."""
    values, samples = [], []
    for name in outcome.subset:
        task, result = tasks[name], outcome.results["test"].get(name)
        if result is None:
            return None
        value, drawn = result.score, bootstrap.samples(task, "test", result.values)
        if measure != "absolute":
            expert = references.expert(task, "test", task.metric, outcome.mode if measure == "kept" else None)
            if expert is not None and expert.reason is not None:
                continue
            share = expert.share(value) if expert is not None else None
            if expert is None or share is None:
                return None
            value, drawn = share, shares(task.metric, drawn, bootstrap.samples(task, "test", expert.result.values))
        values.append(value)
        samples.append(drawn)
    return (float(np.mean(values)), np.mean(samples, axis=0)) if values else None
