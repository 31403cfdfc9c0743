"""Root mean squared error of a number for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.tasks.metrics._counts import once, sums
from tangora.tasks.metrics._maps import counted_pixels

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import Answers

__all__ = ["METRIC", "RmseMap"]


class RmseMap:
    """The root of the mean of ``(x - y)²`` over the pixels of all rows, at least 0; lower is better.

    It has the unit of the targets. Pixels that do not count in the target are left out, and rows weigh as many pixels
    as they have. It is NaN if no pixel counts. Choose it for depth, as benchmarks of NYU-Depth v2 do.

    >>> METRIC.score([np.array([[1.0, 2.0]])], [np.array([[4.0, 6.0]])])
    3.5355339059327378
    """

    name = "rmse_map"
    takes: frozenset[Answers] = frozenset({"number_map"})
    higher_is_better = False

    def score(self, predictions: Sequence[Any], targets: Sequence[Any], /) -> float:
        """Return the root of the mean of the squares."""
        return once(self, predictions, targets)

    def bootstrap(
        self, predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"], /
    ) -> Float[np.ndarray, " resamples"]:
        """Sum the squares and the numbers of pixels of each resample."""
        rows = list(counted_pixels(self.name, predictions, targets))
        squares = np.array([np.square(p.astype(np.float64) - t).sum() for p, t in rows])
        pixels = np.array([t.size for _, t in rows])
        with np.errstate(invalid="ignore", divide="ignore"):
            roots: Float[np.ndarray, " resamples"] = np.sqrt(sums(squares, counts) / sums(pixels, counts))
        return roots


METRIC = RmseMap()
