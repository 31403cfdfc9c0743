"""The tables of a report: for the page, and for the terminal."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tangora.report.data import Score
from tangora.report.headline import kept_text, percent, score_text
from tangora.report.summary import Key, Mean, Summary, mean_score, method_name, mode_name

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = [
    "MOST_ROWS",
    "Table",
    "analyses",
    "by_size",
    "csv_table",
    "overview",
    "terminal_analyses",
    "terminal_tables",
    "training",
]

MOST_ROWS = 3000  # a longer table makes a phone stutter
_ACROSS = 5  # fusions in a terminal table of 100 columns
CHOSEN = {
    "validation": "validation",
    "oracle": "† test (oracle)",
    "none": "–",
    "given": "given",
    "": "",
}


@dataclass(frozen=True)
class Table:
    """A table for the page: cells are text, escaped by the template."""

    caption: str
    columns: Sequence[str]
    rows: list[list[str]]
    text_columns: int = 3  # that many on the left are text, the others numbers
    marked: set[int] = field(default_factory=set)  # rows with the mark of an oracle


def overview(summary: Summary) -> Table:
    """Base, experts and every fusion on the largest subset, task by task."""
    size = summary.sizes[-1] if summary.sizes else len(summary.run.tasks)
    tasks = summary.largest.split("+") if summary.largest else summary.run.tasks
    rows = [["–", "zero-shot", "", *_reference(summary.zero_shot(tasks), tasks, None)]]
    for mode in summary.run.modes:
        rows.append(
            [mode_name(mode), "experts, one per task", "", *_reference(summary.experts(mode, tasks), tasks, 1.0)]
        )
    marked = set()
    for key, mean in summary.at_largest().items():
        if key.oracle:
            marked.add(len(rows))
        rows.append([*_names(key), *_mean_cells(mean), *_task_cells(summary, key, tasks)])
    subsets = max((m.subsets for m in summary.at_largest().values()), default=1)
    several = f"; means over {subsets} subsets, tasks from the first" if subsets > 1 else ""
    caption = f"Test scores with {size} tasks fused{several}"
    columns = ["mode", "method", "chosen on", "mean score", "kept of own experts", "kept of best experts", *tasks]
    return Table(caption, columns, rows, marked=marked)


def by_size(summary: Summary) -> Table:
    """Every fusion by number of tasks: mean score and kept share."""
    columns = ["mode", "method", "chosen on"]
    for n in summary.sizes:
        columns += [f"{n}: score", f"{n}: kept", f"{n}: every task"]
    rows = []
    for key in summary.fused:
        means, row = summary.by_size(key), _names(key)
        for n in summary.sizes:
            mean = means.get(n)
            row += [score_text(mean), kept_text(mean), _or_dash(mean.all_tasks)] if mean else ["–", "–", "–"]
        rows.append(row)
    marked = {i for i, key in enumerate(summary.fused) if key.oracle}
    return Table(
        "By number of fused tasks: score and kept over the fused tasks, score over every task of the run",
        columns,
        rows,
        marked=marked,
    )


def training(summary: Summary) -> Table:
    """What each expert cost and reached."""
    rows = []
    for (mode, task), t in sorted(summary.run.training.items(), key=lambda item: _place(summary, *item[0])):
        share = percent(t.trainable / t.total) if t.trainable and t.total else "–"
        last = t.validation[-1] if t.validation else {}
        rows.append(
            [
                mode_name(mode),
                task,
                f"{t.trainable:,}" if t.trainable is not None else "–",
                share,
                str(t.steps[-1]) if t.steps else "–",
                _or_dash(t.loss[-1] if t.loss else None),
                _or_dash(last.get("score")),
                f"{t.seconds:.1f}" if t.seconds is not None else "–",
            ]
        )
    columns = ["mode", "task", "trainable", "share", "steps", "last loss", "validation score", "seconds"]
    return Table("Experts", columns, rows, text_columns=2)


def analyses(summary: Summary) -> Table:
    """What ``tangora analyze`` found, a row per mode."""
    found = summary.run.analyses
    modes = sorted(found.modes, key=lambda m: summary.run.modes.index(m) if m in summary.run.modes else 99)
    measured = {mode: found.means(mode) for mode in modes}
    names = list(dict.fromkeys(name for means in measured.values() for name in means))
    rows = [[mode_name(mode), *(_or_dash(measured[mode].get(name)) for name in names)] for mode in modes]
    return Table("Analyses of the experts: means over pairs, or over experts", ["mode", *names], rows, text_columns=1)


def terminal_analyses(summary: Summary) -> RichTable:
    """The same, to be printed by rich."""
    from rich import box
    from rich.table import Table as RichTable

    found = analyses(summary)
    table = RichTable(title=found.caption, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    for index, name in enumerate(found.columns):
        table.add_column(name, justify="right" if index else "left", max_width=13)
    for row in found.rows:
        table.add_row(*row)
    return table


def csv_table(path: Path) -> Table:
    """A CSV file as it is."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    oracle = {i for i, row in enumerate(rows) if "oracle" in row}
    return Table(f"{path.name}, as it is: {len(rows)} rows", header, rows, text_columns=0, marked=oracle)


