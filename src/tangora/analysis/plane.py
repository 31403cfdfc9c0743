"""Answers of a model in the plane of two task vectors, ``φ₀ + λ₁ν₁ + λ₂ν₂``, on a grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.evaluation.evaluator import Result

__all__ = ["Answer", "Plane", "grid", "over_unit_square", "survey"]

Answer = Callable[[tuple[float, float]], "Mapping[str, Result]"]
"""(λ₁, λ₂) -> the results on the rows of each of the two tasks, by forward passes or from columns."""


@dataclass(frozen=True)
class Plane:
    """Results on a grid.

    Attributes:
        tasks: their task vectors span the plane.
        coefficients: the same for λ₁ and λ₂, ascending.
        results: task -> a list over λ₁ of lists over λ₂.
    """

    tasks: tuple[str, str]
    coefficients: tuple[float, ...]
    results: Mapping[str, list[list[Result]]]


def grid(points: int = 6, margin: float = 0.4) -> tuple[float, ...]:
    """Return equally spaced coefficients on [0, 1], extended on both sides with the same spacing within the margin.

    0 and 1 are always among them, so φ₀, both experts and their sum are on the plane's grid.

    Args:
        points: number of points on [0, 1], with both ends.
        margin: extension beyond 0 and 1.

    Raises:
        ArgumentError: fewer than 2 points, or a negative margin.

    >>> grid(3, 0.5)
    (-0.5, 0.0, 0.5, 1.0, 1.5)
    """
    if points < 2:
        raise ArgumentError("the grid needs at least 2 points on [0, 1]", got=points, where="--points")
    if not 0 <= margin <= 10:
        raise ArgumentError("the margin must be in [0, 10]", got=margin, where="--margin")
    steps = points - 1
    beyond = int(margin * steps + 1e-9)
    return tuple(k / steps for k in range(-beyond, steps + beyond + 1))


def survey(
    answer: Answer,
    tasks: tuple[str, str],
    coefficients: Sequence[float],
    on_point: Callable[[], None] | None = None,
) -> Plane:
    """Evaluate every point of the grid, row by row, and call ``on_point`` after each."""
    results: dict[str, list[list[Result]]] = {task: [] for task in tasks}
    for first in coefficients:
        for task in tasks:
            results[task].append([])
        for second in coefficients:
            of_point = answer((first, second))
            for task in tasks:
                results[task][-1].append(of_point[task])
            if on_point is not None:
                on_point()
    return Plane(tasks, tuple(coefficients), results)


def over_unit_square(values: Float[np.ndarray, "points points"], coefficients: Sequence[float]) -> float:
    """Return the mean over the grid's points in [0, 1]², the usual range of fusion coefficients."""
    inside = [i for i, c in enumerate(coefficients) if 0 <= c <= 1]
    return float(values[np.ix_(inside, inside)].mean())
