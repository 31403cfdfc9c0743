"""Score fused candidates: equal ones once, linear ones on columns if there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from tangora.adapters.heads import heads_digest
from tangora.evaluation.evaluator import Evaluator, Result, scoring_key
from tangora.fusion.fusion import Fusion
from tangora.methods import get
from tangora.support.files import digest
from tangora.support.source import source_digest

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.fusion.weights import WeightTable
    from tangora.methods import Method

__all__ = ["ColumnScores", "Scoring", "candidate_key", "linear_coefficients"]

_DIGITS = 9


class ColumnScores(Protocol):
    """Scores linear fusions of some adapters on the columns of their logits, without a forward pass."""

    def __call__(
        self,
        tasks: Sequence[str],
        split: str,
        weights: Mapping[str, float],
        rows: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, Result]:
        """Return results on ``tasks`` of the fusion with ``weights``, by the names of the adapters."""
        ...


@dataclass(frozen=True)
class Scoring:
    """Scores fused candidates, by forward passes or on columns if their logits are linear.

    Attributes:
        evaluator: passes rows through the model, and caches results by the candidate's key.
        seed: of random methods.
        columns: of the adapters' mode, if its logits are linear in the coefficients.
        rows: task -> the rows to score on; by default all.
    """

    evaluator: Evaluator
    seed: int = 0
    columns: ColumnScores | None = None
    rows: Mapping[str, Sequence[int]] | None = None

    def on(self, rows: Mapping[str, Sequence[int]], split: str) -> Scoring:
        """Return the same scoring on some rows of a split."""
        return replace(self, evaluator=self.evaluator.on(rows, split), rows=rows)

    def results(
        self,
        fusion: Fusion,
        method: str,
        weights: WeightTable,
        parameters: Mapping[str, Any],
        tasks: Sequence[str],
        split: str,
        rank: int | None = None,
    ) -> dict[str, Result]:
        """Return the results of one candidate on ``split`` of ``tasks``, measured now or before.

        Args:
            fusion: of the adapters, with the names of their columns.
            method, weights, parameters: the candidate, as `Fusion.merge` takes it.
            tasks: names.
            split: of the tasks.
            rank: every site is cut to it; None for the fusion as it is.
        """
        linear = linear_coefficients(method, weights, parameters) if rank is None else None  # a cut is not linear
        if linear is not None and self.columns is not None:
            return self.columns(tasks, split, dict(zip(fusion.names, linear, strict=True)), self.rows)
        key = candidate_key(fusion, method, weights, parameters, self.seed)
        if rank is not None:
            key = digest(["rank", rank, key])
        return self.evaluator.evaluate(key, lambda: fusion.merge(method, weights, parameters, rank), tasks, split)

    def of_adapter(self, adapter: Adapter, tasks: Sequence[str], split: str) -> dict[str, Result]:
        """Return the results of an adapter that is no fusion of others, measured now or before."""
        return self.evaluator.evaluate(scoring_key(adapter), lambda: adapter, tasks, split)


def candidate_key(fusion: Fusion, method: str, weights: WeightTable, parameters: Mapping[str, Any], seed: int) -> str:
    """Return a key that equal candidates share, whatever their names, and that changes with the code of the method.

    A linear method is identified by its coefficients: the average of two is task arithmetic at 1/2, all zeros is the
    base model, and a single 1 is the expert itself. In a linear space it is also equal to the same fusion in ``delta``.
    Coefficients that differ by less than 1e-9 count as equal, and those that are equal at every site as per task.
    """
    key = _updates_key(fusion, method, weights, parameters, seed)
    if not any(adapter.heads for adapter in fusion.adapters):
        return key
    # a fusion contains the heads of all its adapters, also of those with coefficient zero
    return digest(["heads", sorted(heads_digest(adapter.heads) for adapter in fusion.adapters), key])


def _updates_key(fusion: Fusion, method: str, weights: WeightTable, parameters: Mapping[str, Any], seed: int) -> str:
    """Return a key of the fused updates."""
    chosen = get(method)
    prints = [scoring_key(a) for a in fusion.adapters]
    table = _collapsed(weights)
    if not chosen.linear:
        return _nonlinear_key(fusion, chosen, prints, table, parameters, seed)
    coefficients = _by_adapter(_multipliers(chosen, table, parameters))
    terms = _terms(prints, coefficients)
    if not terms:  # if B₀ is not zero, φ₀ is not the base model
        return digest(["start", prints]) if any(a.start for a in fusion.adapters) else "zero_shot"
    if list(terms.values()) == [1.0]:
        return next(iter(terms))
    return digest(["linear", "delta" if fusion.is_linear() else fusion.space, terms, _engine_code()])


def _nonlinear_key(
    fusion: Fusion, method: Method, prints: Sequence[str], table: WeightTable, parameters: Mapping[str, Any], seed: int
) -> str:
    members = sorted(zip(prints, _by_adapter(table), strict=True), key=lambda m: (m[0], repr(m[1])))
    code = [_engine_code(), source_digest(method.function)]
    key = ["fused", method.name, fusion.space, dict(parameters), members, seed if method.random else 0, code]
    if method.statistics:
        fingerprints = {a.fingerprint for a in fusion.adapters}
        key.append(sorted(s.fingerprint for s in fusion.statistics if s.about.adapter in fingerprints))
    return digest(key)


@cache
def _engine_code() -> str:
    """Return a digest of the fusing code, without that of the methods."""
    return source_digest(Fusion, without=("tangora.errors", "tangora.progress"))


def linear_coefficients(method: str, weights: WeightTable, parameters: Mapping[str, Any]) -> list[float] | None:
    """Return each adapter's factor, or None if the method is not linear or weights differ by site."""
    chosen, table = get(method), _collapsed(weights)
    if not chosen.linear or isinstance(table, dict):
        return None
    return chosen.coefficients(table, parameters)


def _collapsed(weights: WeightTable) -> WeightTable:
    """Return a single row if all sites have the same one."""
    if not isinstance(weights, dict):
        return weights
    rows = list(weights.values())
    return rows[0] if rows and all(row == rows[0] for row in rows) else weights


def _multipliers(method: Method, table: WeightTable, parameters: Mapping[str, Any]) -> WeightTable:
    """Return the factor of each adapter in a linear method."""
    if isinstance(table, dict):
        return {site: method.coefficients(row, parameters) for site, row in table.items()}
    return method.coefficients(table, parameters)


def _terms(
    prints: Sequence[str], coefficients: Sequence[float] | Sequence[dict[str, float]]
) -> dict[str, float | dict[str, float]]:
    """Return adapter -> coefficient, without zeros; those of equal adapters (of a joint mode) add up."""
    terms: dict[str, Any] = {}
    for print_, value in zip(prints, coefficients, strict=True):
        before = terms.get(print_)
        if before is None:
            terms[print_] = value
        elif isinstance(value, dict):
            terms[print_] = {site: round(before[site] + c, _DIGITS) for site, c in value.items()}
        else:
            terms[print_] = round(before + value, _DIGITS)
    return {p: c for p, c in terms.items() if (any(c.values()) if isinstance(c, dict) else c)}


def _by_adapter(table: WeightTable) -> list[float] | list[dict[str, float]]:
    """Return a number for each adapter, or a number for each of its sites."""
    if not isinstance(table, dict):
        return [round(w, _DIGITS) for w in table]
    count = len(next(iter(table.values())))
    return [{site: round(table[site][i], _DIGITS) for site in sorted(table)} for i in range(count)]
