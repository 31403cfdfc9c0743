"""Tidy scores: one row per (mode, method, subset, selection, split, task, metric), with intervals.

Absolute scores stand beside two normalized ones: by the expert of the same mode (what the fusion kept) and by the
best mode's expert (fair across modes, since a weak expert is easy to keep). Rows whose ``task`` is ``mean`` average
the tasks in the subset, ``mean_all`` every task. Intervals are percentiles of a bootstrap over test rows, whose
resamples are the same for every candidate, so that differences and ratios are paired.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tangora.support.files import atomic_file, digest

if TYPE_CHECKING:
    from tangora.evaluation.evaluator import Result
    from tangora.tasks import Task

__all__ = ["Bootstrap", "Outcome", "Row", "rows", "summary", "write_csv"]

Samples = npt.NDArray[np.float64]
ROW_MEAN = {"accuracy", "exact_match"}  # metrics that are a mean over rows, resampled without recomputing them


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
class Row:
    """A line of ``scores.csv``."""

    mode: str
    method: str
    space: str
    subset: str
    n_tasks: int
    in_subset: bool
    selection: str
    coefficients: str
    task: str
    split: str
    metric: str
    score: float
    normalized: float | None
    normalized_best: float | None
    ci_low: float | None
    ci_high: float | None


@dataclass
class Bootstrap:
    """Resampled scores of predictions, with one fixed set of resamples per task.

    Args:
        tasks: gives targets and metrics.
        resamples: how many.
        seed: decides the resamples together with the task's name.
    """

    tasks: Sequence[Task]
    resamples: int = 1000
    seed: int = 0
    _kept: dict[str, Samples] = field(default_factory=dict, repr=False)

    def samples(self, task: Task, split: str, values: Sequence[Any]) -> Samples:
        """Scores of ``values`` on each resample of the split's rows, shape [resamples]."""
        key = digest([task.name, split, list(values)])
        if key not in self._kept:
            self._kept[key] = self._resample(task, split, values)
        return self._kept[key]

    def _resample(self, task: Task, split: str, values: Sequence[Any]) -> Samples:
        from tangora.tasks.metrics import score

        targets = task.splits[split].targets
        seed = int(digest([self.seed, task.name, split])[:16], 16)
        picks = np.random.default_rng(seed).integers(0, len(targets), (self.resamples, len(targets)))
        if task.metric in ROW_MEAN:
            right = np.array([score(task.metric, [v], [t]) for v, t in zip(values, targets, strict=True)])
            return np.asarray(right[picks].mean(axis=1), dtype=np.float64)
        predicted, actual = np.asarray(values), np.asarray(targets)
        return np.array([score(task.metric, predicted[p].tolist(), actual[p].tolist()) for p in picks])


def interval(samples: Samples) -> tuple[float, float]:
    """The central 95 % of bootstrap samples; those that are not a number are left out."""
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return float(low), float(high)


def rows(outcomes: Sequence[Outcome], tasks: Sequence[Task], bootstrap: Bootstrap) -> list[Row]:
    """Every row of ``scores.csv``, in the order of ``outcomes``."""
    experts = _experts(outcomes)
    by_name = {task.name: task for task in tasks}
    table: list[Row] = []
    for outcome in outcomes:
        for split, results in outcome.results.items():
            own = [_row(outcome, split, by_name[t], r, experts, bootstrap) for t, r in results.items()]
            table += own
            if split == "test":
                table += _means(outcome, own, by_name, bootstrap)
    return table


def _experts(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], dict[str, Result]]:
    """(split, task) -> mode -> the expert's result on its own task."""
    found: dict[tuple[str, str], dict[str, Result]] = {}
    for outcome in outcomes:
        if outcome.method == "expert":
            for split, results in outcome.results.items():
                own = outcome.subset[0]
                if own in results:
                    found.setdefault((split, own), {})[outcome.mode] = results[own]
    return found


