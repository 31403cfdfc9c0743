"""Bits per byte: the length of a text in a model's best code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import once, sums

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "BitsPerByte"]


class BitsPerByte:
    """``Σ nats / (ln 2 · Σ bytes)`` over all rows together, at least 0; lower is better (arXiv:2101.00027).

    Bytes are those of the texts in UTF-8, so that models with different vocabularies can be compared. It is NaN if
    there are no bytes. Choose it for texts, or ``perplexity`` if all models have one vocabulary.

    >>> round(METRIC.score([[4 * math.log(2), 4], [6 * math.log(2), 2]], [13, 7]), 4)  # 10 bits for 20 bytes
    0.5
    """

    name = "bits_per_byte"
    takes: frozenset[Answers] = frozenset({"likelihood"})
    higher_is_better = False

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the bits per byte of the corpus."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Sum nats and bytes over each resample."""
        nats = sums(np.array([nats for nats, _ in predictions], dtype=np.float64), counts)
        size = sums(np.array(targets, dtype=np.int64), counts)
        scores: Float[np.ndarray, " resamples"] = nats / math.log(2) / np.where(size > 0, size, np.nan)
        return scores


METRIC = BitsPerByte()
