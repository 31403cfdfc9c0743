"""Grids of coefficients."""

from __future__ import annotations

from typing import Any

import pytest

from tangora.coefficients.grid import GridPoint, candidates, select
from tangora.errors import ArgumentError, FusionError, RecipeError


def points(grid: list[GridPoint]) -> list[tuple[Any, ...]]:
    return [(c.index, c.weight, *c.parameters.values()) for c in grid]


def test_one_of_everything() -> None:
    (only,) = candidates(0.3, {"density": 0.2})
    assert only == GridPoint(0, 0.3, {"density": 0.2})


def test_no_parameters() -> None:
    assert points(candidates([0.5, 1])) == [(0, 0.5), (1, 1.0)]
    assert candidates(1)[0].parameters == {}


def test_product_in_order() -> None:
    grid = candidates([0.0, 1.0], {"density": [0.1, 0.2], "mode": ["a", "b"]})
    assert points(grid)[:5] == [
        (0, 0.0, 0.1, "a"),
        (1, 1.0, 0.1, "a"),
        (2, 0.0, 0.1, "b"),
        (3, 1.0, 0.1, "b"),
        (4, 0.0, 0.2, "a"),
    ]
    assert [c.index for c in grid] == list(range(8))


def test_text_is_one_value() -> None:
    assert [c.parameters["mode"] for c in candidates(1, {"mode": "mean"})] == ["mean"]


def test_tuples_are_lists() -> None:
    assert points(candidates((0.1, 0.2), {"density": (0.5,)})) == [(0, 0.1, 0.5), (1, 0.2, 0.5)]


def test_nearly_equal_weights_stay_apart() -> None:
    """Two weights that differ in the last bit, or not at all, are two candidates; the index tells them apart."""
    grid = candidates([0.1 + 0.2, 0.3, 0.3])
    assert len(grid) == 3
    assert select(grid, [0.0, 0.0, 1.0]).index == 2


def test_parameters_are_read_only() -> None:
    (only,) = candidates(1, {"density": 0.2})
    with pytest.raises(TypeError):
        only.parameters["density"] = 0.5  # type: ignore[index]


@pytest.mark.parametrize(("weights", "parameters"), [([], {}), (1, {"density": []})])
def test_an_empty_axis(weights: Any, parameters: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="a grid needs at least one value"):
        candidates(weights, parameters)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "0.3", None, True, [0.1, 0.2]])
def test_a_weight_that_is_no_number(weight: Any) -> None:
    with pytest.raises(RecipeError, match="a weight must be a finite number, got"):
        candidates([0.3, weight])


def test_select_takes_the_highest() -> None:
    assert select(candidates([0.0, 0.5, 1.0]), [0.1, 0.9, 0.5]).weight == 0.5


def test_select_takes_the_first_of_equals() -> None:
    assert select(candidates([0.0, 0.5, 1.0]), [0.1, 0.9, 0.9]).index == 1


def test_select_breaks_ties_by_later_entries() -> None:
    assert select(candidates([0.0, 0.5, 1.0]), [(0.9, -2.0), (0.9, -1.0), (0.1, 0.0)]).index == 1


def test_select_never_takes_nan() -> None:
    nan = float("nan")
    grid = candidates([0.0, 0.5, 1.0])
    assert select(grid, [nan, -1.0, nan]).index == 1
    assert select(grid, [(1.0, nan), (0.0, 0.0), (0.5, 0.0)]).index == 2
    with pytest.raises(FusionError, match="no candidate has a score and a loss that are numbers"):
        select(grid, [nan] * 3)


@pytest.mark.parametrize("scores", [[], [0.1], [0.1, 0.2, 0.3]])
def test_select_wants_a_score_each(scores: list[float]) -> None:
    with pytest.raises(ArgumentError, match=f"2 candidates, {len(scores)} scores"):
        select(candidates([0.0, 1.0]), scores)


def test_select_of_none() -> None:
    with pytest.raises(FusionError, match="no candidate has a score"):
        select([], [])