def _row(
    outcome: Outcome,
    split: str,
    task: Task,
    result: Result,
    experts: Mapping[tuple[str, str], Mapping[str, Result]],
    bootstrap: Bootstrap,
) -> Row:
    of_task = experts.get((split, task.name), {})
    best = max((r.score for r in of_task.values()), default=0.0)
    low, high = interval(bootstrap.samples(task, split, result.values))
    return Row(
        **_head(outcome),
        in_subset=task.name in outcome.subset,
        task=task.name,
        split=split,
        metric=task.metric,
        score=result.score,
        normalized=_ratio(result.score, of_task[outcome.mode].score) if outcome.mode in of_task else None,
        normalized_best=_ratio(result.score, best),
        ci_low=low,
        ci_high=high,
    )


def _means(outcome: Outcome, own: Sequence[Row], tasks: Mapping[str, Task], bootstrap: Bootstrap) -> list[Row]:
    means = []
    for name, chosen in (("mean", [r for r in own if r.in_subset]), ("mean_all", list(own))):
        if not chosen or (name == "mean_all" and len(own) < len(tasks)):
            continue
        samples = [bootstrap.samples(tasks[r.task], r.split, outcome.results[r.split][r.task].values) for r in chosen]
        low, high = interval(np.mean(samples, axis=0))
        means.append(
            Row(
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
        )
    return means


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


def _ratio(score: float, expert: float) -> float | None:
    """A share of the expert's score; none where the expert is worth nothing (a correlation at or below 0)."""
    return score / expert if expert > 0 else None


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def summary(outcomes: Sequence[Outcome], tasks: Sequence[Task], bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Per (mode, method, space, selection, number of tasks): mean over its subsets of absolute and kept score.

    ``absolute`` is the mean test score over the tasks in a subset, ``kept`` the mean over them of score / expert of
    the same mode, ``kept_best`` of score / best expert; each with a paired bootstrap 95 % interval over test rows.
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
            measured = [_kept(o, name, experts, by_name, bootstrap) for o in members]
            if any(m is None for m in measured):
                entry[name] = entry[f"{name}_low"] = entry[f"{name}_high"] = None
                continue
            whole = [m for m in measured if m is not None]
            entry[name] = float(np.mean([value for value, _ in whole]))
            entry[f"{name}_low"], entry[f"{name}_high"] = interval(np.mean([s for _, s in whole], axis=0))
        table.append(entry)
    return table


def _kept(
    outcome: Outcome,
    measure: str,
    experts: Mapping[tuple[str, str], Mapping[str, Result]],
    tasks: Mapping[str, Task],
    bootstrap: Bootstrap,
) -> tuple[float, Samples] | None:
    """A measure of one outcome over the tasks of its subset, and its bootstrap samples."""
    values, samples = [], []
    for name in outcome.subset:
        task, result = tasks[name], outcome.results["test"].get(name)
        if result is None:
            return None
        value, drawn = result.score, bootstrap.samples(task, "test", result.values)
        if measure != "absolute":
            expert = _reference(experts.get(("test", name), {}), outcome.mode if measure == "kept" else None)
            if expert is None or expert.score <= 0:
                return None
            below = bootstrap.samples(task, "test", expert.values)
            # a resample on which the expert scores nothing has no ratio, and is left out of the interval
            value, drawn = value / expert.score, drawn / np.where(below > 0, below, np.nan)
        values.append(value)
        samples.append(drawn)
    return float(np.mean(values)), np.mean(samples, axis=0)


def _reference(of_task: Mapping[str, Result], mode: str | None) -> Result | None:
    if mode is not None:
        return of_task.get(mode)
    return max(of_task.values(), key=lambda r: r.score, default=None)


def write_csv(path: str | os.PathLike[str], table: Sequence[Any], columns: Sequence[str] | None = None) -> None:
    """Write dataclass rows (or mappings) as CSV, atomically; floats with 6 digits, None as an empty field."""
    names = list(columns or [f.name for f in fields(Row)])
    with atomic_file(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in table:
            values = row if isinstance(row, Mapping) else asdict(row)
            writer.writerow([_cell(values[name]) for name in names])


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
