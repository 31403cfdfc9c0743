"""Numbers of pixels of maps, by row, that metrics sum over rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tangora.errors import ArgumentError
from tangora.tasks.maps import counted

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["counted_pixels", "of_resamples"]


def counted_pixels(
    metric: str, predictions: Sequence[Any], targets: Sequence[Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the predicted and the actual values of each row's pixels, without those that do not count.

    Args:
        metric: its name, for errors.
        predictions, targets: maps, one of each per row.

    Raises:
        ArgumentError: a prediction has another shape than its target.
    """
    for row, (predicted, actual) in enumerate(zip(predictions, targets, strict=True)):
        if np.shape(predicted) != np.shape(actual):
            got = f"{list(np.shape(predicted))} for {list(np.shape(actual))} in row {row}"
            fix = "compare maps at one resolution"
            raise ArgumentError("a predicted map has another shape than its target", got=got, where=metric, fix=fix)
        where = counted(actual)
        yield predicted[where], actual[where]


def of_resamples(
    by_row: Int[np.ndarray, "rows ..."], counts: Int[np.ndarray, "resamples rows"]
) -> Int[np.ndarray, "resamples ..."]:
    """Return the sums of each resample; exact, since float64 holds whole numbers up to 2^53.

    >>> of_resamples(np.array([[1, 2], [3, 4]]), np.array([[1, 1], [0, 2]])).tolist()
    [[4, 6], [6, 8]]
    """
    sums = counts.astype(np.float64) @ by_row.reshape(len(by_row), -1).astype(np.float64)
    return sums.astype(np.int64).reshape(len(counts), *by_row.shape[1:])
