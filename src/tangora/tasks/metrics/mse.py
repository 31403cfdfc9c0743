"""Mean squared error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import means

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "Mse"]


class Mse:
    """The mean of ``(x - y)²`` over predictions x and targets y, at least 0; lower is better.

    Its unit is the square of the targets'; ``rmse`` has their own. Choose it for a regression whose large errors matter
    most, and ``pearson`` or ``spearman`` if only order or proportion do.

    >>> METRIC.score([1.0, 2.0], [2.0, 4.0])
    2.5
    """

    name = "mse"
    takes: frozenset[Answers] = frozenset({"number"})
    higher_is_better = False

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the mean of the squares."""
        return float(_squares(predictions, targets).mean())

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Return the mean of each resample's squares."""
        return means(_squares(predictions, targets), counts)


def _squares(predictions: Sequence[float], targets: Sequence[float]) -> Float[np.ndarray, " rows"]:
    squares: Float[np.ndarray, " rows"] = (np.array(predictions) - np.array(targets)) ** 2
    return squares


METRIC = Mse()
