"""LoraHub's search."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tangora.coefficients.lorahub import Evaluation, search
from tangora.errors import FusionError

TARGET = (0.75, -0.5, 0.25)


def quadratic(weights: Sequence[float]) -> float:
    return sum((w - t) ** 2 for w, t in zip(weights, TARGET, strict=False))


def test_finds_a_minimum() -> None:
    found = search(quadratic, 3, penalty=0.0)
    assert found.loss < 0.01 < quadratic((0, 0, 0))
    assert found.weights == pytest.approx(TARGET, abs=0.1)
    assert found.loss == quadratic(found.weights)


def test_starts_at_zero() -> None:
    assert search(quadratic, 3, budget=5).history[0].weights == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("budget", [1, 2, 7, 40])
@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_budget_is_used_exactly(tasks: int, budget: int) -> None:
    calls = []

    def objective(weights: Sequence[float]) -> float:
        calls.append(tuple(weights))
        return sum(w * w for w in weights)

    found = search(objective, tasks, budget=budget)
    assert len(calls) == budget
    assert [e.weights for e in found.history] == calls
    assert all(len(w) == tasks for w in calls)


def test_bounds_are_kept() -> None:
    found = search(lambda w: -sum(w), 3, bound=0.4, penalty=0.0)
    tried = np.array([e.weights for e in found.history])
    assert np.abs(tried).max() <= 0.4
    assert found.weights == pytest.approx((0.4, 0.4, 0.4), abs=0.01)


def test_the_same_seed_gives_the_same_search() -> None:
    assert search(quadratic, 3, budget=20) == search(quadratic, 3, budget=20)


@pytest.mark.parametrize(("tasks", "budget"), [(1, 60), pytest.param(3, 151, marks=pytest.mark.slow)])
def test_large_budgets_repeat_too(tasks: int, budget: int) -> None:
    """Beyond 50 evaluations a weight NGOpt fits a surrogate (at 1) or runs CMA-ES too (at 3), which draw at random."""
    np.random.seed(0)
    first = search(quadratic, tasks, budget=budget, seed=1)
    np.random.seed(1)
    assert search(quadratic, tasks, budget=budget, seed=1) == first
    assert search(quadratic, tasks, budget=budget, seed=2) != first
    assert len(first.history) == budget


@pytest.mark.parametrize("budget", [12, 70])
def test_global_random_states_are_left_alone(budget: int) -> None:
    before, plain = np.random.get_state(), random.getstate()
    search(quadratic, 1, budget=budget)
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert random.getstate() == plain


def test_the_penalty_counts() -> None:
    found = search(quadratic, 3, budget=10, penalty=0.5)
    for e in found.history:
        assert e.value == pytest.approx(e.loss + 0.5 * sum(map(abs, e.weights)) / 3)
    assert found.loss == min(found.history, key=lambda e: e.value).loss


def test_a_large_penalty_keeps_the_weights_at_zero() -> None:
    assert search(quadratic, 3, penalty=100.0).weights == (0.0, 0.0, 0.0)
    assert search(lambda w: 1.0, 2, budget=10).weights == (0.0, 0.0)


def test_the_answer_is_the_best_evaluated_point() -> None:
    """Not a recommendation between points: on a rough loss that could be anything."""
    found = search(lambda w: quadratic(w) + (hash(w) % 97) / 50, 3)
    best = min(found.history, key=lambda e: e.value)
    assert (found.weights, found.loss) == (best.weights, best.loss)


def test_the_first_of_equal_points_is_taken() -> None:
    found = search(lambda w: 1.0, 2, budget=10, penalty=0.0)
    assert found.weights == found.history[0].weights


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_losses_that_are_not_finite_never_win(bad: float) -> None:
    found = search(lambda w: bad if w[0] > 0.4 else quadratic(w), 2, penalty=0.0)
    assert any(not np.isfinite(e.loss) for e in found.history)
    assert found.weights[0] <= 0.4
    assert found.loss < quadratic((0, 0))


def test_a_first_loss_that_is_not_finite() -> None:
    found = search(lambda w: float("inf") if w == (0.0, 0.0) else quadratic(w), 2, budget=15)
    assert isinstance(found.history[0], Evaluation)
    assert found.history[0].loss == float("inf")
    assert np.isfinite(found.loss)


def test_no_finite_loss_at_all() -> None:
    with pytest.raises(FusionError, match="no evaluation had a finite loss, in 5, got nan at lorahub"):
        search(lambda w: float("nan"), 2, budget=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": 0}, "tasks must be a whole number, at least 1, got 0"),
        ({"tasks": 2.0}, "tasks must be a whole number"),
        ({"tasks": 2, "budget": 0}, "budget must be a whole number, at least 1, got 0"),
        ({"tasks": 2, "budget": True}, "budget must be a whole number"),
        ({"tasks": 2, "bound": 0}, "bound must be positive and finite, got 0"),
        ({"tasks": 2, "bound": float("nan")}, "bound must be positive"),
        ({"tasks": 2, "bound": float("inf")}, "bound must be positive and finite"),
        ({"tasks": 2, "penalty": -0.1}, "penalty must be finite and not negative, got -0.1"),
        ({"tasks": 2, "penalty": float("nan")}, "penalty must be finite"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    def objective(weights: Sequence[float]) -> float:
        raise AssertionError("not to be called")

    with pytest.raises(FusionError, match=message):
        search(objective, **arguments)


def fail(weights: Sequence[float]) -> float:
    if any(weights):
        raise KeyboardInterrupt
    return 1.0


def test_an_interrupt_passes_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        search(fail, 3)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_failing_objective_does_not_keep_the_process_alive() -> None:
    code = "from tangora.coefficients.lorahub import search\nsearch(lambda w: 1 / (w[0] == 0), 2)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert "ZeroDivisionError" in ended.stderr
    assert ended.returncode == 1


def test_nevergrad_is_imported_when_it_is_needed() -> None:
    code = "import sys, tangora.coefficients.lorahub, tangora.coefficients.grid\nprint('nevergrad' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
