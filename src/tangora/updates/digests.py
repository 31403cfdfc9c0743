"""The digests of an adapter's updates, several at once: Python releases its lock while it hashes."""

from __future__ import annotations

from collections.abc import Mapping

from tangora.support.threads import in_threads
from tangora.updates.update import Update

__all__ = ["digests"]

# Below a megabyte of float32 numbers, to start threads takes as long as to hash.
_LARGE = 2**18


def digests(updates: Mapping[str, Update]) -> list[tuple[str, str]]:
    """Return every site and the digest of its update, sorted by site.

    Factors are hashed in threads. Other updates come one after the other: some compute a whole matrix for it.
    """
    sites = sorted(updates)
    ranks = {site: factors.rank for site in sites if (factors := updates[site].factors()) is not None}
    numbers = sum(rank * sum(updates[site].shape) for site, rank in ranks.items())
    if numbers < _LARGE:
        return [(site, updates[site].digest()) for site in sites]
    found = dict(zip(ranks, in_threads(lambda site: updates[site].digest(), list(ranks)), strict=True))
    return [(site, found[site] if site in found else updates[site].digest()) for site in sites]
