"""Tidy scores: one row per (mode, method, subset, selection, split, task, metric), with intervals.

Each absolute score has two normalized ones: by the expert of the same mode (see `kept`), and by the best mode's expert
(fair across modes, since a weak expert is easy to match). An expert that is worse than zero-shot has no shares: cells
are empty, ``note`` says why, and means leave the task out. Rows with ``task`` ``mean`` average the tasks in the subset,
those with ``mean_all`` every task. A task's primary metric comes first. The others follow in further rows, and are
averaged if every task has them. Intervals are percentiles of a bootstrap over test rows. All candidates share its
resamples, so that differences and ratios are paired.

With several seeds, the rows of each are computed first, and `tangora.evaluation.seeds` averages them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.evaluation.bootstrap import Bootstrap, Samples, interval
from tangora.evaluation.references import Expert, References, score_of
from tangora.evaluation.shares import kept, mean_share, rank_kept, shares
from tangora.evaluation.tables import Row, write_csv

if TYPE_CHECKING:
    from tangora.evaluation.evaluator import Result
    from tangora.tasks import Task

__all__ = [
    "Bootstrap",
    "Measure",
    "MeasuredRow",
    "Outcome",
    "Row",
    "groups",
    "interval",
    "kept",
    "measured_rows",
    "rank_kept",
    "rows",
    "shares",
    "write_csv",
]


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
class MeasuredRow:
    """A row with the bootstrap samples of its score."""

    row: Row
    samples: Samples


def rows(outcomes: Sequence[Outcome], tasks: Sequence[Task], bootstrap: Bootstrap) -> list[Row]:
    """Return every row of ``scores.csv`` of one seed, in the order of ``outcomes``."""
    return [one.row for one in measured_rows(outcomes, tasks, bootstrap, References.of(outcomes))]


def measured_rows(
    outcomes: Sequence[Outcome], tasks: Sequence[Task], bootstrap: Bootstrap, references: References
) -> list[MeasuredRow]:
    """Return the rows of one seed with their samples, in the order of ``outcomes``."""
    by_name = {task.name: task for task in tasks}
    table: list[MeasuredRow] = []
    for outcome in outcomes:
        for split, results in outcome.results.items():
            own = [
                _row(outcome, split, by_name[t], metric, r, references, bootstrap)
                for t, r in results.items()
                for metric in by_name[t].metrics
            ]
            table += own
            if split == "test":
                table += _means(outcome, own, by_name, references)
    return table


def _row(
    outcome: Outcome,
    split: str,
    task: Task,
    metric: str,
    result: Result,
    references: References,
    bootstrap: Bootstrap,
) -> MeasuredRow:
    own, best = (references.expert(task, split, metric, mode) for mode in (outcome.mode, None))
    measured, samples = score_of(task, split, metric, result), bootstrap.samples(task, split, result.values, metric)
    low, high = interval(samples)
    row = Row(
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
    return MeasuredRow(row, samples)


def _note(task: str, own: Expert | None) -> str:
    """Return why a row has no share of its own expert."""
    return "" if own is None or own.reason is None else f"the {own.mode} expert of {task} is {own.reason}"


def _means(
    outcome: Outcome, own: Sequence[MeasuredRow], tasks: Mapping[str, Task], references: References
) -> list[MeasuredRow]:
    means = []
    for name, members in (("mean", [r for r in own if r.row.in_subset]), ("mean_all", list(own))):
        count = len({r.row.task for r in members})
        if not members or (name == "mean_all" and count < len(tasks)):
            continue
        primary = [r for r in members if r.row.metric == tasks[r.row.task].metric]
        means.append(_mean(outcome, name, primary, tasks, references))
        for metric in dict.fromkeys(r.row.metric for r in members):
            of_metric = [r for r in members if r.row.metric == metric]
            if len(of_metric) == count and of_metric != primary:
                means.append(_mean(outcome, name, of_metric, tasks, references))
    return means


def _mean(
    outcome: Outcome, name: str, members: Sequence[MeasuredRow], tasks: Mapping[str, Task], references: References
) -> MeasuredRow:
    """Return the mean over tasks, from one row of each; of shares, over the tasks whose experts have one."""
    chosen, samples = [one.row for one in members], np.mean([one.samples for one in members], axis=0)
    low, high = interval(samples)
    best = [references.expert(tasks[r.task], r.split, r.metric, None) for r in chosen]
    unshared = [expert is not None and expert.reason is not None for expert in best]
    row = Row(
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
    return MeasuredRow(row, samples)


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


def groups(outcomes: Sequence[Outcome]) -> dict[tuple[str, str, str, str, int], list[Outcome]]:
    """Return mode, method, space, selection and number of tasks -> the outcomes with test scores, of all subsets."""
    found: dict[tuple[str, str, str, str, int], list[Outcome]] = {}
    for outcome in outcomes:
        if "test" in outcome.results and outcome.subset:
            head = (outcome.mode, outcome.method, outcome.space, outcome.selection, len(outcome.subset))
            found.setdefault(head, []).append(outcome)
    return found


@dataclass(frozen=True)
class Measure:
    """Measures the outcomes of one seed: means over tasks and subsets, each with its bootstrap samples.

    Args:
        tasks: name -> task.
        references: of the seed.
        bootstrap: of the test rows.
    """

    tasks: Mapping[str, Task]
    references: References
    bootstrap: Bootstrap

    def mean(self, outcomes: Sequence[Outcome], measure: str) -> tuple[float, Samples] | None:
        """Return the mean of a measure over the outcomes of several subsets; None if one of them has none.

        Args:
            outcomes: of one fusion.
            measure: ``absolute``, ``kept`` or ``kept_best``, see `tangora.evaluation.seeds.summary`.
        """
        measured = [one for outcome in outcomes if (one := self._measured(outcome, measure)) is not None]
        if len(measured) < len(outcomes):
            return None
        return float(np.mean([value for value, _ in measured])), np.mean([drawn for _, drawn in measured], axis=0)

    def _measured(self, outcome: Outcome, measure: str) -> tuple[float, Samples] | None:
        """Return a measure of one outcome over the tasks of its subset."""
        values, samples = [], []
        for name in outcome.subset:
            task, result = self.tasks[name], outcome.results["test"].get(name)
            if result is None:
                return None
            value, drawn = result.score, self.bootstrap.samples(task, "test", result.values)
            if measure != "absolute":
                mode = outcome.mode if measure == "kept" else None
                expert = self.references.expert(task, "test", task.metric, mode)
                if expert is not None and expert.reason is not None:
                    continue
                share = expert.share(value) if expert is not None else None
                if expert is None or share is None:
                    return None
                of_expert = self.bootstrap.samples(task, "test", expert.result.values)
                value, drawn = share, shares(task.metric, drawn, of_expert)
            values.append(value)
            samples.append(drawn)
        return (float(np.mean(values)), np.mean(samples, axis=0)) if values else None
