"""Sums over resampled rows, for metrics that compute all resamples at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Num

    from tangora.tasks.contract import Metric

__all__ = ["by_group", "f1", "in_blocks", "matched", "means", "numbered", "once", "right", "sums"]

_BLOCK = 2**22  # entries of counts that are processed at once, so that temporaries stay small


def in_blocks(
    function: Callable[[Int[np.ndarray, "some rows"]], Float[np.ndarray, " some"]],
    counts: Int[np.ndarray, "resamples rows"],
) -> Float[np.ndarray, " resamples"]:
    """Return ``function(counts)``, computed for some resamples at a time."""
    size = max(1, _BLOCK // counts.shape[1])
    return np.concatenate([function(counts[i : i + size]) for i in range(0, len(counts), size)])


def numbered(*columns: Sequence[Any]) -> tuple[list[Int[np.ndarray, " rows"]], int]:
    """Replace the columns' distinct values by numbers from 0; return the columns, and how many numbers there are."""
    number_of: dict[Any, int] = {}
    numbers = [
        np.array([number_of.setdefault(value, len(number_of)) for value in column], dtype=np.int64)
        for column in columns
    ]
    return numbers, len(number_of)


def by_group(
    counts: Int[np.ndarray, "resamples rows"], groups: Int[np.ndarray, " rows"], number: int
) -> Int[np.ndarray, "resamples groups"]:
    """Return the number of rows of each group in each resample."""
    totals = np.zeros((len(counts), number), dtype=np.int64)
    if not len(groups):
        return totals
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)  # reduceat has no empty groups
    totals[:, present] = np.add.reduceat(counts[:, order], starts, axis=1, dtype=np.int64)
    return totals


def sums(column: Num[np.ndarray, " rows"], counts: Int[np.ndarray, "resamples rows"]) -> Num[np.ndarray, " resamples"]:
    """Return the sum of a number per row over each resample; exact for whole numbers."""
    total: Num[np.ndarray, " resamples"] = np.einsum("kr,r->k", counts, column, dtype=np.result_type(column, np.int64))
    return total


def means(
    column: Num[np.ndarray, " rows"], counts: Int[np.ndarray, "resamples rows"]
) -> Float[np.ndarray, " resamples"]:
    """Return the mean of a number per row over each resample."""
    average: Float[np.ndarray, " resamples"] = sums(column, counts) / counts.sum(1, dtype=np.int64)
    return average


def f1(
    hits: Int[np.ndarray, " rows"], sizes: Int[np.ndarray, " rows"], counts: Int[np.ndarray, "resamples rows"]
) -> Float[np.ndarray, " resamples"]:
    """Return F1 over the items of all rows together, ``2 Σ hits / Σ sizes``; 0 if there are no items.

    Args:
        hits: items of each row that are both predicted and actual.
        sizes: predicted items of each row, plus actual ones.
        counts: of the rows in each resample.
    """
    scores: Float[np.ndarray, " resamples"] = 2 * sums(hits, counts) / np.maximum(sums(sizes, counts), 1)
    return scores


def once(metric: Metric, predictions: Sequence[Any], targets: Sequence[Any]) -> float:
    """Implement `Metric.score` by the resample that has every row once, for a metric of sums over rows."""
    every = np.ones((1, len(targets)), dtype=np.int64)
    return float(metric.bootstrap(predictions, targets, every)[0])


def right(predictions: Sequence[Any], targets: Sequence[Any]) -> Bool[np.ndarray, " rows"]:
    """Return whether each prediction equals its target, or one of several references."""
    equal = (p in t if isinstance(t, tuple) else bool(p == t) for p, t in zip(predictions, targets, strict=True))
    return np.fromiter(equal, bool, len(targets))


def matched(predictions: Sequence[Any], targets: Sequence[Any]) -> list[Any]:
    """Return one target per row: of several references the one that is predicted, or else the first."""
    return [(p if p in t else t[0]) if isinstance(t, tuple) else t for p, t in zip(predictions, targets, strict=True)]
