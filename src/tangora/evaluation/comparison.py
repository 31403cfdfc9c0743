"""Several models on the same rows of several tasks: scores, and what each keeps of the tasks' experts, with intervals.

Intervals are percentiles of a bootstrap over rows (`tangora.evaluation.bootstrap`). All models share its resamples, so
that shares and differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.evaluation.bootstrap import Bootstrap, Samples, interval
from tangora.evaluation.shares import finite, higher, kept, mean_share, no_share, shares
from tangora.support.shown import decimal, html_table, one_line
from tangora.tasks.metrics import direction

if TYPE_CHECKING:
    from tangora.evaluation.evaluator import Result
    from tangora.tasks import Task

__all__ = ["Cell", "Comparison", "Difference"]


@dataclass(frozen=True)
class Cell:
    """A score, and its share of the expert's, each with a 95 % interval.

    Attributes:
        score: by the task's metric, or the mean over tasks; NaN of a mean if the metrics have no common scale.
        low, high: its interval.
        kept: see `tangora.evaluation.shares.kept`; None if there is no expert, or no share of its score.
        kept_low, kept_high: the interval of ``kept``.
    """

    score: float
    low: float
    high: float
    kept: float | None = None
    kept_low: float | None = None
    kept_high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON; what is no number is None."""
        return {k: None if v is None or not math.isfinite(v) else v for k, v in vars(self).items()}


