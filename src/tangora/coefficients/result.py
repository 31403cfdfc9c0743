"""The result of `tangora.search`: coefficients, the adapter fused with them, and what it keeps. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tangora.coefficients.found import Found
from tangora.support.shown import decimal, one_line

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.evaluation.comparison import Comparison, Difference

__all__ = ["BASE", "FUSED", "ONE", "SearchResult", "verdicts"]

BASE, ONE, FUSED = "base alone", "one λ for all", "fused"
"""The models of the table besides the adapters."""


@dataclass(frozen=True, kw_only=True, repr=False)
class SearchResult(Found):
    """Coefficients, the adapter that is fused with them, and the scores of all models on other rows.

    Attributes:
        names: of the adapters, in the order of ``weights``: the task of one that is a task's own.
        search: the search that found the coefficients, or ``grid`` for one λ for all adapters.
        reason: why this search was used.
        adapter: the fused adapter, with its lineage, the search, its rows and its scores in the metadata.
        one: the λ of a grid that is best for all adapters together, on the same rows.
        table: the base, the adapters, one λ and the fused adapter, on rows that chose nothing; None if nothing was
            scored.
        notes: what a reader should know: one λ, a single adapter or the base is better, and the like.
    """

    names: Sequence[str]
    search: str
    reason: str
    adapter: Adapter
    one: float
    table: Comparison | None = None
    notes: Sequence[str] = ()

    def __repr__(self) -> str:
        weights = self.weights if isinstance(self.weights, list) else None
        shown = None if weights is None else "weights " + " ".join(f"{weight:g}" for weight in weights)
        kept = self.table.mean(FUSED).kept if self.table is not None else None
        return one_line("SearchResult", self.search, shown, kept and f"keeps {100 * kept:.1f} %")


def verdicts(table: Comparison, names: Sequence[str], one: float) -> Iterator[str]:
    """Yield what speaks against a fused adapter, by its scores on rows that chose nothing.

    Args:
        table: with the models `BASE`, ``names``, perhaps `ONE`, and `FUSED`.
        names: of the adapters.
        one: the λ of `ONE`.
    """
    if ONE in table.results and table.rank(ONE) > table.rank(FUSED):
        yield f"one λ of {one:g} for all {_beats(table, ONE)}: tangora fuse with --weights {one:g} makes it"
    best = max(names, key=table.rank)
    if table.rank(best) > table.rank(FUSED):
        yield f"{best} alone {_beats(table, best)}"
    if table.rank(BASE) > table.rank(FUSED):
        yield f"the base alone {_beats(table, BASE)}"
    for task in table.tasks:
        own, more = table.experts.get(task), table.more(BASE, FUSED, task).value
        if own is not None and table.more(BASE, own, task).value >= 0:
            unshared = ", and what is kept of it is left out" if task in table.without_share else ""
            doubt = "is it of this task, base and prompt?"
            yield f"{task}: its own adapter is no better than the base alone{unshared}: {doubt}"
        elif more > 0 and len(table.tasks) > 1:
            yield f"{task}: the base alone scores more than the fused adapter"


def _beats(table: Comparison, model: str) -> str:
    """Return how much better a model is than the fused one."""
    difference = table.more(model, FUSED)
    if table.direction:
        own, other = (decimal(table.mean(name).score) for name in (model, FUSED))
        return f"scores {own}, better than these coefficients' {other} ({_interval(difference)})"
    own, other = (f"{100 * (table.mean(name).kept or 0):.1f} %" for name in (model, FUSED))
    return f"keeps {own}, more than these coefficients' {other} ({_interval(difference)})"


def _interval(difference: Difference) -> str:
    return f"difference {difference.value:.3f} [{difference.low:.3f}, {difference.high:.3f}]"
