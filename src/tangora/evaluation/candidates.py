"""When two candidates of a comparison are one, so that it is scored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tangora.adapters.heads import heads_digest
from tangora.evaluation.evaluator import scoring_key
from tangora.support.files import digest

if TYPE_CHECKING:
    from tangora.fusion.fusion import Fusion
    from tangora.fusion.weights import Table
    from tangora.methods import Method

__all__ = ["candidate_key", "linear_coefficients"]

_DIGITS = 9


def candidate_key(fusion: Fusion, method: str, weights: Table, parameters: Mapping[str, Any], seed: int) -> str:
    """A key that equal candidates share, however they were named.

    A linear method is its coefficients: the average of two is task arithmetic at 1/2, all zeros is the base model,
    and a single 1 is the expert itself; for linearized adapters of one φ₀ it is also the same in both spaces.
    Coefficients that differ by less than 1e-9 count as equal, and those that are the same at every site are per task.
    """
    if any(a.heads for a in fusion.adapters):  # a fusion carries all of them, also those of adapters at zero
        heads = sorted(heads_digest(a.heads) for a in fusion.adapters)
        return digest(["heads", heads, _updates_key(fusion, method, weights, parameters, seed)])
    return _updates_key(fusion, method, weights, parameters, seed)


def _updates_key(fusion: Fusion, method: str, weights: Table, parameters: Mapping[str, Any], seed: int) -> str:
    """What decides the fused updates."""
    from tangora.methods import get

    chosen = get(method)
    prints = [scoring_key(a) for a in fusion.adapters]
    fingerprints = {a.fingerprint for a in fusion.adapters}
    table = _collapsed(weights)
    if not chosen.linear:
        members = sorted(zip(prints, _by_adapter(table), strict=True), key=lambda m: (m[0], repr(m[1])))
        key = ["fused", method, fusion.space, dict(parameters), members, seed if chosen.random else 0]
        if chosen.statistics:
            key.append(sorted(s.fingerprint for s in fusion.statistics if s.about.adapter in fingerprints))
        return digest(key)
    coefficients = _by_adapter(_through(chosen, table, parameters))
    terms = {p: c for p, c in zip(prints, coefficients, strict=True) if (any(c.values()) if isinstance(c, dict) else c)}
    if not terms:  # where B₀ is not zero, φ₀ is not the base model
        return digest(["start", prints]) if any(a.start for a in fusion.adapters) else "zero_shot"
    if list(terms.values()) == [1.0]:
        return next(iter(terms))
    apart = fusion.space == "factors" and any(a.metadata.linearize == "none" for a in fusion.adapters)
    return digest(["linear", "factors" if apart else "delta", terms])


def linear_coefficients(method: str, weights: Table, parameters: Mapping[str, Any]) -> list[float] | None:
    """What each adapter is multiplied with; None where a method is not linear, or sites have weights of their own."""
    from tangora.methods import get

    chosen, table = get(method), _collapsed(weights)
    if not chosen.linear or isinstance(table, dict):
        return None
    found = _through(chosen, table, parameters)
    assert not isinstance(found, dict)
    return list(found)


def _collapsed(weights: Table) -> Table:
    """One row where every site has the same."""
    if not isinstance(weights, dict):
        return weights
    rows = list(weights.values())
    return rows[0] if rows and all(row == rows[0] for row in rows) else weights


def _through(method: Method, table: Table, parameters: Mapping[str, Any]) -> Table:
    """What a linear method multiplies each adapter with."""
    import torch

    def row(weights: Sequence[float]) -> list[float]:
        identity = torch.eye(len(weights), dtype=torch.float64)
        column = torch.tensor(list(weights), dtype=torch.float64)[:, None]
        values: list[float] = method(identity, weights=column, **parameters).tolist()
        return values

    return {site: row(w) for site, w in table.items()} if isinstance(table, dict) else row(table)


def _by_adapter(table: Table) -> list[float] | list[dict[str, float]]:
    """A number for each adapter, or one for each of its sites."""
    if not isinstance(table, dict):
        return [round(w, _DIGITS) for w in table]
    count = len(next(iter(table.values())))
    return [{site: round(table[site][i], _DIGITS) for site in sorted(table)} for i in range(count)]
