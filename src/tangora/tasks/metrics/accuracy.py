"""Accuracy: the share of correct rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tangora.tasks.metrics._counts import means, right

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "Accuracy"]


class Accuracy:
    """The share of rows with a prediction equal to the target, or to one of several references; in [0, 1].

    A row with several labels is correct if all of them are, as in scikit-learn's ``accuracy_score``. Choose it for
    classes that are about equally frequent, and for texts of which one is chosen, as in multiple choice.

    >>> METRIC.score(["yes", "no"], ["yes", "yes"])
    0.5
    >>> METRIC.score([[0, 2], [1]], [[0, 2], [1, 2]])
    0.5
    """

    name = "accuracy"
    takes: frozenset[Answers] = frozenset({"classes", "text", "labels"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the share of equal rows."""
        # scikit-learn's accuracy_score checks its input for half a millisecond, as long as this takes for 10,000 rows
        return float(right(predictions, targets).mean())

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Count the correct rows of each resample."""
        return means(right(predictions, targets), counts)


METRIC = Accuracy()
