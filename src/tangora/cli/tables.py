"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from tangora.evaluation.evaluator import Result
    from tangora.methods import Method
    from tangora.report.wide import Wide

__all__ = ["method_table", "score_table"]


def score_table(scores: Mapping[str, Mapping[str, Result]], names: Sequence[str], split: str) -> Wide:
    """Scores of candidates: a row for each, the mean first and then the tasks."""
    from tangora.report.wide import Column, Wide  # deferred: with the readers of a run, which --help does without

    means = [sum(results[name].score for name in names) / len(names) for results in scores.values()]
    columns = [Column("mean", [f"{mean:.3f}" for mean in means])]
    for name in names:
        columns.append(Column(name, [f"{results[name].score:.3f}" for results in scores.values()], most=8))
    return Wide(f"score on {split}", Column("adapter", list(scores), numbers=False), columns)


def method_table(methods: Mapping[str, Method]) -> Table:
    """Every fusion method."""
    from rich import box  # deferred: --json prints no table
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("what it does", overflow="fold", ratio=1)
    table.add_column("parameters", overflow="fold", max_width=18)
    table.add_column("weight", justify="right", no_wrap=True)
    for name, method in methods.items():
        parameters = "\n".join(f"{key}={value}" for key, value in method.parameters.items())
        table.add_row(name, f"{method.summary} {method.reference}", parameters, f"{method.default_weight:g}")
    return table
