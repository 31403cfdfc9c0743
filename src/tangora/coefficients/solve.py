"""Solve for coefficients of tangent models, for the mean cross-entropy (`convex`) or the worst task (`minimax`).

Their logits are linear in the coefficients, so both problems are convex. A solution comes with a certificate: the norm
of the projected gradient, and a bound on how much better other coefficients within the limits could be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangora.coefficients.found import Found, as_weights
from tangora.coefficients.linear import LinearLogits
from tangora.coefficients.logits import own_coefficients
from tangora.coefficients.newton import Box, Expansion, Minimum, minimize
from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.tangent.columns import Columns

__all__ = ["BOUND", "PULLS", "START", "box", "choose_l2", "convex", "minimax"]

BOUND = 3.0
"""The largest magnitude of a coefficient. Without it, coefficients diverge if rows can be separated."""

START = 0.3
"""The start of a search: a usual single coefficient of task arithmetic, and AdaMerging's start."""

PULLS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The values of ``l2`` that `choose_l2` compares."""

_TEMPERATURES = (1.0, 0.1, 0.01, 0.001)  # of the smooth maximum, in nats

Objective = Callable[[Tensor, bool], Expansion]


def convex(
    columns: Sequence[Columns],
    *,
    l2: float | Literal["auto"] = 0.0,
    l1: float = 0.0,
    nonnegative: bool = False,
    bound: float = BOUND,
) -> Found:
    """Find the coefficients of least cross-entropy on labelled rows: a convex problem, solved by Newton's method.

    ``min_c (1/T) sum_t mean_i CE(f(x_ti; phi_0) + sum_k c_k J(x_ti) nu_k, y_ti) + l2/2 |c - mean c|^2 + l1 |c|_1``,
    with equal weight for every task. The L2 term pulls coefficients towards their mean: with a coefficient per site, a
    task's coefficients towards their mean over the sites; with one per task, all of them towards one number.

    Choose it for tangent adapters with some labelled rows (8 per task suffice for one coefficient per task): no other
    coefficients are better on these rows. With a coefficient per site, use ``l2`` of 1e-2 or ``"auto"``.

    Args:
        columns: of each task, on the rows to use.
        l2: the pull; ``"auto"`` chooses among `PULLS` by cross-validation on the same rows.
        l1: penalty on magnitudes; larger values set coefficients of some task vectors to zero.
        nonnegative: forbid negative coefficients.
        bound: the largest magnitude. Few rows can often be separated; then only the bound keeps the solution finite.

    Raises:
        ArgumentError: a setting is out of range.
        FusionError: columns do not belong together or are not finite.
        DataError: a task without rows, or a label out of range.

    >>> from tangora.tangent.columns import Columns
    >>> slope = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    >>> rows = {"origin": torch.zeros(3, 2), "labels": torch.tensor([0, 0, 1]), "examples": torch.arange(3)}
    >>> one = Columns("t", "validation", ("t",), (), columns=slope, fingerprint="", **rows)
    >>> found = convex([one])  # two of three rows: the odds exp(c) are 2
    >>> found.weights, found.gap < 1e-9
    ([0.693147], True)
    """
    began, limits = time.perf_counter(), box(bound, nonnegative, l1)
    logits = LinearLogits(columns)
    pull = choose_l2(columns, l1=l1, nonnegative=nonnegative, bound=bound) if l2 == "auto" else _checked_l2(l2)
    objective = _with_pull(partial(_mean, logits), logits.shape, pull)
    solved = minimize(objective, _start(logits), limits)
    loss = sum(logits.losses(solved.x)) / len(logits.tasks)
    settings = {"search": "convex", "l2": pull, "l1": l1, "bounds": [limits.lower, limits.upper]}
    return _result(logits, solved, loss, solved.value, solved.gap, solved.steps, began, settings)


def minimax(
    columns: Sequence[Columns],
    *,
    l2: float = 0.0,
    l1: float = 0.0,
    nonnegative: bool = False,
    bound: float = BOUND,
) -> Found:
    """Find the coefficients that minimize the largest excess of a task's cross-entropy over that of its own expert.

    ``min_c max_t [CE_t(c) - CE_t(e_t)]``, with the penalties of `convex`. A fusion with excess e keeps a share
    ``exp(-e)`` of the likelihood that the expert gives the right answers (the geometric mean over rows). So the
    objective is a normalized score with likelihood in place of accuracy, which makes it convex. The minimized function
    is ``tau log sum_t exp(e_t / tau)``, with tau from 1 to 0.001. It exceeds the maximum by at most ``tau log T``; the
    reported gap includes that.

    Choose it if no task may fall behind; on average `convex` is better.

    Args:
        columns: of each task, on the rows to use; each task's own vector must be among the vectors.
        l2, l1, nonnegative, bound: see `convex`.

    Raises:
        FusionError: as `convex`, or a task has no vector of its own.
        DataError: as `convex`.

    >>> from tangora.tangent.columns import Columns
    >>> slope = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    >>> rows = {"origin": torch.zeros(3, 2), "labels": torch.tensor([0, 0, 1]), "examples": torch.arange(3)}
    >>> found = minimax([Columns("t", "validation", ("t",), (), columns=slope, fingerprint="", **rows)])
    >>> found.weights, round(found.loss, 4)  # better than the expert's own coefficient of 1
    ([0.693147], -0.0101)
    """
    began, limits = time.perf_counter(), box(bound, nonnegative, l1)
    logits = LinearLogits(columns)
    experts = [own_coefficients(logits, task).double().reshape(-1) for task in logits.tasks]
    own = [logits.losses(expert)[i] for i, expert in enumerate(experts)]
    x, steps, pull = _start(logits), 0, _checked_l2(l2)
    # From smooth to sharp, each starting at the last solution: from scratch at the lowest temperature, steps are tiny.
    for temperature in _TEMPERATURES:
        smooth = _smooth_maximum(logits, own, temperature)
        tolerance = 1e-9 if temperature == _TEMPERATURES[-1] else 1e-4
        solved = minimize(_with_pull(smooth, logits.shape, pull), x, limits, tolerance=tolerance)
        x, steps = solved.x, steps + solved.steps
    worst = max(loss - mine for loss, mine in zip(logits.losses(x), own, strict=True))
    objective = solved.value - smooth(x, False).value + worst
    settings = {"search": "minimax", "l2": pull, "l1": l1, "bounds": [limits.lower, limits.upper]}
    gap = solved.gap + temperature * math.log(len(own))
    return _result(logits, solved, worst, objective, gap, steps, began, settings)


def choose_l2(
    columns: Sequence[Columns],
    *,
    folds: int = 4,
    l1: float = 0.0,
    nonnegative: bool = False,
    bound: float = BOUND,
) -> float:
    """Return the value of `PULLS` with the least cross-entropy on held-out rows, the largest of equal ones.

    The rows of a task are dealt to the folds class by class; all lines of one example go to the same fold. A task with
    too few rows has as many folds as rows, and a single row is never held out.
    """
    limits = box(bound, nonnegative, l1)
    held_out = dict.fromkeys(PULLS, 0.0)
    for fold in range(folds):
        outside = [_dealt(c, folds) == fold for c in columns]
        if not any(bool(o.any()) and not bool(o.all()) for o in outside):
            continue
        pairs = list(zip(columns, outside, strict=True))
        kept = LinearLogits([c.rows((~o).nonzero()[:, 0]) if not bool(o.all()) else c for c, o in pairs])
        tested = LinearLogits([c.rows(o.nonzero()[:, 0]) for c, o in pairs if bool(o.any()) and not bool(o.all())])
        x = _start(kept)
        # From strong to weak, each starting at the last solution, since neighbouring solutions are close.
        for pull in PULLS[::-1]:
            solved = minimize(_with_pull(partial(_mean, kept), kept.shape, pull), x, limits)
            x = solved.x
            held_out[pull] += sum(tested.losses(x)) / len(tested.tasks)
    return min(PULLS[::-1], key=held_out.__getitem__)


def _dealt(columns: Columns, folds: int) -> Int[Tensor, " lines"]:
    """Return the fold of each line; labelled rows are dealt class by class, so that every fold has all classes."""
    examples, which = columns.examples.unique(return_inverse=True)
    position: Tensor = which
    if len(examples) == len(which):  # else lines are tokens of answers, which have no class
        position = torch.empty_like(which)
        position[columns.labels.argsort(stable=True)] = torch.arange(len(which))
    return position.remainder(folds)


def box(bound: float, nonnegative: bool, l1: float = 0.0) -> Box:
    """Return the bounds and the penalty of coefficients.

    Raises:
        ArgumentError: the bound is not positive and finite, or l1 is negative or not finite.
    """
    if not (bound > 0 and math.isfinite(bound)):
        raise ArgumentError("bound must be positive and finite", got=bound, where="coefficients", fix="such as 3")
    if not (l1 >= 0 and math.isfinite(l1)):
        raise ArgumentError("l1 must be finite and not negative", got=l1, where="coefficients", fix="such as 0.01")
    return Box(0.0 if nonnegative else -bound, bound, l1)


def _checked_l2(l2: float) -> float:
    if not (l2 >= 0 and math.isfinite(l2)):
        raise ArgumentError("l2 must be finite and not negative", got=l2, where="coefficients", fix="such as 0.01")
    return float(l2)


def _start(logits: LinearLogits) -> Float[Tensor, " k"]:
    return torch.full((math.prod(logits.shape),), START, dtype=torch.float64)


def _mean(logits: LinearLogits, x: Tensor, expand: bool) -> Expansion:
    count = len(logits.tasks)
    if not expand:
        return Expansion(sum(logits.losses(x)) / count)
    parts = logits.expansions(x)
    gradient = torch.stack([_gradient(p) for p in parts]).mean(0)
    hessian = torch.stack([_hessian(p) for p in parts]).mean(0)
    return Expansion(sum(p.value for p in parts) / count, gradient, hessian)


def _smooth_maximum(logits: LinearLogits, own: Sequence[float], temperature: float) -> Objective:
    mine = torch.tensor(own, dtype=torch.float64)

    def function(x: Tensor, expand: bool) -> Expansion:
        parts = logits.expansions(x) if expand else [Expansion(v) for v in logits.losses(x)]
        scaled = (torch.tensor([p.value for p in parts], dtype=torch.float64) - mine) / temperature
        value = temperature * float(scaled.logsumexp(0))
        if not expand:
            return Expansion(value)
        share = scaled.softmax(0)
        each = torch.stack([_gradient(p) for p in parts])
        gradient = share @ each
        hessian = torch.stack([s * _hessian(p) for s, p in zip(share, parts, strict=True)]).sum(0)
        spread = each - gradient
        return Expansion(value, gradient, hessian + spread.T @ (share[:, None] * spread) / temperature)

    return function


def _with_pull(function: Objective, shape: tuple[int, ...], l2: float) -> Objective:
    """Return the function plus ``l2/2 |x - mean x|^2``, with the mean over the last axis of ``shape``."""
    if l2 == 0:
        return function
    size = shape[-1]
    centering = torch.eye(size, dtype=torch.float64) - 1.0 / size
    penalty = l2 * torch.block_diag(*[centering] * math.prod(shape[:-1]))

    def penalized(x: Tensor, expand: bool) -> Expansion:
        here, pulled = function(x, expand), penalty @ x
        value = here.value + 0.5 * float(x @ pulled)
        return Expansion(value, _gradient(here) + pulled, _hessian(here) + penalty) if expand else Expansion(value)

    return penalized


def _gradient(expansion: Expansion) -> Tensor:
    assert expansion.gradient is not None
    return expansion.gradient


def _hessian(expansion: Expansion) -> Tensor:
    assert expansion.hessian is not None
    return expansion.hessian


def _result(
    logits: LinearLogits,
    solved: Minimum,
    loss: float,
    objective: float,
    gap: float,
    steps: int,
    began: float,
    settings: dict[str, Any],
) -> Found:
    weights = as_weights(solved.x.reshape(logits.shape), logits.sites)
    seconds = time.perf_counter() - began
    return Found(weights, loss, objective, solved.gradient, gap, steps, seconds, logits.rows, settings)