@dataclass(frozen=True)
class Difference:
    """How much more one model scores than another, or keeps, with a paired 95 % interval; above 0 if it is better.

    Attributes:
        value: the difference.
        low, high: its interval.
    """

    value: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval does not contain 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """The scores of several models on one split of several tasks.

    Args:
        results: model -> task -> result, in the order of lines.
        tasks: name -> task, with the rows that were scored.
        experts: task -> the model that is its expert; tasks without one are left out.
        split: of the rows.
        resamples, seed: of the bootstrap.
        base: the model that is the base alone. An expert that is worse has no shares. None if it is not scored.

    >>> from tangora.evaluation.evaluator import Result
    >>> from tangora.tasks.values import Split, Task
    >>> task = Task("a", "none", "accuracy", ["x", "y"], {"test": Split({}, [0, 1, 1, 0])})
    >>> results = {"expert": {"a": Result(1.0, 0.1, [0, 1, 1, 0])}, "fused": {"a": Result(0.75, 0.2, [0, 1, 1, 1])}}
    >>> made = Comparison(results, {"a": task}, {"a": "expert"}, "test")
    >>> made["fused"]["a"].kept, made.mean("fused").score
    (0.75, 0.75)
    """

    results: Mapping[str, Mapping[str, Result]]
    tasks: Mapping[str, Task]
    experts: Mapping[str, str]
    split: str
    resamples: int = 1000
    seed: int = 0
    base: str | None = None
    _cells: dict[tuple[str, str], Cell] = field(default_factory=dict)

    @cached_property
    def _bootstrap(self) -> Bootstrap:
        return Bootstrap(list(self.tasks.values()), self.resamples, self.seed)

    @property
    def models(self) -> list[str]:
        """The names of the models."""
        return list(self.results)

    @property
    def metrics(self) -> dict[str, str]:
        """Task -> its primary metric."""
        return {name: task.metric for name, task in self.tasks.items()}

    @property
    def rows(self) -> dict[str, int]:
        """Task -> the number of rows that were scored."""
        return {name: len(task.splits[self.split]) for name, task in self.tasks.items()}

    @property
    def direction(self) -> int:
        """1 if a higher mean score is better, -1 if a lower one is; 0 if the metrics have no common scale."""
        return direction(self.metrics.values())

    def __getitem__(self, model: str) -> dict[str, Cell]:
        """Return task -> the model's score and share."""
        return {task: self._cell(model, task) for task in self.tasks}

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def mean(self, model: str, tasks: Sequence[str] | None = None) -> Cell:
        """Return the mean over the tasks; of shares, over the tasks whose expert has shares (see `without_share`)."""
        names = list(self.tasks) if tasks is None else list(tasks)
        score, low, high = math.nan, math.nan, math.nan
        if self.direction:
            score = float(np.mean([self.results[model][name].score for name in names]))
            low, high = interval(np.mean([self._samples(model, name) for name in names], axis=0))
        counted = [name for name in self._counted if name in names]
        share = mean_share((self._cell(model, name).kept, False) for name in counted)
        if share is None:
            return Cell(score, low, high)
        drawn = np.mean([self._shares(model, name) for name in counted], axis=0)
        return Cell(score, low, high, share, *interval(drawn))

    @cached_property
    def without_share(self) -> dict[str, str]:
        """Task -> why there is no share of its expert's score, of which means are taken over the other tasks."""
        reasons = {task: self._reason(task) for task in self.experts if task in self.tasks}
        return {task: reason for task, reason in reasons.items() if reason is not None}

    @property
    def _counted(self) -> list[str]:
        return [name for name in self.tasks if name in self.experts and name not in self.without_share]

    def _reason(self, task: str) -> str | None:
        own = self.results[self.experts[task]][task].score
        return no_share(own, self._zero_shot(task), higher_is_better=higher(self.metrics[task]))

    def _zero_shot(self, task: str) -> float | None:
        return self.results[self.base][task].score if self.base is not None else None

    def rank(self, model: str) -> float:
        """Return what models are ranked by, higher is better: the mean score, or the mean share of the experts."""
        mean = self.mean(model)
        if self.direction:
            return self.direction * mean.score
        return -math.inf if mean.kept is None else mean.kept

    def more(self, one: str, other: str, task: str | None = None) -> Difference:
        """Return how much better a model is than another: by mean score, or by mean share if scores have no mean.

        Args:
            one, other: models.
            task: only this one's score; by default the mean over all.
        """
        if task is not None:
            sign = 1 if higher(self.metrics[task]) else -1
            value = sign * (self.results[one][task].score - self.results[other][task].score)
            return Difference(value, *interval(sign * (self._samples(one, task) - self._samples(other, task))))
        drawn = [self._ranks(model) for model in (one, other)]
        return Difference(self.rank(one) - self.rank(other), *interval(drawn[0] - drawn[1]))

    def _ranks(self, model: str) -> Samples:
        if self.direction:
            means: Samples = self.direction * np.mean([self._samples(model, name) for name in self.tasks], axis=0)
            return means
        if not self._counted:
            return np.full(self.resamples, np.nan)
        drawn: Samples = np.mean([self._shares(model, name) for name in self._counted], axis=0)
        return drawn

    def _samples(self, model: str, task: str) -> Samples:
        return self._bootstrap.samples(self.tasks[task], self.split, self.results[model][task].values)

    def _shares(self, model: str, task: str) -> Samples:
        metric = self.metrics[task]
        return shares(metric, self._samples(model, task), self._samples(self.experts[task], task))

    def _cell(self, model: str, task: str) -> Cell:
        if (model, task) not in self._cells:
            score = self.results[model][task].score
            cell = Cell(score, *interval(self._samples(model, task)))
            share = self._share(score, task)
            if share is not None:
                cell = Cell(cell.score, cell.low, cell.high, share, *interval(self._shares(model, task)))
            self._cells[model, task] = cell
        return self._cells[model, task]

    def _share(self, score: float, task: str) -> float | None:
        if task not in self.experts:
            return None
        expert = self.results[self.experts[task]][task].score
        return finite(kept(score, expert, self._zero_shot(task), higher_is_better=higher(self.metrics[task])))

    def to_dict(self) -> dict[str, Any]:
        """Return metrics, rows, experts and every cell as JSON."""
        return {
            "split": self.split,
            "metrics": self.metrics,
            "rows": self.rows,
            "experts": dict(self.experts),
            "without_share": self.without_share,
            "models": {
                model: {
                    "mean": self.mean(model).to_dict(),
                    "tasks": {task: cell.to_dict() for task, cell in self[model].items()},
                }
                for model in self.results
            },
        }

    def __repr__(self) -> str:
        parts = (f"{name} {self._shown(name)}" for name in self.results)
        return one_line("Comparison", f"{self.split}, {len(self.tasks)} tasks", *parts)

    def _shown(self, model: str) -> str:
        mean = self.mean(model)
        return decimal(mean.score) if self.direction else "–" if mean.kept is None else f"{100 * mean.kept:.1f} %"

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        rows = [(name, self._shown(name), *(decimal(c.score) for c in self[name].values())) for name in self.results]
        return html_table(f"score on {self.split}", ["model", "mean", *self.tasks], rows)
