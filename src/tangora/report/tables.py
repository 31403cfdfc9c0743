"""The tables of a report, for the page and for the terminal."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tangora.evaluation.tables import Row
from tangora.report.headline import kept_text, percent, score_text
from tangora.report.means import Mean
from tangora.report.seeds import named, spread
from tangora.report.summary import Key, Summary, mean_score, method_name, mode_name
from tangora.report.ways import reference, ways
from tangora.report.wide import Column, Wide
from tangora.support.json_text import parse_json
from tangora.support.shown import decimal
from tangora.tasks.metrics import direction

__all__ = [
    "MOST_ROWS",
    "PageTable",
    "analyses",
    "both_ways",
    "by_size",
    "coefficients_text",
    "csv_table",
    "overview",
    "polish",
    "terminal_analyses",
    "terminal_tables",
    "training",
    "ways_table",
]

MOST_ROWS = 3000  # longer tables are slow on phones
CHOSEN = {
    "validation": "validation",
    "oracle": "† test (oracle)",
    "none": "–",
    "given": "given",
    "": "",
}


@dataclass(frozen=True)
class PageTable:
    """A table for the page: cells are text, escaped by the template."""

    caption: str
    columns: Sequence[str]
    rows: list[list[str]]
    text_columns: int = 3  # number of text columns on the left; the others are numbers
    marked: set[int] = field(default_factory=set)  # rows marked as oracle


def overview(summary: Summary) -> PageTable:
    """Return the table of base, experts and every fusion on the largest subset, task by task."""
    size = summary.sizes[-1] if summary.sizes else len(summary.run.tasks)
    tasks = summary.largest.split("+") if summary.largest else summary.run.tasks
    rows = [["–", "zero-shot", "", *_reference(summary, summary.zero_shot(tasks), tasks, None, None)]]
    for mode in summary.run.modes:
        rows.append(
            [
                mode_name(mode),
                "experts, one per task",
                "",
                *_reference(summary, summary.experts(mode, tasks), tasks, 1.0, summary.expert_deviation(mode, tasks)),
            ]
        )
    marked = set()
    for key, mean in summary.at_largest().items():
        if key.oracle:
            marked.add(len(rows))
        rows.append([*_names(key), *_mean_cells(summary, mean), *_task_cells(summary, key, tasks)])
    subsets = max((m.subsets for m in summary.at_largest().values()), default=1)
    several = f"; means over {subsets} subsets, tasks from the first" if subsets > 1 else ""
    caption = f"Test scores with {size} tasks fused{several}{_over(summary)}"
    columns = ["mode", "method", "chosen on", "mean score", "kept of own experts", "kept of best experts", *tasks]
    return PageTable(caption, columns, rows, marked=marked)


def by_size(summary: Summary) -> PageTable:
    """Return the table of every fusion by number of tasks: mean score and kept share."""
    columns = ["mode", "method", "chosen on"]
    for n in summary.sizes:
        columns += [f"{n}: score", f"{n}: kept", f"{n}: every task"]
    rows = []
    for key in summary.fused:
        means, row = summary.by_size(key), _names(key)
        for n in summary.sizes:
            mean = means.get(n)
            cells = (_mean_text(summary, mean), kept_text(mean), _mean_or_dash(summary, mean.all_tasks)) if mean else ()
            row += cells or ("–", "–", "–")
        rows.append(row)
    marked = {i for i, key in enumerate(summary.fused) if key.oracle}
    return PageTable(
        "By number of fused tasks: score and kept over the fused tasks, score over every task of the run"
        + _over(summary),
        columns,
        rows,
        marked=marked,
    )


def training(summary: Summary) -> PageTable:
    """Return the table of the cost and result of each expert's training."""
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
    seeds = summary.run.seeds
    return PageTable(f"Experts; means over {named(seeds)}" if seeds else "Experts", columns, rows, text_columns=2)


def polish(summary: Summary) -> PageTable | None:
    """Return the table of what each polish of the largest subset gained; None if there was none."""
    rows = []
    for row in summary.polishes:
        experts = summary.experts(row.mode, list(row.scores))
        before, after = (sum(pair[i] for pair in row.scores.values()) / len(row.scores) for i in (0, 1))
        loss, last = (sum(values.values()) / len(values) for values in (row.before, row.after))
        counts = sorted(set(row.rows.values()))
        scores = [_mean_or_dash(summary, value) for value in (before, after, mean_score(experts))]
        cells = [*scores, f"{loss:.4f}", f"{last:.4f}"]
        steps = ", ".join(map(str, row.steps or [row.step]))
        cells += [str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}", steps]
        gained = [_gained(summary.metrics.get(task, ""), *pair) for task, pair in row.scores.items()]
        names = [mode_name(row.mode), method_name(row.method, row.space), CHOSEN.get(row.selection, row.selection)]
        rows.append([*names, *cells, *gained])
        tasks = list(row.scores)
    if not rows:
        return None
    columns = ["mode", "method", "chosen on", "fused", "polished", "experts", "divergence before", "after"]
    return PageTable(
        "Polish: mean test score before and after, divergence from the experts in nats, and what each task gained"
        + (f"; means over {named(summary.run.seeds)}" if summary.run.seeds else ""),
        [*columns, "rows a task", "step", *tasks],
        rows,
    )


