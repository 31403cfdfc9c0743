"""The memory that columns will need, checked before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from tangora.errors import DataError
from tangora.support.seams import FAMILIES
from tangora.tasks.lines import count_lines, outcomes

if TYPE_CHECKING:
    from tangora.tasks import Base, Task
    from tangora.tasks.values import Split

__all__ = ["available_memory", "column_bytes", "refuse_unless_fits"]

SHARE = 0.5  # of the free memory: concatenating the batches doubles the need for a moment


def column_bytes(base: Base, task: Task, split: Split, columns: int, rows: int | None = None) -> int:
    """Return the bytes of float32 logits for ``columns`` columns (the origin is one): lines · classes · columns · 4.

    A line is a row, a target's token, a word or a label: see `tangora.tasks.lines`.
    """
    share = 1.0 if rows is None else rows / max(1, len(split))
    width, over = FAMILIES.get(task.family).readout(task, base).width, task.form.logits_over
    lines = count_lines(over, len(split), split.inputs.get("labels"), width)
    return round(4 * lines * share * outcomes(over, width) * columns)


def available_memory() -> int:
    """Return the number of bytes that are available without swapping."""
    return int(psutil.virtual_memory().available)


def refuse_unless_fits(
    base: Base, task: Task, split: Split, columns: int, rows: int | None = None, where: str = "columns"
) -> None:
    """Refuse columns that need more than half of the free memory.

    Raises:
        DataError: they do; the message has both numbers.
    """
    needed, free = column_bytes(base, task, split, columns, rows), available_memory()
    if needed > SHARE * free:
        raise DataError(
            f"{columns} columns need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            where=where,
            fix="limit the split's rows, use coefficients per task, or fewer tasks",
        )
