"""The tables of `tangora tune`: the rows, the scores of all models, and what the fused adapter keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tangora.support.shown import decimal

if TYPE_CHECKING:
    from tangora.coefficients.own_rows import RowCut
    from tangora.evaluation.comparison import Cell, Comparison
    from tangora.report.wide import Wide

__all__ = ["cut_notes", "cut_table", "kept_table", "scores_table"]


def cut_table(cuts: Mapping[str, RowCut], choosing: str, scoring: str) -> Wide:
    """Return a table of the rows of each task on either side."""
    from tangora.report.wide import Column, Wide  # deferred: with the readers of a run, which --help does without

    columns = [
        Column("rows", [f"{cut.rows:,}" for cut in cuts.values()]),
        Column(choosing, [f"{cut.choosing:,}" for cut in cuts.values()]),
        Column(scoring, [f"{cut.scoring:,}" for cut in cuts.values()]),
    ]
    return Wide(
        "rows that choose coefficients, and rows that score", Column("task", list(cuts), numbers=False), columns
    )


def cut_notes(cuts: Mapping[str, RowCut]) -> Iterator[str]:
    """Yield what is worth a line about a cut."""
    for name, cut in cuts.items():
        if cut.alike:
            yield f"{name}: {cut.alike} rows have the input of another row, and are on the same side as it"


def scores_table(table: Comparison) -> Wide:
    """Return a table of scores, with a row for each model; a task's own adapter is marked."""
    from tangora.report.wide import Column, Wide  # deferred: as above

    columns = []
    if table.direction and len(table.tasks) > 1:
        columns.append(Column("mean", [decimal(table.mean(model).score) for model in table]))
    for task in table.tasks:
        own = table.experts.get(task)
        cells = [f"{decimal(table[model][task].score)}{'*' if model == own else ' '}" for model in table]
        columns.append(Column(f"{task} ", cells, most=12))
    metrics = dict.fromkeys(table.metrics.values())
    title = f"{', '.join(metrics)} on {table.split} rows (* a task's own adapter)"
    last = len(table.models) - 1
    return Wide(title, Column("model", table.models, numbers=False), columns, frozenset({1, last}), frozenset({last}))


def kept_table(table: Comparison, model: str) -> Wide:
    """Return a table of what a model keeps of each task's own adapter, with intervals."""
    from tangora.report.wide import Column, Wide  # deferred: as above

    tasks = list(table.tasks)
    cells = [table[model][task] for task in tasks]
    alone = [decimal(table[table.experts[task]][task].score) if task in table.experts else "–" for task in tasks]
    rows = [*tasks]
    if len(tasks) > 1:
        rows, cells, alone = [*tasks, "mean"], [*cells, table.mean(model)], [*alone, ""]
    columns = [
        Column("own adapter", alone),
        Column("fused", [_score(cell) for cell in cells]),
        Column("kept", [_kept(cell) for cell in cells]),
    ]
    title = "what the fused adapter keeps, with 95 % intervals over the rows"
    return Wide(title, Column("task", rows, numbers=False), columns, frozenset({len(tasks)}))


def _score(cell: Cell) -> str:
    if cell.score != cell.score:
        return "–"
    return f"{decimal(cell.score)} [{decimal(cell.low)}, {decimal(cell.high)}]"


def _kept(cell: Cell) -> str:
    if cell.kept is None or cell.kept_low is None or cell.kept_high is None:
        return "–"
    return f"{100 * cell.kept:.1f} % [{100 * cell.kept_low:.1f}, {100 * cell.kept_high:.1f}]"