def _gained(metric: str, before: float, after: float) -> str:
    """Return by how much a score is better, with a sign, also if less is better."""
    gain = direction([metric]) * (after - before)
    return ("+" if gain >= 0 else "") + decimal(gain)


def both_ways(summary: Summary) -> PageTable | None:
    """Return the table of adapters of an expansion in the ordinary network; None if there are none."""
    listed = summary.run.both_ways
    if not listed:
        return None
    tasks = list(dict.fromkeys(task for one in listed for task in one.scores))
    rows = []
    for one in listed:
        where = "plain peft" if one.in_peft else "the base's weights"
        means = [decimal(mean) if summary.direction else "–" for mean in one.means]
        pairs = (one.scores.get(task) for task in tasks)
        rows.append([mode_name(one.mode), one.name, where, one.split, *means, *map(_pair, pairs)])
    caption = "Adapters of an expansion in the ordinary network with their weights, which is another function"
    caption += f"; means over {named(summary.run.seeds)}" if summary.run.seeds else ""
    columns = ["mode", "adapter", "ordinary network", "rows", "in the expansion", "in the ordinary network", *tasks]
    return PageTable(caption, columns, rows, text_columns=4)


def ways_table(summary: Summary) -> PageTable | None:
    """Return the table of the ways to one model; None if the run compares none with another."""
    rows = []
    for way in ways(summary):
        numbers = [_rounded(way.trainable), _rounded(way.stored), _minutes(way.seconds)]
        kept = "–" if way.kept is None else percent(way.kept)
        score = _or_dash(way.score) + (spread(way.sd) if way.score is not None else "")
        rows.append([way.name, way.group, way.data, way.added, score, kept, *numbers])
    if not rows:
        return None
    mode = reference(summary)
    of = f"kept of {mode_name(mode)} experts" if mode is not None else "kept"
    columns = ["way", "kind", "data needed", "for one more task", "mean score", of, "trained per task"]
    caption = (
        "Ways to one model: what each scores, stores and needs. Trainings of fused and routed ones are their experts', "
        "with that of a polish or of a router"
    )
    if seeds := summary.run.seeds:
        caption += f"; scores are means over {named(seeds)}, sizes and times those of seed {seeds[0]}"
    return PageTable(caption, [*columns, "stored per task", "minutes of training"], rows, text_columns=4)


def _rounded(count: float | None) -> str:
    return "–" if count is None else f"{round(count):,}"


def _minutes(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds / 60:.1f}"


def _pair(scores: tuple[float, float] | None) -> str:
    return "–" if scores is None else " → ".join(map(decimal, scores))


def analyses(summary: Summary) -> PageTable:
    """Return the table of the results of ``tangora analyze``, a row per mode."""
    results = summary.run.analyses
    modes = sorted(results.modes, key=lambda m: summary.run.modes.index(m) if m in summary.run.modes else 99)
    measured = {mode: results.means(mode) for mode in modes}
    names = list(dict.fromkeys(name for means in measured.values() for name in means))
    rows = [[mode_name(mode), *(_or_dash(measured[mode].get(name)) for name in names)] for mode in modes]
    caption = "Analyses of the experts: means over pairs, or over experts"
    return PageTable(caption, ["mode", *names], rows, text_columns=1)


def terminal_analyses(summary: Summary) -> Wide:
    """Return the same table for rich."""
    table = analyses(summary)
    modes, *measures = zip(*table.rows, strict=True) if table.rows else ([] for _ in table.columns)
    columns = [Column(name, cells, most=13) for name, cells in zip(table.columns[1:], measures, strict=True)]
    return Wide(table.caption, Column(table.columns[0], modes, numbers=False), columns)


