"""Root mean squared error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics.mse import Mse

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "Rmse"]

_MSE = Mse()


class Rmse:
    """The root of the mean of ``(x - y)²`` over predictions x and targets y, at least 0; lower is better.

    It has the unit of the targets. Choose it over ``mse`` to read an error in that unit. The share that a fusion keeps
    of an expert's score is then the root of what it would be by ``mse``.

    >>> METRIC.score([1.0, 2.0], [4.0, 6.0])
    3.5355339059327378
    """

    name = "rmse"
    takes: frozenset[Answers] = frozenset({"number"})
    higher_is_better = False

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the root of the mean of the squares."""
        return math.sqrt(_MSE.score(predictions, targets))

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Return the root of the mean of each resample's squares."""
        roots: Float[np.ndarray, " resamples"] = np.sqrt(_MSE.bootstrap(predictions, targets, counts))
        return roots


METRIC = Rmse()
