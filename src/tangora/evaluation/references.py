"""The results that the scores of a run are compared with: its experts' and the base's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tangora.evaluation.shares import finite, higher, kept, no_share
from tangora.tasks.metrics import score

if TYPE_CHECKING:
    from tangora.evaluation.evaluator import Result
    from tangora.evaluation.results import Outcome
    from tangora.tasks import Task

__all__ = ["Expert", "References", "score_of"]


@dataclass(frozen=True)
class References:
    """The results that scores are compared with, of one seed.

    Args:
        experts: (split, task) -> mode -> the expert's result on its own task.
        zero_shot: (split, task) -> the base's result.
        every: seed -> those of each seed, if there are several.
    """

    experts: Mapping[tuple[str, str], Mapping[str, Result]]
    zero_shot: Mapping[tuple[str, str], Result]
    every: Mapping[int, References] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> References:
        """Return those among the outcomes of one seed."""
        experts: dict[tuple[str, str], dict[str, Result]] = {}
        zero_shot: dict[tuple[str, str], Result] = {}
        for outcome in outcomes:
            for split, results in outcome.results.items():
                if outcome.method == "zero_shot":
                    zero_shot |= {(split, name): result for name, result in results.items()}
                elif outcome.method == "expert" and (own := outcome.subset[0]) in results:
                    experts.setdefault((split, own), {})[outcome.mode] = results[own]
        return cls(experts, zero_shot)

    @classmethod
    def of_seeds(cls, by_seed: Mapping[int, Sequence[Outcome]]) -> dict[int, References]:
        """Return seed -> those among its outcomes."""
        alone = {seed: cls.of(outcomes) for seed, outcomes in by_seed.items()}
        return {seed: replace(one, every=alone) for seed, one in alone.items()} if len(alone) > 1 else alone

    def expert(self, task: Task, split: str, metric: str, mode: str | None) -> Expert | None:
        """Return the expert of a mode, or with None that of the best mode; None if there is none.

        If there is no share of the expert of one seed, there is none with the others either: so means over tasks are
        over the same tasks with every seed.
        """
        own = self._expert(task, split, metric, mode)
        if own is None or not self.every:
            return own
        others = {seed: of_seed._expert(task, split, metric, mode) for seed, of_seed in self.every.items()}
        reasons = [f"{one.reason} with seed {seed}" for seed, one in others.items() if one is not None and one.reason]
        return replace(own, reason=" and ".join(reasons) or None)

    def _expert(self, task: Task, split: str, metric: str, mode: str | None) -> Expert | None:
        of_task = self.experts.get((split, task.name), {})
        sign = 1 if higher(metric) else -1
        if mode is None:
            mode = max(of_task, key=lambda m: sign * score_of(task, split, metric, of_task[m]), default=None)
        if mode is None or mode not in of_task:
            return None
        base = self.zero_shot.get((split, task.name))
        zero_shot = score_of(task, split, metric, base) if base is not None else None
        measured = score_of(task, split, metric, of_task[mode])
        reason = no_share(measured, zero_shot, higher_is_better=higher(metric))
        return Expert(mode, metric, of_task[mode], measured, zero_shot, reason)


@dataclass(frozen=True)
class Expert:
    """An expert's result on its own task, with its score and the base's by one metric.

    Attributes:
        reason: why there is no share of its score; None if there is one.
    """

    mode: str
    metric: str
    result: Result
    score: float
    zero_shot: float | None
    reason: str | None

    def share(self, measured: float) -> float | None:
        """Return a score's share of the expert's; None if there is none."""
        if self.reason is not None:
            return None
        return finite(kept(measured, self.score, self.zero_shot, higher_is_better=higher(self.metric)))


def score_of(task: Task, split: str, metric: str, result: Result) -> float:
    """Return a result's score by one of the task's metrics; the primary one was measured with the predictions."""
    return result.score if metric == task.metric else score(metric, result.values, task.splits[split].targets)
