"""Numbers from answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._rows import references

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["as_numbers"]


def as_numbers(
    predictions: Sequence[Any], targets: Sequence[Any]
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Return predictions and targets as numbers: of several references the nearest to the prediction.

    A text that is no number counts as 0, and so does a number that is not finite.
    """
    x = np.array([_number(value) for value in predictions])
    pairs = zip(x, targets, strict=True)
    y = np.array([min(map(_number, references(target)), key=lambda y: abs(y - value)) for value, target in pairs])
    return x, y


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if np.isfinite(number) else 0.0