def terminal_tables(summary: Summary) -> list[RichTable]:
    """One `rich.table.Table` per mode: zero-shot, expert and each fusion of the largest subset; fits 100 columns.

    Oracle rows are shown only when there is nothing else, and marked.
    """
    means = summary.at_largest()
    tables = []
    for mode in summary.run.modes:
        keys = [k for k in summary.shown() if k.mode == mode and k in means]
        parts = [keys[i : i + _ACROSS] for i in range(0, len(keys), _ACROSS)] or [[]]
        tables += [_terminal_table(summary, mode, part) for part in parts]
    return tables


def _terminal_table(summary: Summary, mode: str, keys: list[Key]) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    tasks = summary.largest.split("+") if summary.largest else summary.run.tasks
    zero, experts = summary.zero_shot(tasks), summary.experts(mode, tasks)
    fused = [summary.fused_scores(k, summary.largest or "") for k in keys]
    title = f"{mode_name(mode)}: test score, and share of the expert's kept"
    table = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    table.add_column("task", overflow="ellipsis", max_width=16, no_wrap=True)
    for name in ("zero-shot", "expert"):
        table.add_column(name, justify="right", no_wrap=True)
    for key in keys:
        table.add_column(Text(key.name), justify="right", min_width=10, max_width=10, overflow="fold")
    for task in tasks:
        cells = [_or_dash(rows[task].score if task in rows else None) for rows in (zero, experts)]
        cells += [_terminal_cell(rows.get(task)) for rows in fused]
        table.add_row(Text(task), *cells, end_section=task == tasks[-1])
    means = summary.at_largest()
    cells = [_terminal_pair(means[k].score, means[k].kept) for k in keys]
    table.add_row("mean", _or_dash(mean_score(zero)), _or_dash(mean_score(experts)), *cells, style="bold")
    return table


def _terminal_cell(row: Score | None) -> str:
    return "–" if row is None else _terminal_pair(row.score, row.normalized)


def _terminal_pair(score: float, kept: float | None) -> str:
    return f"{score:.3f}" + ("" if kept is None else f" {100 * kept:3.0f}%")


def _place(summary: Summary, mode: str, task: str) -> tuple[int, int]:
    modes, tasks = summary.run.modes, summary.run.tasks
    return modes.index(mode) if mode in modes else len(modes), tasks.index(task) if task in tasks else len(tasks)


def _names(key: Key) -> list[str]:
    return [mode_name(key.mode), method_name(key.method, key.space), CHOSEN.get(key.selection, key.selection)]


def _mean_cells(mean: Mean) -> list[str]:
    return [score_text(mean), kept_text(mean) or "–", percent(mean.kept_best) if mean.kept_best is not None else "–"]


def _task_cells(summary: Summary, key: Key, tasks: Sequence[str]) -> list[str]:
    scores = summary.fused_scores(key, summary.largest or "")
    return [_or_dash(scores[t].score if t in scores else None) for t in tasks]


def _reference(rows: dict[str, Score], tasks: Sequence[str], kept: float | None) -> list[str]:
    best = [r.normalized_best for r in rows.values() if r.normalized_best is not None]
    of_best = percent(sum(best) / len(best)) if best and len(best) == len(rows) else "–"
    own = percent(kept) if kept is not None else "–"
    return [_or_dash(mean_score(rows)), own, of_best, *(_or_dash(rows[t].score if t in rows else None) for t in tasks)]


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
