"""Mean intersection over union of classes of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import once
from tangora.tasks.metrics._maps import counted_pixels, of_resamples

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "MeanIou"]


class MeanIou:
    """The mean over classes of ``TP / (predicted + actual - TP)``, in [0, 1], as PASCAL VOC (2010) scores segmentation.

    Pixels of all rows are counted together, so that a large object counts more than a small one. Pixels that do not
    count in the target are left out of all three numbers. The classes are those that occur among predictions or
    targets. It is NaN if no pixel counts. Choose it for a segmentation with classes of unequal size: the share of right
    pixels is that of the background alone.

    >>> METRIC.score([np.array([[0, 1, 1]], dtype=np.uint8)], [np.array([[0, 0, 1]], dtype=np.uint8)])
    0.5
    """

    name = "mean_iou"
    takes: frozenset[Answers] = frozenset({"class_map"})
    higher_is_better = True

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the mean over the classes."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Sum the margins and the diagonal of each resample's confusion matrix."""
        rows = list(counted_pixels(self.name, predictions, targets))
        classes = 1 + max((int(part.max()) for row in rows for part in row if part.size), default=0)
        by_row = np.array([[_numbers(part, classes) for part in (p, t, t[p == t])] for p, t in rows])
        predicted, actual, hits = np.moveaxis(of_resamples(by_row, counts), 1, 0)
        union = predicted + actual - hits
        with np.errstate(invalid="ignore"):
            means: Float[np.ndarray, " resamples"] = (hits / np.maximum(union, 1)).sum(1) / (union > 0).sum(1)
        return means


def _numbers(part: np.ndarray, classes: int) -> Int[np.ndarray, " classes"]:
    return np.bincount(part.astype(np.int64), minlength=classes)


METRIC = MeanIou()
