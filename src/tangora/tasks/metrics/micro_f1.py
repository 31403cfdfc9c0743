"""Micro F1: F1 over the labels of all rows together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import f1, once

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "MicroF1"]


class MicroF1:
    """``2 TP / (predicted + actual)`` over the labels of all rows together, in [0, 1], as scikit-learn's ``f1_score``.

    It is 0 if no row has a label. Choose it for rows with any number of labels, if every label matters the same;
    ``macro_f1`` gives rare classes as much weight as frequent ones. With one class per row it would be the accuracy.

    >>> METRIC.score([[0, 2], []], [[0], [1]])
    0.5
    """

    name = "micro_f1"
    takes: frozenset[Answers] = frozenset({"labels"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return F1 over all labels."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Sum correct, predicted and actual labels over each resample."""
        rows = [(set(p), set(t)) for p, t in zip(predictions, targets, strict=True)]
        hits, sizes = (
            np.array(column) for column in ([len(p & t) for p, t in rows], [len(p) + len(t) for p, t in rows])
        )
        return f1(hits, sizes, counts)


METRIC = MicroF1()
