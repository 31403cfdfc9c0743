"""Perplexity: how many tokens a model wavers between, on average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import once, sums

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "Perplexity"]

_LARGEST = 690.0  # nats per token: the exponential of more than 709 is no number, and no table holds infinity


class Perplexity:
    """``exp(Σ nats / Σ tokens)`` over all rows together, at least 1; lower is better, and 1 is perfect.

    It is the inverse of the geometric mean of the right tokens' probabilities. So what a fusion keeps of an expert,
    ``expert / fusion``, is that mean probability as a share of the expert's. It is NaN if there are no tokens. Choose
    it to compare models with one vocabulary; ``bits_per_byte`` also compares models with different ones.

    >>> round(METRIC.score([[0.7, 2], [2.3, 1]], [9, 5]), 4)  # exp(3 / 3); the bytes do not matter
    2.7183
    """

    name = "perplexity"
    takes: frozenset[Answers] = frozenset({"likelihood"})
    higher_is_better = False

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the perplexity of the corpus."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Sum nats and tokens over each resample."""
        nats, tokens = (sums(column, counts) for column in np.array(predictions, dtype=np.float64).T)
        mean = nats / np.where(tokens > 0, tokens, np.nan)
        scores: Float[np.ndarray, " resamples"] = np.exp(np.minimum(mean, _LARGEST))
        return scores


METRIC = Perplexity()
