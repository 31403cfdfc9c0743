"""Sums over resampled rows, from which metrics compute all resamples at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["by_group", "in_blocks", "numbered", "right", "share_right"]

_BLOCK = 2**22  # entries of counts that are worked on at once, so that temporaries stay small


def in_blocks(
    function: Callable[[Int[np.ndarray, "some rows"]], Float[np.ndarray, " some"]],
    counts: Int[np.ndarray, "resamples rows"],
) -> Float[np.ndarray, " resamples"]:
    """``function(counts)``, some resamples at a time."""
    size = max(1, _BLOCK // counts.shape[1])
    return np.concatenate([function(counts[i : i + size]) for i in range(0, len(counts), size)])


def numbered(*columns: Sequence[Any]) -> tuple[list[Int[np.ndarray, " rows"]], int]:
    """Each column with its values replaced by numbers from 0, equal ones for equal values, and how many there are."""
    known: dict[Any, int] = {}
    numbers = [np.array([known.setdefault(value, len(known)) for value in column]) for column in columns]
    return numbers, len(known)


def by_group(
    counts: Int[np.ndarray, "resamples rows"], groups: Int[np.ndarray, " rows"], number: int
) -> Int[np.ndarray, "resamples groups"]:
    """How many rows of each group there are in each resample."""
    totals = np.zeros((len(counts), number), dtype=np.int64)
    if not len(groups):
        return totals
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)  # reduceat has no empty groups
    totals[:, present] = np.add.reduceat(counts[:, order], starts, axis=1, dtype=np.int64)
    return totals


def right(predictions: Sequence[Any], targets: Sequence[Any]) -> Bool[np.ndarray, " rows"]:
    """Whether each prediction is its target."""
    return np.fromiter((bool(p == t) for p, t in zip(predictions, targets, strict=True)), bool, len(targets))


def share_right(
    predictions: Sequence[Any], targets: Sequence[Any], counts: Int[np.ndarray, "resamples rows"]
) -> Float[np.ndarray, " resamples"]:
    """The share of equal rows in each resample."""
    equal = right(predictions, targets)
    shares: Float[np.ndarray, " resamples"] = counts[:, equal].sum(1, dtype=np.int64) / counts.sum(1, dtype=np.int64)
    return shares
