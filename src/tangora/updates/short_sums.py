"""Linear combinations that are cut to a rank at once: their stacked factors are formed in float64 only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch

from tangora.updates.sharing import products, stacked
from tangora.updates.truncation import split, truncate_sum
from tangora.updates.update import LowRank, Update, combine

__all__ = ["combine_to_rank"]


def combine_to_rank(updates: Sequence[Update], coefficients: Sequence[float], rank: int) -> tuple[Update, float]:
    """Return ``combine(updates, coefficients).compress(rank)``: the cut update, and its relative error.

    Raises:
        ArgumentError, FusionError: see `tangora.updates.update.combine` and `Update.compress`.
    """
    terms = [(u.factors(), float(c)) for u, c in zip(updates, coefficients, strict=False) if c != 0.0]
    low_rank = [(factors, c) for factors, c in terms if factors is not None]
    fits = len(updates) == len(coefficients) and len({u.shape for u in updates}) == 1 and rank >= 1
    if not fits or len(low_rank) < max(len(terms), 2):
        return combine(updates, coefficients).compress(rank)  # nothing to stack, or an error that this states
    pairs, common = products(low_rank)
    if sum(b.shape[1] for b, _ in pairs) <= rank:
        return LowRank(*stacked(pairs), common), 0.0
    u, s, vh, error = truncate_sum(pairs, min(rank, *updates[0].shape), common)
    return LowRank(*split(u, s, vh, reduce(torch.promote_types, (b.dtype for b, _ in pairs)))), error
