"""Sums over resampled rows, for metrics that compute all resamples at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["by_group", "in_blocks", "numbered", "right", "share_right"]

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
    numbers = [np.array([number_of.setdefault(value, len(number_of)) for value in column]) for column in columns]
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


def right(predictions: Sequence[Any], targets: Sequence[Any]) -> Bool[np.ndarray, " rows"]:
    """Return whether each prediction equals its target."""
    return np.fromiter((bool(p == t) for p, t in zip(predictions, targets, strict=True)), bool, len(targets))


def share_right(
    predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"]
) -> Float[np.ndarray, " resamples"]:
    """Return the share of equal rows in each resample."""
    equal = right(predictions, targets)
    shares: Float[np.ndarray, " resamples"] = counts[:, equal].sum(1, dtype=np.int64) / counts.sum(1, dtype=np.int64)
    return shares
