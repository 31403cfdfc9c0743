"""Matthews correlation coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import by_group, in_blocks, matched, numbered, once

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "Matthews"]


class Matthews:
    """The correlation of predicted and actual classes, in [-1, 1], as scikit-learn's ``matthews_corrcoef``.

    It is 0 if all predictions, or all targets, are one class. If a text has several references, the row's class is the
    prediction if it is one of them, or else the first. Choose it for unbalanced tasks of two classes, such as
    CoLA.

    >>> round(METRIC.score([1, 1, 0, 0], [1, 0, 0, 0]), 4)
    0.5774
    """

    name = "matthews"
    takes: frozenset[Answers] = frozenset({"classes", "text"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the correlation, or 0 if it is undefined."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Sum the margins and the trace of each resample's confusion matrix."""
        (predicted, actual), classes = numbered(predictions, matched(predictions, targets))
        return in_blocks(partial(_matthews, predicted, actual, classes), counts)


def _matthews(
    predicted: Int[np.ndarray, " rows"],
    actual: Int[np.ndarray, " rows"],
    classes: int,
    counts: Int[np.ndarray, "resamples rows"],
) -> Float[np.ndarray, " resamples"]:
    """``(n·hits - Σ pₖ aₖ) / √((n² - Σ pₖ²)(n² - Σ aₖ²))`` with p and a the margins (Gorodkin 2004)."""
    p, a = (by_group(counts, column, classes).astype(np.float64) for column in (predicted, actual))
    total = p.sum(1)
    hits = counts[:, predicted == actual].sum(1, dtype=np.int64)
    covariance = total * hits - (p * a).sum(1)
    spread = (total**2 - (p * p).sum(1)) * (total**2 - (a * a).sum(1))
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0)


METRIC = Matthews()
