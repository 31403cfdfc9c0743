"""The space ``factors``: the changes of A and of B, as in the paper (arXiv:2310.04742) for LoRA.

Fusing A and B separately and multiplying afterwards adds cross terms between tasks, unless A is shared and frozen.
Linearized adapters have none: their update is linear in ``(A − A₀, B − B₀)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tangora.adapters.adapter import Adapter
from tangora.errors import FusionError
from tangora.fusion.contract import Coordinates
from tangora.fusion.lineage import fingerprint_of, is_same
from tangora.updates.task_vector import Dense, Factors, LowRank, TaskVector, Update

__all__ = ["SPACE"]

_DELTA = "use space='delta', which does not need it"


class _FactorsSpace:
    summary = "A and B separately, which adds cross terms"
    needs_factors = True
    needs_start = True
    plain = False
    intrinsic = False

    def check(self, adapters: Sequence[Adapter], names: Sequence[str]) -> None:
        """Refuse adapters with different sites, ranks, scalings or φ₀, or an unknown φ₀."""
        for name, adapter in zip(names, adapters, strict=True):
            initial = adapter.initial
            if initial is None or not adapter.updates.keys() <= initial.keys():
                what = f"space 'factors' needs φ₀, which {name} does not record"
                raise FusionError(what, where="fuse.space", fix=_DELTA)
            if odd := sorted(adapter.updates.keys() ^ adapters[0].updates.keys()):
                what = f"space 'factors' needs equal sites; {names[0]} and {name} differ"
                raise FusionError(what, where=odd[0], fix=_DELTA)
            for site in adapter.updates:
                _check_site(site, adapters[0], names[0], adapter, name)

    def coordinates(self, adapters: Sequence[Adapter]) -> Coordinates:
        """Return ``A − A₀`` and ``B − B₀`` of every site, as tensors ``<site>.lora_A`` and ``<site>.lora_B``."""
        vectors = [_vector(adapter) for adapter in adapters]
        return Coordinates(vectors, lambda fused: _updates(fused, adapters[0]), _site_of)

    def is_linear(self, adapters: Sequence[Adapter]) -> bool:
        """Return whether all are linearized: an update is then linear in its factors, without cross terms."""
        return all(adapter.metadata.linear_in_factors for adapter in adapters)


def _vector(adapter: Adapter) -> TaskVector:
    tensors: dict[str, Update] = {}
    for site, update in adapter.updates.items():
        start, factors = (adapter.initial or {})[site], _factors_of(update)
        b, a = factors.b, factors.a
        if _is_exported(factors, start):  # s·[B | B₀] @ [A₀ ; A − A₀]
            b, a = b[:, : start.rank], a[start.rank :] + start.a
        tensors |= {f"{site}.lora_A": Dense(a - start.a), f"{site}.lora_B": Dense(b - start.b)}
    return TaskVector(tensors)


def _updates(fused: TaskVector, like: Adapter) -> Mapping[str, Update]:
    """Return absolute updates of the fused sites; φ₀ and scalings are those of ``like``, as of all adapters."""
    updates: dict[str, Update] = {}
    for site, update in like.updates.items():
        if f"{site}.lora_A" not in fused:
            continue
        start, factors = (like.initial or {})[site], _factors_of(update)
        delta_a, delta_b = fused[f"{site}.lora_A"].dense(), fused[f"{site}.lora_B"].dense()
        if _is_exported(factors, start):
            b, a = torch.cat([start.b + delta_b, start.b], 1), torch.cat([start.a, delta_a], 0)
        else:
            b, a = start.b + delta_b, start.a + delta_a
        updates[site] = LowRank(b, a, factors.scaling)
    return updates


def _site_of(name: str) -> str:
    return name.rpartition(".")[0]


def _factors_of(update: Update) -> Factors:
    factors = update.factors()
    assert factors is not None  # checked by `check`
    return factors


def _is_exported(factors: Factors, start: LowRank) -> bool:
    """Return whether a linearized update is in the form that stock peft computes, with twice the rank of φ₀."""
    return factors.rank == 2 * start.rank


def _check_site(site: str, first: Adapter, a: str, adapter: Adapter, b: str) -> None:
    """Compare one site of an adapter with that of the first one."""
    ours, theirs = (first.initial or {})[site], (adapter.initial or {})[site]
    mine = _check_factored(adapter.updates[site], theirs, f"{b} at {site}", adapter.metadata.linear_in_factors)
    other = first.updates[site].factors() or mine
    for what, x, y in (("ranks", other.rank, mine.rank), ("scalings", other.scaling, mine.scaling)):
        if x != y:
            raise FusionError(f"the {what} differ: {a} has {x:g}, {b} has {y:g}", where=site, fix=_DELTA)
    if not is_same(theirs, ours):
        prints = f"{fingerprint_of(first.initial or {})} and {fingerprint_of(adapter.initial or {})}"
        what = f"{a} and {b} started from different φ₀, with fingerprints {prints}"
        raise FusionError(what, where=site, fix=_DELTA)


def _check_factored(update: Update, start: LowRank, where: str, linearized: bool) -> Factors:
    """Refuse an update that is neither ``s·BA`` with φ₀'s rank nor the linearized ``s·[B | B₀] [A₀ ; A − A₀]``."""
    factors = update.factors()
    if factors is None:
        raise FusionError("space 'factors' needs a low-rank update", where=where, fix=_DELTA)
    r = start.rank
    exported = linearized and _is_exported(factors, start)
    exported = exported and torch.equal(factors.b[:, r:], start.b) and torch.equal(factors.a[:r], start.a)
    if factors.rank != r and not exported:
        what = f"the rank is {factors.rank}, that of φ₀ {r}"
        raise FusionError(what, where=where, fix=_DELTA)
    return factors


SPACE = _FactorsSpace()
