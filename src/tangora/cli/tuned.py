"""What `tangora tune` prints: which adapter is of which task, what was chosen, and what speaks against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangora.cli.comparison import cut_table, kept_table, scores_table
from tangora.cli.weights import weights_line
from tangora.coefficients.choosing import GRID_SEARCH, LEAST_ROWS
from tangora.coefficients.result import FUSED
from tangora.evaluation.warnings import score_warnings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tangora.adapters.in_peft.verification import Verification
    from tangora.cli.tuning import Bench, Named
    from tangora.coefficients.result import SearchResult

__all__ = ["document_of", "lines_of", "pair_notes", "plan_of", "tables_of"]


def pair_notes(named: Named, bench: Bench) -> Iterator[str]:
    """Yield which adapter is of which task, where the names do not say it, and what has no counterpart."""
    tasks = [task.name for task in bench.tasks]
    pairs = [f"{place} is of {name}" for name, place in named.given.items() if name in tasks]
    if named.in_order:
        yield f"adapters and rows in the order that they are given: {', '.join(pairs)}"
    if idle := [place for name, place in named.given.items() if name not in tasks]:
        yield f"without rows of a task of their own, so weighed by what they do for the others: {', '.join(idle)}"
    if alone := [name for name in tasks if name not in named.given]:
        yield f"without an adapter of their own, so done by the others: {', '.join(alone)}"


def plan_of(named: Named, bench: Bench, grid: Sequence[float], search: str | None) -> tuple[dict[str, Any], str]:
    """Return what would be done: the rows that are answered, for a program and as a line."""
    tasks, adapters = [task.name for task in bench.tasks], len(named.given)
    choosing = sum(cut.choosing for cut in bench.cuts.values())
    scoring = sum(cut.scoring for cut in bench.cuts.values())
    own = sum(bench.cuts[name].choosing * (1 if name in named.given else adapters) for name in tasks)
    chosen, scored = own + len(grid) * choosing, (3 + adapters) * scoring
    cuts = {name: vars(cut) for name, cut in bench.cuts.items()}
    document = {"dry_run": True, "adapters": dict(named.given), "rows": cuts, "answers": chosen + scored}
    few = min(cut.choosing for cut in bench.cuts.values()) < LEAST_ROWS
    more = "" if search == GRID_SEARCH or (search is None and few) else ", and those of a search"
    line = f"{adapters} adapters: {chosen:,} answers to choose one number for all{more}; {scored:,} to score"
    return document, line


def tables_of(bench: Bench, found: SearchResult) -> Iterator[RenderableType]:
    """Yield the tables of the rows, the scores, and what is kept."""
    assert found.table is not None
    yield cut_table(bench.cuts, bench.choosing, bench.scoring)
    yield scores_table(found.table)
    yield kept_table(found.table, FUSED)


def lines_of(bench: Bench, found: SearchResult, verified: Verification | None, out: Path) -> Iterator[str]:
    """Yield what was chosen, what speaks against it, and where it is."""
    yield f"search: {found.search} ({found.reason})"
    yield weights_line(found.weights, found.names)
    adapter = found.adapter
    ranks = sorted({update.rank for update in adapter.updates.values() if hasattr(update, "rank")})
    if ranks:
        yield f"rank: {ranks[0]}" if len(ranks) == 1 else f"rank: {ranks[0]} to {ranks[-1]}"
    if adapter.metadata.fused is not None and adapter.metadata.fused.truncation_error:
        yield f"relative error of the truncation: {adapter.metadata.fused.truncation_error:.3g}"
    yield from (f"note: {line}" for line in [*found.notes, *_doubts(found, bench)])
    if adapter.metadata.expanded:
        yield "it answers in its expansion, and plain peft loads another function: use tangora predict or load_model"
    yield f"adapter: {out.resolve()}"
    if verified is not None:
        yield f"verified in {verified.seconds:.1f} s: {verified.summary()}"


def _doubts(found: SearchResult, bench: Bench) -> list[str]:
    """Return what makes scores doubtful: rows that were cut, and answers without an end, of those that count."""
    table = found.table
    assert table is not None
    own = {model: {task: table.results[model][task]} for task, model in table.experts.items()}
    both = (bench.choosing, bench.scoring)
    return score_warnings({**own, FUSED: table.results[FUSED]}, list(bench.tasks), bench.scoring, cut=both)


def document_of(
    named: Named, bench: Bench, found: SearchResult, verified: Verification | None, out: Path
) -> dict[str, Any]:
    """Return the result for a program."""
    assert found.table is not None
    return {
        "adapter": out,
        "adapters": dict(named.given),
        "search": found.search,
        "reason": found.reason,
        "weights": found.weights,
        "names": list(found.names),
        "one": found.one,
        "selection": found.to_dict(),
        "rows": {name: vars(cut) for name, cut in bench.cuts.items()},
        "table": found.table.to_dict(),
        "notes": [*found.notes, *_doubts(found, bench)],
        "verified": None if verified is None else verified.to_dict() | {"seconds": verified.seconds},
    }
