"""Accuracy: the share of correct rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tangora.tasks.metrics._counts import share_right

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "Accuracy"]


class Accuracy:
    """The share of rows with a prediction equal to the target, in [0, 1].

    Choose it for classes that are about equally frequent.

    >>> METRIC.score(["yes", "no"], ["yes", "yes"])
    0.5
    """

    name = "accuracy"
    takes: frozenset[Answers] = frozenset({"classes", "text"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the share of equal rows."""
        # scikit-learn's accuracy_score checks its input for half a millisecond, as long as this takes for 10,000 rows
        return sum(bool(p == t) for p, t in zip(predictions, targets, strict=True)) / len(targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Count the correct rows of each resample."""
        return share_right(predictions, targets, counts)


METRIC = Accuracy()
