"""Cut a fused adapter to a rank, or to the least rank of each site that leaves an error under a bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from tangora.adapters.adapter import Adapter
from tangora.errors import ArgumentError
from tangora.fusion.lineage import truncate
from tangora.support.threads import in_threads
from tangora.updates.range_finder import leading_within
from tangora.updates.ranks import check_bound, least_rank, spectrum
from tangora.updates.task_vector import LowRank, TaskVector, Update
from tangora.updates.truncation import split

__all__ = ["ERROR", "Rank", "check_rank", "cut_to"]

Rank: TypeAlias = int | Literal["auto"] | None
"""The largest rank of a site; ``auto`` for the least under a bound; None to leave the ranks as they are."""

ERROR = 0.05
"""The default bound of a site's relative error with ``auto``."""


def check_rank(rank: Rank, error: float, adapter: Adapter) -> None:
    """Refuse a rank that means nothing, or that the kind of adapter does not have.

    Raises:
        ArgumentError: it is such a rank, or the bound is not between 0 and 1.
    """
    check_bound(error, "fuse.error")
    if rank is None:
        return
    if rank != "auto" and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ArgumentError("rank must be a whole number of at least 1, or auto", got=rank, where="fuse.rank")
    if not adapter.metadata.of_kind.has_factors:
        fix = "leave the rank out: a full adapter has no factors"
        raise ArgumentError("rank is for low-rank adapters", got=rank, where="fuse.rank", fix=fix)


def cut_to(fused: Adapter, rank: Rank, error: float, errors: Mapping[str, float]) -> Adapter:
    """Return a fused adapter cut to a rank; ``errors`` are those of its sites if that has been done already."""
    if rank is None:
        return fused
    return _within(fused, error) if rank == "auto" else truncate(fused, rank, errors)


def _within(fused: Adapter, bound: float) -> Adapter:
    sites = list(fused.updates)
    cut = dict(zip(sites, in_threads(lambda site: _least(fused.updates[site], bound), sites), strict=True))
    updates = {site: update for site, (update, _) in cut.items()}
    errors = {site: error for site, (_, error) in cut.items()}
    info = fused.metadata.fused
    assert info is not None
    ranks = [f.rank for update in updates.values() if (f := update.factors()) is not None]
    change = {"rank": max(ranks, default=None), "error_bound": bound, "site_errors": errors}
    change |= {"truncation_error": TaskVector(updates).total_error(errors)}
    metadata = fused.metadata.model_copy(update={"fused": info.model_copy(update=change)})
    smaller = replace(fused, updates=updates, metadata=metadata)
    if fused.start or all(update is fused.updates[site] for site, update in updates.items()):
        return smaller
    without = metadata.model_copy(update={"initial": None})  # new factors cannot be compared with φ₀
    return replace(smaller, metadata=without).with_details(initial=None)


def _least(update: Update, bound: float) -> tuple[Update, float]:
    """Return the update at the least rank within the bound, and its relative error."""
    if len(update.shape) != 2:
        return update, 0.0
    if update.factors() is not None:
        values = spectrum(update)
        return update.compress(min(least_rank(values, bound), len(values)))
    matrix = update.dense()
    found = leading_within(matrix, bound)
    rank = min(least_rank(found.s, bound, found.square), len(found.s))
    return LowRank(*split(found.u[:, :rank], found.s[:rank], found.vh[:rank], matrix.dtype)), found.error(rank)
