"""LoraHub's search."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tangora.coefficients.found import Found
from tangora.coefficients.lorahub import lorahub
from tangora.errors import ArgumentError, FusionError

TARGET = (0.75, -0.5, 0.25)


def quadratic(weights: Sequence[float]) -> float:
    return sum((w - t) ** 2 for w, t in zip(weights, TARGET, strict=False))


def recorded(loss: Callable[[list[float]], float], tasks: int, **options: Any) -> tuple[Found, list[list[float]]]:
    """The result, and the points in the order of their evaluation."""
    points: list[list[float]] = []

    def listening(weights: list[float]) -> float:
        points.append(weights)
        return loss(weights)

    return lorahub(listening, tasks, **options), points


def test_finds_a_minimum() -> None:
    found = lorahub(quadratic, 3, penalty=0.0)
    assert found.loss < 1e-4 < quadratic((0, 0, 0))
    assert found.weights == pytest.approx(TARGET, abs=0.01)
    assert found.loss == quadratic(found.weights)


def test_starts_at_zero() -> None:
    assert recorded(quadratic, 3, budget=5)[1][0] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("budget", [1, 2, 7, 40])
@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_the_budget_is_kept_and_used_while_there_is_something_to_gain(tasks: int, budget: int) -> None:
    found, points = recorded(lambda weights: sum((w - 0.3) ** 2 for w in weights), tasks, budget=budget)
    assert found.steps == len(points) <= budget
    assert len(points) == budget or found.objective < 0.05 * 0.3 + 1e-4
    assert all(len(w) == tasks for w in points)


def test_no_more_is_evaluated_than_there_is_to_gain() -> None:
    assert lorahub(quadratic, 2, budget=1000).steps < 100


def test_bounds_are_kept() -> None:
    found, points = recorded(lambda w: -sum(w), 3, bound=0.4, penalty=0.0)
    assert np.abs(np.array(points)).max() <= 0.4
    assert found.weights == pytest.approx((0.4, 0.4, 0.4), abs=0.01)


def test_it_draws_nothing_at_random_and_repeats() -> None:
    before, plain = np.random.get_state(), random.getstate()
    first, points = recorded(quadratic, 3, budget=20)
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert random.getstate() == plain
    again, same = recorded(quadratic, 3, budget=20)
    assert (again.weights, again.loss, same) == (first.weights, first.loss, points)


def test_the_penalty_counts() -> None:
    found, points = recorded(quadratic, 3, budget=10, penalty=0.5)
    values = [quadratic(w) + 0.5 * sum(map(abs, w)) / 3 for w in points]
    assert found.objective == pytest.approx(min(values))
    assert found.weights == points[int(np.argmin(values))]
    assert found.loss == quadratic(found.weights)


def test_a_large_penalty_keeps_the_weights_at_zero() -> None:
    assert lorahub(quadratic, 3, penalty=100.0).weights == [0.0, 0.0, 0.0]
    assert lorahub(lambda w: 1.0, 2, budget=10).weights == [0.0, 0.0]


def test_the_result_is_the_best_evaluated_point() -> None:
    def rough(weights: Sequence[float]) -> float:
        return quadratic(weights) + (hash(tuple(weights)) % 97) / 50

    found, points = recorded(rough, 3, penalty=0.0)
    assert found.weights == min(points, key=rough)
    assert found.loss == rough(found.weights)


def test_the_first_of_equal_points_is_taken() -> None:
    found, points = recorded(lambda w: 1.0, 2, budget=10, penalty=0.0)
    assert found.weights == points[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_losses_that_are_not_finite_never_win(bad: float) -> None:
    found, points = recorded(lambda w: bad if w[0] > 0.4 else quadratic(w), 2, penalty=0.0)
    assert any(w[0] > 0.4 for w in points)
    assert found.weights[0] <= 0.4
    assert found.loss < quadratic((0, 0))


def test_a_first_loss_that_is_not_finite() -> None:
    found = lorahub(lambda w: float("inf") if w == [0.0, 0.0] else quadratic(w), 2, budget=15)
    assert np.isfinite(found.loss)


def test_no_finite_loss_at_all() -> None:
    with pytest.raises(FusionError, match="no evaluation had a finite loss, in 5, got nan at lorahub"):
        lorahub(lambda w: float("nan"), 2, budget=5)


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

    with pytest.raises(ArgumentError, match=message):
        lorahub(objective, **arguments)


def test_an_exception_passes_and_leaves_no_thread() -> None:
    def fail(weights: Sequence[float]) -> float:
        if any(weights):
            raise KeyboardInterrupt
        return 1.0

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        lorahub(fail, 3)
    assert set(threading.enumerate()) <= before


def test_every_evaluation_is_reported() -> None:
    steps: list[tuple[int, int]] = []
    lorahub(quadratic, 3, budget=5, on_step=lambda done, total, detail: steps.append((done, total)))
    assert steps == [(i, 5) for i in range(1, 6)]


def test_scipy_is_imported_when_it_is_needed() -> None:
    code = "import sys, tangora.coefficients.searches.lorahub, tangora.coefficients.grid\nprint('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
