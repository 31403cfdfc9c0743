"""LoraHub's search: one weight per task, without gradients."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from numbers import Integral

from tangora.coefficients import Objective
from tangora.errors import FusionError
from tangora.support.extras import require

__all__ = ["BOUND", "Evaluation", "Result", "search"]

BOUND = 1.5
"""The largest magnitude of a weight, unless another is given."""


@dataclass(frozen=True)
class Evaluation:
    """One call of the objective.

    Attributes:
        weights: what was tried.
        loss: what the objective returned; it may be infinite or NaN.
        value: what is minimized, ``loss + penalty · mean |w|``.
    """

    weights: tuple[float, ...]
    loss: float
    value: float


@dataclass(frozen=True)
class Result:
    """The best of the evaluated weights, its loss without the penalty, and every evaluation in order."""

    weights: tuple[float, ...]
    loss: float
    history: tuple[Evaluation, ...]


def search(
    objective: Objective,
    tasks: int,
    *,
    budget: int = 40,
    bound: float = BOUND,
    penalty: float = 0.05,
    seed: int = 42,
) -> Result:
    """Minimize ``objective(w) + penalty · mean |wₜ|`` over ``w ∈ [-bound, bound]^tasks``, from zero, with NGOpt.

    This is LoraHub (arXiv:2307.13269, section 3.3) with the defaults that arXiv:2310.04742 uses: Nevergrad's NGOpt,
    40 evaluations, bounds of 1.5, a penalty of 0.05 on the mean absolute weight.

    Choose it when tasks should weigh differently and there are too many for a grid. With few tasks, or a loss that
    one λ already serves, a grid is as good and cheaper.

    Departures: the answer is the best of the evaluated points (the first, where several are equal), so that the
    loss stated is the loss measured; Nevergrad's recommendation, which the reference takes, may be a point that
    was never evaluated. A loss that is not finite counts as worse than every finite one so far, and does not end
    the search. The objective has to be deterministic for the search to be.

    Args:
        objective: weights, one per task, to a loss.
        tasks: how many weights.
        budget: how often the objective is called, exactly.
        bound: the largest magnitude of a weight.
        penalty: times the mean magnitude, added to the loss.
        seed: the same seed and objective give the same result; global random states are left as they were.

    Raises:
        FusionError: an argument is out of range, or no evaluation had a finite loss.

    >>> found = search(lambda w: (w[0] - 0.5) ** 2 + (w[1] + 0.25) ** 2, 2, penalty=0.0)
    >>> [round(w, 1) for w in found.weights], len(found.history)
    ([0.5, -0.2], 40)
    """
    _check(tasks, budget, bound, penalty)
    require("search", purpose="the search lorahub")
    from tangora.coefficients._nevergrad import points  # deferred: an extra

    history: list[Evaluation] = []
    with closing(points(tasks, budget=budget, bound=bound, seed=seed)) as search_points:
        weights = next(search_points)
        while True:
            loss = float(objective(weights))
            history.append(Evaluation(weights, loss, loss + penalty * sum(map(abs, weights)) / tasks))
            try:
                weights = search_points.send(_told(history))
            except StopIteration:
                break
    finite = [e for e in history if math.isfinite(e.value)]
    if not finite:
        raise FusionError(
            f"no evaluation had a finite loss, in {budget}",
            got=history[0].loss,
            where="lorahub",
            fix="check the adapters and the validation data",
        )
    best = min(finite, key=lambda e: e.value)
    return Result(best.weights, best.loss, tuple(history))


def _told(history: list[Evaluation]) -> float:
    """The last value, or a finite one beyond every other: an infinite one would break a model of the loss."""
    if math.isfinite(history[-1].value):
        return history[-1].value
    finite = [e.value for e in history if math.isfinite(e.value)] or [0.0]
    return max(finite) + max(1.0, max(finite) - min(finite))


def _check(tasks: int, budget: int, bound: float, penalty: float) -> None:
    for name, value in (("tasks", tasks), ("budget", budget)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise FusionError(f"{name} must be a whole number, at least 1", got=value, where="lorahub")
    if not (bound > 0 and math.isfinite(bound)):
        raise FusionError("bound must be positive and finite", got=bound, where="lorahub", fix="such as 1.5")
    if not (penalty >= 0 and math.isfinite(penalty)):
        raise FusionError("penalty must be finite and not negative", got=penalty, where="lorahub", fix="such as 0.05")
