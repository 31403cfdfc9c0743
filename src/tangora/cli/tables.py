"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from tangora.evaluation.evaluator import Result
    from tangora.methods import Method

__all__ = ["method_table", "score_table"]


def score_table(scores: Mapping[str, Mapping[str, Result]], names: Sequence[str], split: str) -> Table:
    """Scores of candidates: a row a task and their mean, a column a candidate."""
    table = Table(title=f"score on {split}", box=None, header_style="bold")
    table.add_column("task")
    for candidate in scores:
        table.add_column(candidate, justify="right", overflow="fold")
    for name in names:
        table.add_row(name, *(f"{results[name].score:.3f}" for results in scores.values()))
    means = [sum(r[n].score for n in names) / len(names) for r in scores.values()]
    table.add_row("mean", *(f"{mean:.3f}" for mean in means), style="bold")
    return table


def method_table(methods: Mapping[str, Method]) -> Table:
    """Every fusion method."""
    table = Table(box=None, header_style="bold")
    for column in ("method", "what it does", "parameters", "weight", "reference"):
        table.add_column(column, overflow="fold")
    for name, method in methods.items():
        parameters = ", ".join(f"{k}={v}" for k, v in method.parameters.items())
        table.add_row(name, method.summary, parameters, f"{method.default_weight:g}", method.reference)
    return table
