"""`table` and `compare`: the scores of runs for a paper, and paired tests between them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from tangora.report.data import read_scored
from tangora.report.grid import Grid
from tangora.report.paper import TableSettings, paper_table
from tangora.runs.compared import compare_runs
from tangora.runs.comparison import CompareSettings, RunComparison

__all__ = ["compare", "table"]

_PathLike: TypeAlias = str | os.PathLike[str]


def table(
    runs: _PathLike | Sequence[_PathLike],
    *,
    rows: str = "method",
    columns: str = "task",
    value: str = "score",
    split: str = "test",
    n_tasks: int | None = None,
    metric: str | None = None,
    methods: Sequence[str] = (),
    modes: Sequence[str] = (),
    over: str | None = None,
    bold: str = "best",
    oracle: bool = False,
    digits: int = 3,
) -> Grid:
    """Return a table of the scores of one or several runs, as ``tangora table`` does.

    Args:
        runs: a run's folder, or several.
        rows, columns: ``run``, ``mode``, ``method``, ``n_tasks`` or ``task``. Others that vary are further columns.
        value: ``score``, or ``kept``: the share of the own expert's score, in [0, 1].
        split: ``test`` or ``validation``.
        n_tasks: only fusions of so many tasks; by default the largest number, or all if it is a row or column.
        metric: by default the primary one of each task.
        methods, modes: only these; empty for all.
        over: ``seed`` for means and standard deviations over runs that differ in the seed alone. A run with several
            seeds has them anyway.
        bold: ``best`` of each column, without zero-shot and experts; ``all`` with them; or ``none``.
        oracle: whether fusions that were chosen on test rows are shown.
        digits: decimals.

    Raises:
        ArgumentError: a choice is invalid, nothing is left, or the runs do not go together.
        FileError: a folder is no finished run, or a file is invalid.

    >>> import tangora
    >>> "zero-shot" in tangora.table("run", digits=2).csv()
    True
    """
    settings = TableSettings(
        rows=rows,
        columns=columns,
        value=value,
        split=split,
        n_tasks=n_tasks,
        metric=metric,
        methods=methods,
        modes=modes,
        over=over,
        bold=bold,
        oracle=oracle,
        digits=digits,
    )
    listed = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    return paper_table([read_scored(Path(run), metric) for run in listed], settings)


def compare(
    run: _PathLike,
    other: _PathLike | None = None,
    *,
    baseline: str | None = None,
    methods: Sequence[str] = (),
    modes: Sequence[str] = (),
    tasks: Sequence[str] = (),
    n_tasks: int | None = None,
    permutations: int = 10_000,
    resamples: int | None = None,
    seed: int | None = None,
) -> RunComparison:
    """Compare two runs, or the methods of one run with a baseline, on the same test rows, as ``tangora compare`` does.

    Args:
        run: a run's folder; its scores are subtracted.
        other: another run's; None to compare within one run.
        baseline: within one run, a method, or ``METHOD/SPACE``.
        methods, modes, tasks: only these; empty for all.
        n_tasks: only fusions of so many tasks.
        permutations: largest number of exchanges of predictions; p-values are exact if there are no more.
        resamples: of intervals; by default as in the run's recipe.
        seed: of exchanges and resamples; by default the recipe's.

    Raises:
        ArgumentError: tasks, metrics or rows differ, the metrics have no mean, or there is nothing to compare.
        FileError: a folder is no finished run, or its rows are not recorded.

    >>> import tangora
    >>> {row.test.difference for row in tangora.compare("run", "run").rows}  # with itself
    {0.0}
    """
    settings = CompareSettings(baseline, methods, modes, tasks, n_tasks, permutations, resamples, seed)
    return compare_runs(Path(run), Path(other) if other is not None else None, settings)
