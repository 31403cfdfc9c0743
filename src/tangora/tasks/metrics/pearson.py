"""Pearson's correlation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import in_blocks, means, once
from tangora.tasks.metrics._numbers import as_numbers

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "Pearson"]


class Pearson:
    """The correlation of predictions and targets, in [-1, 1], as SciPy's ``pearsonr``.

    Texts are read as numbers, and a text that is no number counts as 0. The correlation with a constant is 0. Choose it
    for grades and similarities that should be linear in the targets, beside ``spearman``.

    >>> round(METRIC.score([1.0, 2.0, 3.0], [2.0, 4.0, 5.0]), 4)
    0.982
    """

    name = "pearson"
    takes: frozenset[Answers] = frozenset({"classes", "text", "number"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the correlation, or 0 if it is undefined."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Subtract each resample's means, then sum the products of deviations."""
        columns = [
            values / max(np.abs(values).max(), np.finfo(float).tiny) for values in as_numbers(predictions, targets)
        ]
        return in_blocks(partial(_pearson, *columns), counts)


def _pearson(
    x: Float[np.ndarray, " rows"], y: Float[np.ndarray, " rows"], counts: Int[np.ndarray, "resamples rows"]
) -> Float[np.ndarray, " resamples"]:
    """Correlate numbers of size 1 at most, so that no product overflows."""
    present = counts > 0
    varies = _varies(x, present) & _varies(y, present)
    a, b = (_deviations(values, counts) for values in (x, y))
    aa, bb, ab = (np.einsum("kr,kr,kr->k", counts, one, other) for one, other in ((a, a), (b, b), (a, b)))
    defined = varies & (aa > 0) & (bb > 0)
    sizes = np.sqrt(np.where(defined, aa, 1.0)) * np.sqrt(np.where(defined, bb, 1.0))
    return np.where(defined, np.clip(ab / sizes, -1.0, 1.0), 0.0)


def _deviations(
    values: Float[np.ndarray, " rows"], counts: Int[np.ndarray, "resamples rows"]
) -> Float[np.ndarray, "resamples rows"]:
    deviations: Float[np.ndarray, "resamples rows"] = values - means(values, counts)[:, None]
    return deviations


def _varies(
    values: Float[np.ndarray, " rows"], present: Bool[np.ndarray, "resamples rows"]
) -> Bool[np.ndarray, " resamples"]:
    """Return which resamples have two different values; rounded deviations of equal values need not be 0."""
    lowest, highest = np.where(present, values, np.inf).min(1), np.where(present, values, -np.inf).max(1)
    return np.asarray(lowest < highest)


METRIC = Pearson()
