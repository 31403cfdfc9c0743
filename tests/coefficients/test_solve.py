"""Convex problems on columns: against brute force, SciPy and finite differences."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from columns import columns_of, flat, tasks_of
from scipy.optimize import minimize as scipy_minimize

from tangora.coefficients.linear import LinearLogits
from tangora.coefficients.newton import Box, Expansion, minimize
from tangora.coefficients.solve import PULLS, _dealt, choose_l2, convex, minimax
from tangora.errors import ArgumentError, DataError, FusionError
from tangora.tangent import Columns


def mean_loss(columns, x):
    logits = LinearLogits(columns)
    return float(np.mean(logits.losses(torch.as_tensor(x, dtype=torch.float64))))


def test_losses_are_cross_entropy_with_every_example_counting_alike():
    one = columns_of("a", rows=4, vectors=("a",))
    one = replace(one, examples=torch.tensor([0, 1, 1, 2]))
    losses = torch.nn.functional.cross_entropy(one.logits(torch.tensor([0.5])), one.labels, reduction="none")
    expected = (losses[0] + (losses[1] + losses[2]) / 2 + losses[3]) / 3
    assert LinearLogits([one]).losses(torch.tensor([0.5], dtype=torch.float64))[0] == pytest.approx(float(expected))
    assert LinearLogits([one]).rows == {"a": 3}


@pytest.mark.parametrize("sites", [0, 3])
def test_derivatives_are_those_of_finite_differences(sites):
    logits = LinearLogits(tasks_of(2, sites=sites))
    x = torch.linspace(-0.5, 0.8, 2 * max(1, sites), dtype=torch.float64)
    step = 1e-5 * torch.eye(len(x), dtype=torch.float64)
    for i, here in enumerate(logits.expansions(x)):
        slope = [(logits.losses(x + s)[i] - logits.losses(x - s)[i]) / 2e-5 for s in step]
        torch.testing.assert_close(here.gradient, torch.tensor(slope, dtype=torch.float64), rtol=1e-6, atol=1e-8)
        up, down = ([logits.expansions(x + sign * s)[i].gradient for s in step] for sign in (1, -1))
        curve = torch.stack([(u - d) / 2e-5 for u, d in zip(up, down, strict=True)])
        torch.testing.assert_close(here.hessian, curve, rtol=1e-4, atol=1e-5)  # kept in single precision


def test_no_point_of_a_grid_is_better_than_convex():
    columns = tasks_of(2)
    found = convex(columns)
    grid = np.linspace(-1, 3, 41)
    best = min(mean_loss(columns, point) for point in itertools.product(grid, grid))
    assert found.loss <= best + 1e-12
    assert found.loss == pytest.approx(best, abs=4e-3)
    assert found.gap < 1e-8
    assert found.gradient < 1e-8


@pytest.mark.parametrize("options", [{}, {"nonnegative": True}, {"bound": 0.4}, {"l2": 0.3}, {"l1": 0.05}])
def test_convex_agrees_with_scipy(options):
    columns = tasks_of(3, harmful=True)
    l1, l2 = options.get("l1", 0.0), options.get("l2", 0.0)
    bound = options.get("bound", 3.0)

    def objective(z):  # x = u - v of magnitudes, so that |x| is smooth
        x = z[:3] - z[3:]
        return mean_loss(columns, x) + l1 * z.sum() + l2 / 2 * ((x - x.mean()) ** 2).sum()

    negative = 0.0 if options.get("nonnegative") else bound
    limits = [(0, bound)] * 3 + [(0, negative)] * 3
    expected = scipy_minimize(objective, np.full(6, 0.1), bounds=limits, options={"ftol": 1e-14, "gtol": 1e-9})
    found = convex(columns, **options)
    assert found.objective == pytest.approx(expected.fun, abs=1e-7)
    assert found.objective <= expected.fun + 1e-9
    np.testing.assert_allclose(found.weights, expected.x[:3] - expected.x[3:], atol=2e-3)
    assert found.gap < 1e-7


def test_l1_sets_a_vector_of_no_use_exactly_aside():
    columns = tasks_of(2, useless=True)
    assert convex(columns, l1=0.05).weights[-1] == 0.0
    assert convex(columns).weights[-1] != 0.0


def test_the_gap_bounds_what_any_point_could_gain():
    logits = LinearLogits(tasks_of(3))

    def function(x, expand):
        parts = logits.expansions(x)
        return Expansion(parts[0].value, parts[0].gradient, parts[0].hessian)

    start, box = torch.full((3,), 0.3, dtype=torch.float64), Box(-3.0, 3.0, 0.02)
    best = minimize(function, start, box).value
    for steps in range(3):
        early = minimize(function, start, box, steps=steps)
        assert early.steps == steps
        assert early.value - early.gap <= best + 1e-12
        assert early.gap > 1e-6
        assert early.gradient > 1e-6


def test_rows_that_can_be_separated_end_at_the_bound():
    easy = columns_of("a", rows=3, vectors=("a",), strength=50.0)
    found = convex([easy], bound=2.0)
    assert found.weights == [2.0]
    assert found.gap < 1e-8


def test_a_strong_pull_makes_sites_equal_and_none_lets_them_differ():
    by_site = tasks_of(2, sites=3)
    summed = [replace(c, sites=(), columns=c.columns.sum(1)) for c in by_site]
    together = convex(summed)
    pulled, free = convex(by_site, l2=1e6), convex(by_site)
    for row in pulled.weights.values():
        np.testing.assert_allclose(row, together.weights, atol=1e-3)
    assert free.loss < together.loss - 1e-3
    assert set(free.weights) == {"s0", "s1", "s2"}


def test_cross_validation_pulls_hard_where_sites_only_differ_by_noise():
    columns = tasks_of(2, sites=6, rows=16, noise=3.0)
    chosen = choose_l2(columns)
    assert chosen in PULLS
    fresh = tasks_of(2, sites=6, rows=200, noise=3.0, draw=1)
    auto, free = convex(columns, l2="auto"), convex(columns)
    assert auto.settings["l2"] == chosen > 0
    assert mean_loss(fresh, flat(auto)) < mean_loss(fresh, flat(free))


def test_one_row_a_task_can_be_cross_validated():
    assert choose_l2(tasks_of(2, rows=1)) in PULLS


def test_minimax_is_the_best_worst_task_of_a_grid():
    columns = tasks_of(2, noise=2.0)
    logits = LinearLogits(columns)
    own = [logits.losses(torch.eye(2, dtype=torch.float64)[i])[i] for i in range(2)]

    def worst(x):
        return max(a - b for a, b in zip(logits.losses(torch.tensor(x, dtype=torch.float64)), own, strict=True))

    found = minimax(columns)
    best = min(worst(point) for point in itertools.product(np.linspace(-0.5, 2, 51), repeat=2))
    assert found.loss == pytest.approx(worst(found.weights), abs=1e-5)
    assert found.loss <= best + found.gap
    assert found.gap < 1e-3
    assert found.loss < worst(convex(columns).weights)


def test_minimax_needs_the_tasks_own_experts():
    columns = [replace(c, vectors=("a", "other")) for c in tasks_of(2)]
    with pytest.raises(FusionError, match="needs each task's own expert, got 't0'"):
        minimax(columns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": 0.0}, "bound must be positive"),
        ({"bound": float("inf")}, "bound must be positive and finite"),
        ({"l1": -1.0}, "l1 must be finite and not negative"),
        ({"l2": -1.0}, "l2 must be finite and not negative"),
    ],
)
def test_settings_out_of_range(options, message):
    for solve in (convex, minimax):
        with pytest.raises(ArgumentError, match=message):
            solve(tasks_of(2), **options)


def test_columns_that_cannot_be_used():
    a, b = tasks_of(2)
    with pytest.raises(ArgumentError, match="nothing to find coefficients on"):
        convex([])
    with pytest.raises(FusionError, match="of different task vectors or sites"):
        convex([a, replace(b, vectors=("x", "y"))])
    with pytest.raises(FusionError, match="a logit is not finite at columns of task t0"):
        convex([replace(a, columns=a.columns * float("nan")), b])
    with pytest.raises(DataError, match="a label is not one of the 3 classes, got 7 at task t0"):
        convex([replace(a, labels=torch.full_like(a.labels, 7)), b])
    with pytest.raises(DataError, match="no rows to find coefficients on"):
        convex([a.rows(torch.tensor([], dtype=torch.int64)), b])


def test_the_record_of_a_solution():
    record = convex(tasks_of(2)).to_dict()
    assert {"search", "l2", "l1", "bounds", "loss", "objective", "gradient", "gap", "steps", "rows"} == record.keys()
    assert record["rows"] == {"t0": 20, "t1": 20}


def test_folds_hold_rows_of_every_class_and_whole_examples():
    labels = torch.arange(40) % 4  # in the split's order, of the folds' period
    rows = {"origin": torch.zeros(40, 4), "columns": torch.zeros(1, 40, 4), "labels": labels}
    task = Columns("t", "validation", ("t",), (), examples=torch.arange(40), fingerprint="", **rows)
    folds = _dealt(task, 4)
    for label in range(4):
        assert folds[labels == label].bincount(minlength=4).min() >= 2
    answers = replace(task, examples=torch.arange(40) // 3)
    folds = _dealt(answers, 4)
    assert all(len(folds[answers.examples == e].unique()) == 1 for e in range(14))
