"""Slot F1: the pairs of key and value that a JSON object has right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import f1, once
from tangora.tasks.metrics._json import pairs
from tangora.tasks.metrics._rows import references

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "SlotF1"]


class SlotF1:
    """``2 TP / (predicted + actual)`` over the pairs of key and value of all rows together, in [0, 1].

    Texts are read and pairs are compared as by ``json_equal``; a text without an object has no pairs. Of several
    references, the one with the highest F1 in its row counts, and the first of these. It is 0 if no row has a pair.
    Choose it beside ``json_equal``, to see whether wrong objects are wrong in many places.

    >>> METRIC.score(['{"city": "Rome", "day": "today"}'], ['{"city": "Rome", "day": "Monday"}'])
    0.5
    """

    name = "slot_f1"
    takes: frozenset[Answers] = frozenset({"text"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return F1 over all pairs."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Sum correct, predicted and actual pairs over each resample."""
        rows = [_compared(text, target) for text, target in zip(predictions, targets, strict=True)]
        hits, sizes = np.array(rows, dtype=np.int64).T
        return f1(hits, sizes, counts)


def _compared(text: str, target: Any) -> tuple[int, int]:
    """Return the number of pairs in both, and the numbers of both together, for the best reference."""
    found = pairs(text) or Counter()
    options = [pairs(reference) or Counter() for reference in references(target)]
    compared = [((found & actual).total(), found.total() + actual.total()) for actual in options]
    return max(compared, key=lambda one: one[0] / max(one[1], 1))


METRIC = SlotF1()
