"""F-measure of marked pixels, at the best threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import in_blocks, once
from tangora.tasks.metrics._maps import counted_pixels, of_resamples

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "FMeasure"]

_LEVELS = 256


class FMeasure:
    """The largest ``2 TP / (predicted + actual)`` over thresholds, in [0, 1], of marked pixels of all rows together.

    A pixel is predicted if its value is at least the threshold, one of 1 to 255. One threshold is chosen for all rows,
    as the F-measure at the optimal dataset scale (ODS) of the Berkeley edge benchmark (Arbeláez et al., 2011). But
    pixels match only where they are, without a tolerance of a few pixels; and precision and recall weigh the same,
    while benchmarks of saliency weigh precision more (β² = 0.3). Every resample chooses its own threshold. It is 0 if
    nothing is marked. Choose it for edges and saliency, where few pixels are marked.

    >>> METRIC.score([np.array([[250, 100, 90]], dtype=np.uint8)], [np.array([[1, 1, 0]], dtype=np.uint8)])
    1.0
    """

    name = "f_measure"
    takes: frozenset[Answers] = frozenset({"binary_map"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the largest F-measure."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Sum each resample's histograms of the values of marked and of other pixels."""
        rows = list(counted_pixels(self.name, predictions, targets))
        by_row = np.array([[_histogram(p[t == mark]) for mark in (1, 0)] for p, t in rows])
        return in_blocks(lambda some: _best(of_resamples(by_row, some)), counts)


def _histogram(values: np.ndarray) -> Int[np.ndarray, " levels"]:
    return np.bincount(values.astype(np.int64), minlength=_LEVELS)


def _best(histograms: Int[np.ndarray, "resamples marks levels"]) -> Float[np.ndarray, " resamples"]:
    at_least = histograms[..., ::-1].cumsum(-1)[..., ::-1]  # pixels whose value is at least the level
    actual = at_least[:, 0, :1]
    predicted = at_least.sum(1)[:, 1:]  # at threshold 0 every pixel would be predicted, whatever its value
    scores: Float[np.ndarray, " resamples"] = (2 * at_least[:, 0, 1:] / np.maximum(predicted + actual, 1)).max(1)
    return scores


METRIC = FMeasure()
