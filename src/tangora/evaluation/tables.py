"""CSV tables: the rows of ``scores.csv``, and any other rows."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tangora.support.files import atomic_file

__all__ = ["Row", "write_csv"]


@dataclass(frozen=True)
class Row:
    """A line of ``scores.csv``.

    ``note`` says why there is no share of the expert: it names the task and the mode.
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

    @property
    def oracle(self) -> bool:
        """Whether the coefficients were chosen on the test split."""
        return self.selection == "oracle"


def write_csv(path: str | os.PathLike[str], table: Sequence[Any], columns: Sequence[str] | None = None) -> None:
    """Write dataclass rows (or mappings) as CSV, atomically; floats with 6 digits, None as an empty field."""
    names = list(columns or [f.name for f in fields(Row)])
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
