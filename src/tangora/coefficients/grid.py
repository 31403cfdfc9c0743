"""A grid of coefficients: every combination in a fixed order, each identified by its index.

Nearly equal floats are bad keys (0.1 + 0.2 is not 0.3), so a candidate is never looked up by its weight.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any, TypeVar

from tangora.errors import ArgumentError, FusionError, RecipeError

__all__ = ["GridPoint", "candidates", "select"]

_Chosen = TypeVar("_Chosen")


@dataclass(frozen=True)
class GridPoint:
    """One point of a grid: its index, one λ for every task, and the method's parameters."""

    index: int
    weight: float
    parameters: Mapping[str, Any]


def candidates(weights: float | Sequence[float], parameters: Mapping[str, Any] | None = None) -> list[GridPoint]:
    """Return every combination of the listed weights and parameters; a single value counts as a list of one.

    The last parameter varies faster than the first, and the weight fastest. So candidates that differ only in λ are
    adjacent, and a homogeneous method is fused once for all of them.

    Args:
        weights: λ for every task, or a list of them.
        parameters: name to value, or to a list of values.

    Raises:
        RecipeError: an empty list, or a weight that is not a finite number.

    >>> [(c.index, c.weight, c.parameters["density"]) for c in candidates([0.5, 1.0], {"density": [0.1, 0.2]})]
    [(0, 0.5, 0.1), (1, 1.0, 0.1), (2, 0.5, 0.2), (3, 1.0, 0.2)]
    """
    parameters = parameters or {}
    axes = [_axis(name, value) for name, value in parameters.items()]
    lambdas = [_weight(w) for w in _axis("weights", weights)]
    points = itertools.product(*axes, lambdas)
    return [
        GridPoint(i, point[-1], MappingProxyType(dict(zip(parameters, point[:-1], strict=True))))
        for i, point in enumerate(points)
    ]


def select(
    candidates: Sequence[_Chosen],
    scores: Sequence[float] | Sequence[tuple[float, ...]],
    *,
    where: str | None = None,
) -> _Chosen:
    """Return the candidate with the best score, the first of equal ones.

    Args:
        candidates: to choose from, such as a grid.
        scores: one for each, higher is better; or a tuple for each, in which later entries break ties. A score that
            contains a NaN never wins.
        where: the location that an error names.

    Raises:
        ArgumentError: the numbers of candidates and scores differ, or there are none.
        FusionError: every score is NaN.

    >>> select(candidates([0.0, 0.5, 1.0]), [0.2, 0.7, 0.7]).weight
    0.5
    """
    if len(candidates) != len(scores):
        got = f"{len(candidates)} candidates, {len(scores)} scores"
        raise ArgumentError("every candidate needs one score", got=got, where=where)
    ranks = [score if isinstance(score, tuple) else (score,) for score in scores]
    usable = [i for i, rank in enumerate(ranks) if not any(map(math.isnan, rank))]
    if not usable:
        what, fix = "no candidate has a score and a loss that are numbers", "check the experts' scores and losses"
        raise FusionError(what, got=list(scores), where=where, fix=fix)
    return candidates[max(usable, key=ranks.__getitem__)]


def _axis(name: str, value: Any) -> list[Any]:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not values:
        raise RecipeError(f"{name}: a grid needs at least one value", got=value, where="fusion", fix="add one")
    return values


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise RecipeError("weights: a weight must be a finite number", got=value, where="fusion", fix="such as 0.3")
    return float(value)
