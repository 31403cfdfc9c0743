"""One λ for all adapters: the best of a grid, by what the fused model keeps of the adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.coefficients.found import Found
from tangora.coefficients.grid import candidates, select
from tangora.coefficients.problem import silent
from tangora.evaluation.shares import rank_kept

if TYPE_CHECKING:
    from tangora.evaluation.candidates import Scoring
    from tangora.evaluation.evaluator import Result
    from tangora.fusion.fusion import Fusion
    from tangora.fusion.weights import WeightTable
    from tangora.tasks import Task

__all__ = ["GRID", "Ranking", "one_weight"]

GRID = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""The λ that are compared if no others are given."""


class Ranking:
    """Ranks fusions of some adapters on some rows, as a run does: by the mean share of the experts' scores.

    Args:
        scoring: of fused models.
        fusion: of the adapters.
        tasks: name -> task, with the rows.
        split: of the tasks.
        experts: task -> the score that shares are of: its own adapter's.
        method, parameters: of the fusion.
    """

    def __init__(
        self,
        scoring: Scoring,
        fusion: Fusion,
        tasks: Mapping[str, Task],
        split: str,
        experts: Mapping[str, float],
        method: str,
        parameters: Mapping[str, Any],
    ) -> None:
        self.scoring, self.fusion, self.tasks, self.split = scoring, fusion, tasks, split
        self._experts, self._method, self._parameters = experts, method, parameters

    def results(self, weights: WeightTable) -> dict[str, Result]:
        """Return task -> result of the fusion with some weights."""
        names = list(self.tasks)
        return self.scoring.results(self.fusion, self._method, weights, self._parameters, names, self.split)

    def rank(self, weights: WeightTable) -> tuple[float, float]:
        """Return the mean share of the experts' scores; then, of equal ones, the smaller loss."""
        results = self.results(weights)
        scores = {name: result.score for name, result in results.items()}
        metrics = {name: task.metric for name, task in self.tasks.items()}
        return rank_kept(scores, self._experts, metrics), -float(np.mean([one.loss for one in results.values()]))


def one_weight(
    ranking: Ranking, weights: Sequence[float] = GRID, on_step: Callable[[int, int, str], None] = silent
) -> Found:
    """Return the best λ of a grid, the same for all adapters.

    Choose it if there are few rows: one number can hardly be fitted to chance. Coefficients for each adapter can.

    Args:
        ranking: of the fusions.
        weights: the values of λ.
        on_step: called after each, see `Problem`.

    Raises:
        RecipeError: there are none, or one is not a finite number.
        FusionError: no score is a number.
    """
    began, points = time.perf_counter(), candidates(list(weights))
    count = len(ranking.fusion.adapters)
    ranks = []
    for number, point in enumerate(points, 1):
        ranks.append(ranking.rank([point.weight] * count))
        on_step(number, len(points), f"λ {point.weight:g}")
    best = select(points, ranks, where="grid")
    loss = -ranks[best.index][1]
    return Found(
        [best.weight] * count,
        loss,
        loss,
        None,
        None,
        len(points),
        time.perf_counter() - began,
        {name: len(task.splits[ranking.split]) for name, task in ranking.tasks.items()},
        {"search": "grid", "grid": [point.weight for point in points]},
    )
