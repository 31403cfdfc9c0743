"""The plane of two task vectors: disentanglement error and joint loss on models that can be worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tangora.analysis import disentanglement_error, grid, joint_loss, over_unit_square, survey
from tangora.errors import ArgumentError
from tangora.evaluation.evaluator import Result

GRID = grid(3, 1.0)


def linear(inputs: dict[str, torch.Tensor], vectors: dict[str, torch.Tensor], start: torch.Tensor):
    """A model linear in φ [classes, features]: its gradient features on a row are the row itself."""

    def answer(coefficients):
        phi = start + sum(c * v for c, v in zip(coefficients, vectors.values(), strict=True))
        found = {}
        for task, x in inputs.items():
            logits = x @ phi.T
            loss = cross_entropy(logits, torch.zeros(len(x), dtype=torch.int64))
            found[task] = Result(0.0, float(loss), logits.argmax(1).tolist())
        return found

    return answer


def apart(seed: int = 0):
    """Two tasks with inputs in separate halves of six features, and task vectors that live in one half each."""
    draw = torch.Generator().manual_seed(seed)
    first, second = torch.zeros(40, 6), torch.zeros(40, 6)
    first[:, :3], second[:, 3:] = torch.randn(40, 3, generator=draw), torch.randn(40, 3, generator=draw)
    one, other = torch.zeros(4, 6), torch.zeros(4, 6)
    one[:, :3], other[:, 3:] = torch.randn(4, 3, generator=draw), torch.randn(4, 3, generator=draw)
    start = torch.randn(4, 6, generator=draw)
    return {"a": first, "b": second}, {"a": one, "b": other}, start


def test_orthogonal_gradient_features_disentangle_everywhere():
    inputs, vectors, start = apart()
    plane = survey(linear(inputs, vectors, start), ("a", "b"), GRID)
    zero = GRID.index(0.0)
    assert any(plane.results["a"][i][zero].values != plane.results["a"][zero][zero].values for i in range(len(GRID)))
    assert np.array_equal(disentanglement_error(plane), np.zeros((len(GRID), len(GRID))))


def test_features_that_are_shared_do_not():
    inputs, vectors, start = apart()
    mixed = {"a": inputs["a"] + inputs["b"], "b": inputs["b"]}  # only the first task sees the second vector
    error = disentanglement_error(survey(linear(mixed, vectors, start), ("a", "b"), GRID))
    zero = GRID.index(0.0)
    assert error[:, zero].tolist() == [0.0] * len(GRID)  # λ₂ = 0 changes nothing for the first task
    assert error[zero, zero] == 0
    assert error.max() > 0.2


def test_the_definition_word_by_word():
    draw = np.random.default_rng(0)
    answers = {task: draw.integers(0, 3, (2, 2, 50)) for task in ("a", "b")}

    def answer(coefficients):
        i, j = (int(c) for c in coefficients)
        return {task: Result(0.0, 0.0, [f"word {v}" for v in values[i, j]]) for task, values in answers.items()}

    error = disentanglement_error(survey(answer, ("a", "b"), (0.0, 1.0)))
    a, b = answers["a"], answers["b"]
    expected = [
        [0.0, (a[0, 1] != a[0, 0]).mean()],
        [(b[1, 0] != b[0, 0]).mean(), (a[1, 1] != a[1, 0]).mean() + (b[1, 1] != b[0, 1]).mean()],
    ]
    np.testing.assert_allclose(error, expected)


def test_every_point_is_asked_for_once_and_kept_in_its_place():
    asked = []

    def answer(coefficients):
        asked.append(coefficients)
        return {task: Result(0.0, 10 * coefficients[0] + coefficients[1], [0]) for task in ("a", "b")}

    heard = []
    plane = survey(answer, ("a", "b"), (0.0, 0.5, 1.0), on_point=lambda: heard.append(1))
    assert len(asked) == len(set(asked)) == len(heard) == 9
    assert joint_loss(plane).tolist() == [[10 * x + y for y in (0.0, 0.5, 1.0)] for x in (0.0, 0.5, 1.0)]


def test_the_joint_loss_is_the_mean_of_the_two():
    inputs, vectors, start = apart()
    plane = survey(linear(inputs, vectors, start), ("a", "b"), (0.0, 1.0))
    phi = start + vectors["a"]
    losses = [float(cross_entropy(x @ phi.T, torch.zeros(40, dtype=torch.int64))) for x in inputs.values()]
    assert joint_loss(plane)[1, 0] == pytest.approx(sum(losses) / 2)


@pytest.mark.parametrize(
    ("points", "margin", "expected"),
    [(2, 0.0, (0, 1)), (6, 0.4, tuple(k / 5 for k in range(-2, 8))), (4, 0.5, (-1 / 3, 0, 1 / 3, 2 / 3, 1, 4 / 3))],
)
def test_the_grid_has_0_and_1(points, margin, expected):
    assert grid(points, margin) == pytest.approx(expected)
    assert {0.0, 1.0} <= set(grid(points, margin))


def test_the_unit_square():
    values = np.arange(16.0).reshape(4, 4)
    assert over_unit_square(values, (-1.0, 0.0, 1.0, 2.0)) == (5 + 6 + 9 + 10) / 4


def test_bad_input():
    with pytest.raises(ArgumentError, match=r"at least 2 points on \[0, 1\], got 1 at --points"):
        grid(1)
    for margin in (-0.1, math.nan):
        with pytest.raises(ArgumentError, match="margin must be in"):
            grid(3, margin)
    plane = survey(lambda c: {t: Result(0.0, 0.0, [0]) for t in ("a", "b")}, ("a", "b"), (0.5, 1.0))
    with pytest.raises(ArgumentError, match="must have 0"):
        disentanglement_error(plane)
