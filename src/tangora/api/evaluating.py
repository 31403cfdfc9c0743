"""`evaluate`: score an adapter on tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tangora.api.adapters import AdapterLike, opened
from tangora.api.shown import Shown, shown
from tangora.evaluation.evaluator import Evaluator, Result, scoring_key
from tangora.evaluation.warnings import base_warnings, score_warnings
from tangora.support.shown import decimal, html_table, one_line
from tangora.tasks.metrics import direction
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from tangora.tasks.base import Base

__all__ = ["Scores", "evaluate"]

log = logging.getLogger("tangora")


class Scores(Mapping[str, Result]):
    """Task -> `Result`, with the mean of the scores.

    Args:
        results: of each task.
        metrics: task -> its metric.
        split: the split that was scored.
    """

    def __init__(self, results: Mapping[str, Result], metrics: Mapping[str, str], split: str) -> None:
        self._results, self._metrics, self.split = dict(results), dict(metrics), split

    def __getitem__(self, task: str) -> Result:
        return self._results[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    @property
    def mean(self) -> float:
        """The mean score over the tasks; it compares models only if the tasks' metrics have a common scale."""
        return sum(result.score for result in self.values()) / len(self)

    @property
    def _comparable(self) -> bool:
        return direction(self._metrics.values()) != 0

    def __repr__(self) -> str:
        each = (f"{task} {decimal(result.score)}" for task, result in self.items())
        return one_line(
            "Scores", self.split, *each, f"mean {decimal(self.mean)}" if self._comparable and len(self) > 1 else None
        )

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        rows = [(task, self._metrics[task], decimal(one.score), f"{one.loss:.4f}") for task, one in self.items()]
        title = f"{self.split}: mean {decimal(self.mean)}" if self._comparable else self.split
        return html_table(title, ["task", "metric", "score", "loss"], rows)


def evaluate(
    adapter: AdapterLike | None,
    base: Base,
    tasks: Task | Sequence[Task],
    *,
    split: str = "test",
    batch_size: int = 64,
    same_base: bool = False,
    progress: Shown = None,
) -> Scores:
    """Score an adapter, or the base alone, on tasks.

    Args:
        adapter: an adapter of any mode, or its folder; None is the unchanged base.
        base: its weights are restored afterwards.
        tasks: one or several.
        split: ``train``, ``validation`` or ``test``.
        batch_size: rows per forward pass; changes results by rounding at most.
        same_base: accept an adapter that was made for another base.
        progress: whether to show a bar; by default in a terminal or a notebook.

    Raises:
        ModelError: the adapter was made for another base, or does not fit it.
        DataError: a task has no such split.
        FileError: the folder does not contain a readable adapter.

    >>> import tangora
    >>> base = tangora.load_base("encoder", family="text-zero-shot")
    >>> files = {"train": "colors/train.parquet", "test": "colors/test.parquet"}
    >>> task = tangora.load_task("colors", base, files, labels=["red", "green", "blue"])
    >>> scores = tangora.evaluate("adapters/one", base, task)
    >>> 0 <= scores["colors"].score <= 1
    True
    """
    several = [tasks] if isinstance(tasks, Task) else list(tasks)
    candidate = opened(adapter, base)
    key = "zero_shot" if candidate is None else scoring_key(candidate)
    evaluator = Evaluator(base, several, batch_size=batch_size, same_base=same_base)
    results: dict[str, Result] = {}
    with shown(progress) as bars:
        bars.begin(f"score on {split}", len(several))
        for task in several:
            results |= evaluator.evaluate(key, lambda: candidate, [task.name], split)
            bars.advance(detail=task.name)
        bars.end()
    lines = base_warnings({"the adapter": candidate}, base) if candidate else []
    for line in lines + score_warnings({"the adapter" if candidate else "the base": results}, several, split):
        log.warning(line)
    return Scores(results, {task.name: task.metric for task in several}, split)
