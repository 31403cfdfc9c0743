"""Macro F1: the mean over classes of F1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import by_group, in_blocks, matched, numbered, once

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "MacroF1"]


class MacroF1:
    """The mean over classes of ``2 TP / (predicted + actual)``, in [0, 1], as scikit-learn's ``f1_score``.

    The classes are those that occur among predictions or targets; one that is never predicted counts as 0. A row may
    have any number of labels. If a text has several references, the row's class is the prediction if it is one of them,
    or else the first. It is 0 if there are no classes. Choose it if rare classes matter as much as frequent ones.

    >>> round(METRIC.score([0, 1, 1], [0, 1, 0]), 4)
    0.6667
    >>> METRIC.score([[0, 2], [1]], [[0], [1]])  # of the classes 0, 1 and 2
    0.6666666666666666
    """

    name = "macro_f1"
    takes: frozenset[Answers] = frozenset({"classes", "text", "labels"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the mean of F1 over the classes."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Sum the margins and the diagonal of each resample's confusion matrix."""
        predicted, actual = (_labels(column) for column in (predictions, matched(predictions, targets)))
        found, classes = numbered(*([label for _, label in column] for column in (predicted, actual)))
        rows = [np.array([row for row, _ in column], dtype=np.int64) for column in (predicted, actual)]
        both = set(predicted) & set(actual)
        hits = np.array([one in both for one in actual], dtype=bool)
        return in_blocks(partial(_macro_f1, rows, found, hits, classes), counts)


def _labels(values: Sequence[Any]) -> list[tuple[int, Any]]:
    """Return the row and the class of every label; a row of another kind has one."""
    rows = enumerate(set(value) if isinstance(value, list) else {value} for value in values)
    return [(row, label) for row, labels in rows for label in labels]


def _macro_f1(
    rows: Sequence[Int[np.ndarray, " _"]],
    found: Sequence[Int[np.ndarray, " _"]],
    hits: Int[np.ndarray, " actual"],
    classes: int,
    counts: Int[np.ndarray, "resamples rows"],
) -> Float[np.ndarray, " resamples"]:
    right = by_group(counts[:, rows[1][hits]], found[1][hits], classes)
    predicted, actual = (by_group(counts[:, row], label, classes) for row, label in zip(rows, found, strict=True))
    margins = predicted + actual
    present = (margins > 0).sum(1)
    scores: Float[np.ndarray, " resamples"] = (2 * right / np.maximum(margins, 1)).sum(1) / np.maximum(present, 1)
    return scores


METRIC = MacroF1()
