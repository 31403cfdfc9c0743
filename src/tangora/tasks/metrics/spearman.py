"""Spearman's rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import by_group, in_blocks
from tangora.tasks.metrics._numbers import as_numbers

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "Spearman"]


class Spearman:
    """The correlation of ranks, ties at their mean rank, in [-1, 1], as SciPy's ``spearmanr``.

    Texts are read as numbers, and a text that is no number counts as 0. The correlation with a constant is 0. Choose it
    for grades and similarities, such as STS-B.

    >>> METRIC.score(["1.0", "2.5", "word"], ["0.9", "3.0", "0.1"])
    1.0
    """

    name = "spearman"
    takes: frozenset[Answers] = frozenset({"classes", "text", "number"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return SciPy's ``spearmanr``, or 0 if it is undefined."""
        from scipy.stats import spearmanr  # deferred: it takes half a second to import

        x, y = as_numbers(predictions, targets)
        if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return 0.0
        return float(spearmanr(x, y).statistic)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Rank the distinct values of each resample by their counts, and correlate the ranks by the same counts."""
        x, y = (np.unique(values, return_inverse=True)[1] for values in as_numbers(predictions, targets))
        return in_blocks(partial(_spearman, x, y), counts)


def _spearman(
    x: Int[np.ndarray, " rows"], y: Int[np.ndarray, " rows"], counts: Int[np.ndarray, "resamples rows"]
) -> Float[np.ndarray, " resamples"]:
    middle = (counts.sum(1, keepdims=True) + 1) / 2  # the mean rank
    ranks, varies = [], np.ones(len(counts), dtype=bool)
    for values in (x, y):
        sizes = by_group(counts, values, int(values.max()) + 1)
        ranks.append((sizes.cumsum(1) - (sizes - 1) / 2 - middle)[:, values])
        varies &= (sizes > 0).sum(1) > 1
    xx, yy, xy = (np.einsum("kr,kr,kr->k", counts, ranks[i], ranks[j]) for i, j in ((0, 0), (1, 1), (0, 1)))
    return np.where(varies, xy / np.sqrt(np.where(varies, xx * yy, 1.0)), 0.0)


METRIC = Spearman()
