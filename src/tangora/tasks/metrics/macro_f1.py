"""Macro F1: the mean over classes of F1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.support.extras import require
from tangora.tasks.metrics._counts import by_group, in_blocks, numbered

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "MacroF1"]


class MacroF1:
    """The mean over classes of ``2 TP / (predicted + actual)``, in [0, 1], as scikit-learn's ``f1_score``.

    The classes are those that occur among predictions or targets; one that is never predicted counts as 0. Choose it if
    rare classes matter as much as frequent ones.

    >>> round(METRIC.score([0, 1, 1], [0, 1, 0]), 4)
    0.6667
    """

    name = "macro_f1"
    takes: frozenset[Answers] = frozenset({"classes", "text"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return scikit-learn's ``f1_score(average="macro", zero_division=0)``."""
        require("train", purpose="the metric macro_f1")
        from sklearn.metrics import f1_score  # deferred: it takes a second to import

        return float(f1_score(targets, predictions, average="macro", zero_division=0))

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Sum the margins and the diagonal of each resample's confusion matrix."""
        (predicted, actual), classes = numbered(predictions, targets)
        return in_blocks(partial(_macro_f1, predicted, actual, classes), counts)


def _macro_f1(
    predicted: Int[np.ndarray, " rows"],
    actual: Int[np.ndarray, " rows"],
    classes: int,
    counts: Int[np.ndarray, "resamples rows"],
) -> Float[np.ndarray, " resamples"]:
    equal = predicted == actual
    hits = by_group(counts[:, equal], actual[equal], classes)
    margins = by_group(counts, predicted, classes) + by_group(counts, actual, classes)
    scores: Float[np.ndarray, " resamples"] = (2 * hits / np.maximum(margins, 1)).sum(1) / (margins > 0).sum(1)
    return scores


METRIC = MacroF1()
