"""Convert fusion weights as users give them into one row of numbers, or one row per site."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tangora.errors import ArgumentError
from tangora.support.validation import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WeightTable", "Weights", "common_scale", "tabulate"]

Weights: TypeAlias = "float | Sequence[float] | Tensor | Mapping[str, float | Sequence[float]]"
WeightTable: TypeAlias = "list[float] | dict[str, list[float]]"


def tabulate(weights: Weights, count: int, sites: Iterable[str]) -> WeightTable:
    """Return one finite number for each of ``count`` task vectors, or such a row for every site.

    Raises:
        ArgumentError: the count is wrong, a weight is not a finite number, or a site is unknown or missing.
    """
    if not isinstance(weights, Mapping):
        return _row(weights, count, "fuse.weights")
    known = sorted(sites)
    for site in weights:
        if site not in known:
            raise ArgumentError("no such site", got=site, where="fuse.weights", fix=did_you_mean(site, known[:20]))
    if missing := [site for site in known if site not in weights]:
        fix = "give weights for every site"
        raise ArgumentError("a site has no weights", got=missing[0], where="fuse.weights", fix=fix)
    return {site: _row(weights[site], count, f"fuse.weights.{site}") for site in known}


def _row(weights: Any, count: int, where: str) -> list[float]:
    if hasattr(weights, "tolist"):  # torch's tensors and NumPy's arrays
        weights = weights.tolist()
    try:
        row = [float(w) for w in weights] if hasattr(weights, "__len__") else [float(weights)] * count
    except (TypeError, ValueError):
        raise ArgumentError("weights must be numbers", got=weights, where=where) from None
    if len(row) != count:
        what = f"{count} adapters need {count} weights"
        raise ArgumentError(what, got=len(row), where=where, fix="give one number for all, or one for each")
    if not all(math.isfinite(w) for w in row):
        raise ArgumentError("weights must be finite", got=row, where=where, fix="correct the weights")
    return row


def common_scale(table: WeightTable) -> float | None:
    """Return λ if it is the same positive number for all tasks and sites, else None."""
    rows = list(table.values()) if isinstance(table, dict) else [table]
    first = rows[0][0]
    return first if first > 0 and all(w == first for row in rows for w in row) else None
