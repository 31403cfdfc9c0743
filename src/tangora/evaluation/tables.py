"""CSV tables: the rows of ``scores.csv``, and any other rows."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tangora.support.files import atomic_file

__all__ = ["BY_SEED", "COLUMNS", "SEED_COLUMNS", "Row", "write_csv"]


@dataclass(frozen=True)
class Row:
    """A line of ``scores.csv``.

    ``note`` says why there is no share of the expert: it names the task and the mode. With several seeds, the numbers
    are means over ``seeds`` of them, and those with ``_sd`` their standard deviations.
    """

    mode: str
    method: str
    space: str
    subset: str
    n_tasks: int
    in_subset: bool
    selection: str
    coefficients: str
    task: str
    split: str
    metric: str
    score: float
    normalized: float | None
    normalized_best: float | None
    ci_low: float | None
    ci_high: float | None
    note: str = ""
    seeds: int = 1
    score_sd: float | None = None
    normalized_sd: float | None = None
    normalized_best_sd: float | None = None

    @property
    def oracle(self) -> bool:
        """Whether the coefficients were chosen on the test split."""
        return self.selection == "oracle"


BY_SEED = "scores-by-seed.csv"
"""The scores with each seed, beside ``scores.csv`` with their means."""
SEED_COLUMNS = ("seeds", "score_sd", "normalized_sd", "normalized_best_sd")
"""Columns of ``scores.csv`` of several seeds, after the others."""
COLUMNS = tuple(field.name for field in fields(Row) if field.name not in SEED_COLUMNS)
"""Columns of every ``scores.csv``."""


def write_csv(path: str | os.PathLike[str], table: Sequence[Any], columns: Sequence[str] | None = None) -> None:
    """Write dataclass rows (or mappings) as CSV, atomically; floats with 6 digits, None as an empty field."""
    names = list(columns or COLUMNS)
    with atomic_file(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in table:
            values = row if isinstance(row, Mapping) else asdict(row)
            writer.writerow([_cell(values[name]) for name in names])


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
