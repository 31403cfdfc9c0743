"""Cut the rows of one file into those that coefficients are chosen on and those that score the result.

Rows with equal inputs stay on one side: otherwise a result would be scored on rows that it was chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tangora.coefficients.rows import pick
from tangora.errors import DataError
from tangora.support.files import digest
from tangora.tasks.values import Split, fingerprint_of

if TYPE_CHECKING:
    from tangora.tasks import Task

__all__ = ["CHOOSING", "MOST", "SCORING", "RowCut", "cut_rows"]

CHOOSING, SCORING = "choosing", "scoring"
"""The names of the two splits."""

MOST = 200
"""Choosing rows of a task unless another number is given: half of its rows, and no more than these."""

_LEAST = 2  # scoring rows, of which an interval can be made


@dataclass(frozen=True)
class RowCut:
    """How the rows of a task were cut.

    Attributes:
        rows: all of them.
        choosing, scoring: numbers of rows on either side.
        alike: rows with the input of another row, which are on the same side.
    """

    rows: int
    choosing: int
    scoring: int
    alike: int


def cut_rows(task: Task, split: str, labels: int | None, seed: int) -> tuple[Task, RowCut]:
    """Return the task with the splits ``choosing`` and ``scoring`` in place of one split, and the numbers of rows.

    Args:
        task: with the rows.
        split: that is cut.
        labels: number of choosing rows; by default half of the rows, and at most `MOST`. It is not exceeded; rows with
            equal inputs may make it a few less.
        seed: of the cut, which keeps the proportions of classes; together with the task's name.

    Raises:
        DataError: there are too few different rows.
    """
    rows = task.splits[split]
    groups = _alike(rows, ("labels", "earlier") if task.form.kind != "likelihood" else ())  # texts have no other input
    wanted = min(len(rows) // 2, MOST) if labels is None else labels
    chosen: list[int] = []
    for number in pick([rows.targets[group[0]] for group in groups], None, seed, task.name):
        if len(chosen) + len(groups[number]) <= wanted:
            chosen += groups[number]
    taken = set(chosen)
    scoring = [row for row in range(len(rows)) if row not in taken]
    _refuse_few(task.name, len(rows), len(groups), len(chosen), len(scoring), wanted)
    parts = {CHOOSING: rows.select(sorted(chosen)), SCORING: rows.select(scoring)}
    prints = [task.fingerprint, *(part.fingerprint for part in parts.values())]
    alike = sum(len(group) for group in groups if len(group) > 1)
    return replace(task, splits=parts, fingerprint=digest(prints)), RowCut(len(rows), len(chosen), len(scoring), alike)


def _alike(rows: Split, without: Sequence[str]) -> list[list[int]]:
    """Return groups of rows with equal inputs, in the order of their first rows."""
    groups: dict[str, list[int]] = {}
    read = {name: values for name, values in rows.inputs.items() if name not in without}
    for row in range(len(rows)):
        groups.setdefault(fingerprint_of({name: values[row] for name, values in read.items()}), []).append(row)
    return list(groups.values())


def _refuse_few(task: str, rows: int, different: int, choosing: int, scoring: int, wanted: int) -> None:
    """Refuse a cut with too few rows on a side."""
    if choosing and scoring >= _LEAST:
        return
    got = f"{rows} rows" + (f" with {different} different inputs" if different < rows else "")
    if choosing and scoring < _LEAST:
        what = f"{choosing} choosing rows leave {scoring} to score on, fewer than {_LEAST}"
        raise DataError(what, got=got, where=f"task {task}", fix="choose on fewer rows with --labels, or add rows")
    what = f"no choosing row can be cut off: {wanted} are wanted"
    raise DataError(what, got=got, where=f"task {task}", fix="add rows with different inputs")
