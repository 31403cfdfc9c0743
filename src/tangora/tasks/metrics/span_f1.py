"""Span F1: F1 over the spans that tags mark, as names in a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import f1, once
from tangora.tasks.metrics._tags import check_lengths, spans

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "SpanF1"]


class SpanF1:
    """``2 TP / (predicted + actual)`` over the spans of all rows together, in [0, 1], as CoNLL's ``conlleval`` counts.

    Tags are ``O``, ``B-TYPE`` for the first word of a span and ``I-TYPE`` for the others (IOB2); ``E-`` for the last
    word and ``S-`` for the only one are read too. A predicted span is correct if type, first and last word are right. A
    span that begins with ``I-`` counts, as in ``conlleval`` (aclanthology.org/W03-0419) and by default in seqeval. It
    is 0 if no row has a span. Choose it for named entities and slots.

    >>> METRIC.score([["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "O", "B-ORG"]])
    0.5
    """

    name = "span_f1"
    takes: frozenset[Answers] = frozenset({"tags"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return F1 over all spans."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Sum correct, predicted and actual spans over each resample."""
        check_lengths(self.name, predictions, targets)
        rows = [(spans(p), spans(t)) for p, t in zip(predictions, targets, strict=True)]
        hits, sizes = (
            np.array(column) for column in ([len(p & t) for p, t in rows], [len(p) + len(t) for p, t in rows])
        )
        return f1(hits, sizes, counts)


METRIC = SpanF1()
