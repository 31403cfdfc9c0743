"""Exact match: accuracy, under the name used for generated texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tangora.tasks.metrics._counts import means, right

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "ExactMatch"]


class ExactMatch:
    """The share of rows with a text equal to the target, or to one of several references; in [0, 1].

    Case counts, and white space inside a text; white space around it does not. ``exact_match_space``,
    ``exact_match_casefold`` and ``exact_match_words`` overlook more.

    >>> METRIC.score(["yes", "No"], ["yes", "no"])
    0.5
    >>> METRIC.score(["yes", "No"], ["yes", ("no", "No")])
    1.0
    """

    name = "exact_match"
    takes: frozenset[Answers] = frozenset({"classes", "text"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the share of equal rows."""
        return float(right(predictions, targets).mean())

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Count the correct rows of each resample."""
        return means(right(predictions, targets), counts)


METRIC = ExactMatch()
