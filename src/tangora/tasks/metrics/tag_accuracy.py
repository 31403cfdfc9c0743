"""Tag accuracy: the share of words with the right tag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import once, sums
from tangora.tasks.metrics._tags import check_lengths

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "TagAccuracy"]


class TagAccuracy:
    """The share of the words of all rows that have the right tag, in [0, 1]; NaN if there are no words.

    Choose it for parts of speech, and other tags of which most words have one of their own.

    >>> METRIC.score([["NOUN", "VERB"], ["NOUN"]], [["NOUN", "NOUN"], ["NOUN"]])
    0.6666666666666666
    """

    name = "tag_accuracy"
    takes: frozenset[Answers] = frozenset({"tags"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the share of correct words."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Count the words of each resample, and those that are correct."""
        check_lengths(self.name, predictions, targets)
        rows = zip(predictions, targets, strict=True)
        correct = np.array([sum(a == b for a, b in zip(p, t, strict=True)) for p, t in rows], dtype=np.int64)
        words = sums(np.array([len(t) for t in targets], dtype=np.int64), counts)
        shares: Float[np.ndarray, " resamples"] = sums(correct, counts) / np.where(words, words, np.nan)
        return shares


METRIC = TagAccuracy()
