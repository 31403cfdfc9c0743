"""The factors of one site, and the ranks of all sites within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tangora.adapters.initial import seed_of
from tangora.errors import ArgumentError
from tangora.extraction.deltas import matrix_of, residual
from tangora.extraction.pairs import Pair
from tangora.support.sizes import size_text
from tangora.updates.range_finder import Leading, leading, leading_within
from tangora.updates.ranks import least_rank
from tangora.updates.update import LowRank

__all__ = ["Rank", "Site", "site_of", "within"]

Rank = int | Literal["auto"]
_ZERO = 1e-9  # of the largest singular value: what is below is zero, and only its rounding is left


@dataclass(frozen=True)
class Site:
    """The factors of a site in the order of its singular values, and what they leave.

    Attributes:
        pair: the weight in both checkpoints.
        update: the factors, rounded to the file's dtype, in float32.
        values: the singular values that they have.
        error: ``‖ΔW − B A‖ / ‖ΔW‖``, computed from the rounded factors in float64.
        square: ``‖ΔW‖²``.
    """

    pair: Pair
    update: LowRank
    values: Tensor
    error: float
    square: float

    @property
    def cost(self) -> int:
        """The numbers of one rank."""
        return sum(self.update.shape)

    def cut(self, rank: int) -> Site:
        """Return the site with the leading singular values only; the checkpoints are read again for its error."""
        if rank >= self.update.rank:
            return self
        update = LowRank(self.update.b[:, :rank].contiguous(), self.update.a[:rank].contiguous())
        return Site(self.pair, update, self.values[:rank], _error(self.pair, update, self.square), self.square)


def site_of(pair: Pair, square: float, rank: Rank, bound: float, dtype: torch.dtype) -> Site:
    """Return the factors of a changed weight.

    Args:
        pair: the weight.
        square: ``‖ΔW‖²``.
        rank: the largest rank; ``auto`` for the least with an error of at most ``bound``.
        bound: of the relative error.
        dtype: of the file, to which the factors are rounded.

    Raises:
        ArgumentError: no rank has so small an error in this dtype.
    """
    matrix, seed = matrix_of(pair), seed_of("extract", pair.name) % 2**63
    if rank != "auto":
        found = leading(matrix, rank, seed)
        kept = min(rank, int((found.s > _ZERO * found.s[0]).sum()))
        return _site(pair, found, kept, square, dtype)
    found = leading_within(matrix, bound, seed)
    del matrix
    kept = min(least_rank(found.s, bound, found.square), len(found.s))
    site = _site(pair, found, kept, square, dtype)
    while site.error > bound and kept < len(found.s):  # rounded, the factors may be just beyond the bound
        kept = min(len(found.s), kept + max(1, kept // 16))
        site = _site(pair, found, kept, square, dtype)
    if site.error > bound:
        fix = "give a larger --error, or leave --dtype out"
        what = f"no rank has so small an error: rounding the factors leaves {site.error:.1e}"
        raise ArgumentError(what, got=bound, where=pair.layer, fix=fix)
    return site


def _site(pair: Pair, found: Leading, rank: int, square: float, dtype: torch.dtype) -> Site:
    root = found.s[:rank].sqrt()
    b, a = found.u[:, :rank] * root, root[:, None] * found.vh[:rank]
    update = LowRank(b.to(dtype).float().contiguous(), a.to(dtype).float().contiguous())
    return Site(pair, update, found.s[:rank], _error(pair, update, square), square)


def _error(pair: Pair, update: LowRank, square: float) -> float:
    return math.sqrt(residual(pair, update) / square)


def within(sites: Sequence[Site], budget: int, itemsize: int) -> Mapping[str, int]:
    """Return site -> rank, so that the factors of all sites take at most ``budget`` bytes and leave the least error.

    Every site keeps rank 1. Beyond that, ranks are added in the order of the energy that they keep for a byte.

    Raises:
        ArgumentError: one rank for every site takes more.
    """
    ranks = {site.pair.layer: 1 for site in sites}
    left = budget - itemsize * sum(site.cost for site in sites)
    if left < 0:
        fix = f"give at least {size_text(budget - left)}"
        raise ArgumentError(
            "one rank for every site takes more", got=size_text(budget), where="extract.budget", fix=fix
        )
    steps = [(float(v) ** 2 / site.cost, -k, i) for i, site in enumerate(sites) for k, v in enumerate(site.values) if k]
    closed: set[int] = set()
    for _, _, i in sorted(steps, reverse=True):
        cost = itemsize * sites[i].cost
        if i in closed or cost > left:
            closed.add(i)  # a later rank of the site without this one would be another update
            continue
        left -= cost
        ranks[sites[i].pair.layer] += 1
    return ranks