def csv_table(path: Path) -> PageTable:
    """Return a CSV file unchanged as a table."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    oracle = {i for i, row in enumerate(rows) if "oracle" in row}
    return PageTable(f"{path.name}, as it is: {len(rows)} rows", header, rows, text_columns=0, marked=oracle)


def terminal_tables(summary: Summary) -> list[Wide]:
    """Return a table for each mode, for rich: a row for zero-shot, for the experts, and for each fusion.

    Rows are those of the largest subset. Each score is followed by its share of the expert's score. Oracle rows are
    marked, and shown only if there are no others.
    """
    return [_terminal_table(summary, mode) for mode in summary.run.modes]


def _terminal_table(summary: Summary, mode: str) -> Wide:
    tasks = summary.largest.split("+") if summary.largest else summary.run.tasks
    means = summary.at_largest()
    keys = [key for key in summary.shown() if key.mode == mode and key in means]
    fused = [summary.fused_scores(key, summary.largest or "") for key in keys]
    zero, experts = summary.zero_shot(tasks), summary.experts(mode, tasks)
    measured = [mean_score(zero), mean_score(experts), *(means[key].score for key in keys)]
    score = [_mean_or_dash(summary, value) for value in measured]
    kept = ["", "", *(_share(means[key].kept) for key in keys)]
    chosen = ["", "", *(_chosen_text(summary, [row.coefficients for row in rows.values()]) for rows in fused)]
    columns = [Column("mean", score), Column("kept", kept), Column("coefficients", chosen, most=30, numbers=False)]
    if summary.run.seeds and summary.direction:
        spreads = [None, summary.expert_deviation(mode, tasks), *(means[key].sd for key in keys)]
        columns.insert(1, Column("sd", [_or_dash(sd) if sd is not None else "" for sd in spreads]))
    for task in tasks:
        cells = [_or_dash(rows[task].score if task in rows else None) for rows in (zero, experts)]
        columns.append(Column(task, [*cells, *(_terminal_cell(rows.get(task)) for rows in fused)], most=10))
    names = ["zero-shot", "experts", *(key.name for key in keys)]
    over = f"; {len(summary.run.seeds)} seeds" if summary.run.seeds else ""
    title = f"{mode_name(mode)}: test score with {len(tasks)} tasks fused, and share of the expert's{over}"
    return Wide(title, Column("method", names, numbers=False), columns, ruled=frozenset({2}))


def _chosen_text(summary: Summary, written: Sequence[str]) -> str:
    """Return a readable text of coefficients; with several seeds, of which each has its own, there is none of all."""
    return "differ by seed" if summary.run.seeds and set(written) == {""} else coefficients_text(written)


def coefficients_text(written: Sequence[str]) -> str:
    """Return a readable text of coefficients from ``scores.csv``.

    Args:
        written: JSON with ``weights`` and ``parameters``, of every row of a fusion.

    >>> coefficients_text(['{"weights": [0.3, 0.3], "parameters": {"density": 0.2}}'])
    'λ 0.3, density 0.2'
    >>> coefficients_text(['{"weights": {"up": [0.1, 0.5], "down": [0.2, 1.0]}}'])
    'per site, 0.1 to 1'
    """
    if len(set(written)) != 1:
        return "differ by subset" if written else ""
    try:
        raw = parse_json(written[0] or "{}")
    except ValueError:
        return written[0]
    return ", ".join([*_weights_text(raw.get("weights")), *(f"{k} {v}" for k, v in raw.get("parameters", {}).items())])


def _weights_text(weights: Any) -> list[str]:
    if not weights:
        return []
    if isinstance(weights, dict):
        numbers = [number for row in weights.values() for number in row]
        return [f"per site, {min(numbers):g} to {max(numbers):g}"]
    if len(set(weights)) == 1:
        return [f"λ {weights[0]:g}"]
    return [" ".join(f"{weight:.2g}" for weight in weights)]


def _terminal_cell(row: Row | None) -> str:
    return "–" if row is None else f"{decimal(row.score)} {_share(row.normalized):>4}".rstrip()


def _share(kept: float | None) -> str:
    return "" if kept is None else f"{100 * kept:.0f}%"


def _place(summary: Summary, mode: str, task: str) -> tuple[int, int]:
    modes, tasks = summary.run.modes, summary.run.tasks
    return modes.index(mode) if mode in modes else len(modes), tasks.index(task) if task in tasks else len(tasks)


def _names(key: Key) -> list[str]:
    return [mode_name(key.mode), method_name(key.method, key.space), CHOSEN.get(key.selection, key.selection)]


def _mean_cells(summary: Summary, mean: Mean) -> list[str]:
    return [
        _mean_text(summary, mean),
        kept_text(mean) or "–",
        percent(mean.kept_best) if mean.kept_best is not None else "–",
    ]


def _task_cells(summary: Summary, key: Key, tasks: Sequence[str]) -> list[str]:
    scores = summary.fused_scores(key, summary.largest or "")
    return [_score_or_dash(scores.get(t)) for t in tasks]


def _score_or_dash(row: Row | None) -> str:
    return "–" if row is None else decimal(row.score) + spread(row.score_sd)


def _over(summary: Summary) -> str:
    """Return over how many seeds a table has means; nothing for one."""
    seeds = summary.run.seeds
    return f"; means over {named(seeds)} ± their standard deviation" if seeds else ""


def _mean_text(summary: Summary, mean: Mean) -> str:
    return score_text(mean) if summary.direction else "–"


def _mean_or_dash(summary: Summary, value: float | None) -> str:
    """Return a mean over tasks; a dash if their scores have no common scale."""
    return _or_dash(value if summary.direction else None)


def _reference(
    summary: Summary, rows: dict[str, Row], tasks: Sequence[str], kept: float | None, sd: float | None
) -> list[str]:
    best = summary.mean_kept_best(rows.values())
    of_best = percent(best) if best is not None else "–"
    own = percent(kept) if kept is not None else "–"
    return [
        _mean_or_dash(summary, mean_score(rows)) + (spread(sd) if summary.direction else ""),
        own,
        of_best,
        *(_score_or_dash(rows.get(t)) for t in tasks),
    ]


def _or_dash(value: float | None) -> str:
    return "–" if value is None else decimal(value)
