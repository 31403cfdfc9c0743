"""LoraHub's search: one weight per task, without gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from tangora.coefficients.found import DIGITS, Found
from tangora.coefficients.problem import silent
from tangora.errors import ArgumentError, FusionError

__all__ = ["BOUND", "lorahub"]

BOUND = 1.5
"""The largest magnitude of a weight, unless another is given."""

_FIRST_STEP = 1 / 3  # of the bound: from zero, COBYLA first looks this far along each axis


@dataclass(frozen=True)
class _Evaluation:
    """One call of the loss, which may be infinite or NaN, and the value that is minimized: loss and penalty."""

    weights: tuple[float, ...]
    loss: float
    value: float


def lorahub(
    loss: Callable[[list[float]], float],
    tasks: int,
    *,
    budget: int = 40,
    bound: float = BOUND,
    penalty: float = 0.05,
    rows: Mapping[str, int] | None = None,
    on_step: Callable[[int, int, str], None] = silent,
) -> Found:
    """Minimize ``loss(w) + penalty · mean |wₜ|`` over ``w ∈ [-bound, bound]^tasks``, from zero, without gradients.

    This is LoraHub (arXiv:2307.13269, section 3.3) with the defaults of arXiv:2310.04742: 40 evaluations, bounds of
    1.5, a penalty of 0.05 on the mean absolute weight. The optimizer is COBYLA (Powell 1994; SciPy's), which fits a
    linear model to the best points and moves within a trust region. NGOpt of Nevergrad, LoraHub's optimizer, selects it
    at this budget. It is deterministic.

    Choose it if tasks need different weights and are too many for a grid, or if the method or the space has no
    gradient. With few tasks, or if one λ is enough, a grid is as good and cheaper.

    Departures: the result is the best of the evaluated points (the first of equal ones), so that the stated loss is
    the measured one; the reference uses Nevergrad's recommendation. A loss that is not finite counts as worse than
    every finite one so far, and does not end the search. With larger budgets NGOpt would select other optimizers.

    Args:
        loss: a deterministic function from weights, one per task, to a loss.
        tasks: number of weights.
        budget: the largest number of calls of the loss; the search ends earlier if steps fall to 1e-4.
        bound: the largest magnitude of a weight.
        penalty: factor of the mean magnitude, which is added to the loss.
        rows: task -> number of rows that the loss uses, for the record.
        on_step: called after each evaluation, see `Problem`.

    Raises:
        ArgumentError: an argument is out of range.
        FusionError: no evaluation had a finite loss.

    >>> found = lorahub(lambda w: (w[0] - 0.5) ** 2 + (w[1] + 0.25) ** 2, 2, penalty=0.0)
    >>> [round(w, 2) for w in found.weights], found.steps <= 40
    ([0.5, -0.25], True)
    """
    _check(tasks, budget, bound, penalty)
    began, history = time.perf_counter(), list[_Evaluation]()

    def value(point: Sequence[float]) -> float:
        if len(history) == budget:  # SciPy needs at least size + 2 values; those beyond the budget cost nothing
            return _finite(history)
        # COBYLA may leave the box. Clip and round first, so that the evaluated weights are the saved ones.
        weights = [round(min(max(float(w), -bound), bound), DIGITS) + 0.0 for w in point]
        reached = float(loss(weights))
        history.append(_Evaluation(tuple(weights), reached, reached + penalty * sum(map(abs, weights)) / tasks))
        on_step(len(history), budget, f"loss {reached:.4g}")
        return _finite(history)

    _minimize(value, tasks, budget, bound)
    finite = [e for e in history if math.isfinite(e.value)]
    if not finite:
        what, fix = f"no evaluation had a finite loss, in {len(history)}", "check the adapters and the validation data"
        raise FusionError(what, got=history[0].loss, where="lorahub", fix=fix)
    best = min(finite, key=lambda e: e.value)
    settings = {"search": "lorahub", "budget": budget, "penalty": penalty, "bounds": [-bound, bound]}
    seconds, counts = time.perf_counter() - began, dict(rows or {})
    return Found(list(best.weights), best.loss, best.value, None, None, len(history), seconds, counts, settings)


def _minimize(value: Callable[[Any], float], size: int, budget: int, bound: float) -> None:
    """Call ``value`` at COBYLA's points, until the budget is spent or its steps are small."""
    from scipy.optimize import minimize  # deferred: half a second

    minimize(
        value,
        [0.0] * size,
        method="COBYLA",
        bounds=[(-bound, bound)] * size,
        options={"rhobeg": _FIRST_STEP * bound, "maxiter": max(budget, size + 2)},
    )


def _finite(history: Sequence[_Evaluation]) -> float:
    """Return the last value, or a finite one above all others: an infinite one would break COBYLA's model."""
    if math.isfinite(history[-1].value):
        return history[-1].value
    finite = [e.value for e in history if math.isfinite(e.value)] or [0.0]
    return max(finite) + max(1.0, max(finite) - min(finite))


def _check(tasks: int, budget: int, bound: float, penalty: float) -> None:
    for name, value in (("tasks", tasks), ("budget", budget)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ArgumentError(f"{name} must be a whole number, at least 1", got=value, where="lorahub")
    if not (bound > 0 and math.isfinite(bound)):
        raise ArgumentError("bound must be positive and finite", got=bound, where="lorahub", fix="such as 1.5")
    if not (penalty >= 0 and math.isfinite(penalty)):
        raise ArgumentError("penalty must be finite and not negative", got=penalty, where="lorahub", fix="such as 0.05")
