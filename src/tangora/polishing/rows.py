"""The rows that a polish uses: which ones, without their labels, and whether they are test rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangora.errors import DataError
from tangora.tasks.batches import IGNORED
from tangora.tasks.values import Split, Task, fingerprint_of

if TYPE_CHECKING:
    from tangora.tasks.contract import LogitsOver

__all__ = ["choose_rows", "joined", "refuse_unlabelled", "shared_with_test", "without_labels"]

_TARGETS = ("labels", "earlier")  # the targets of a row, and those among the tokens of its prompt


def choose_rows(task: Task, split: str, count: int, seed: int) -> list[int]:
    """Return the numbers of ``count`` rows of a split, drawn by seed and task; those of fewer rows come first.

    Raises:
        DataError: the task has no such split.
    """
    if split not in task.splits:
        fix = "give rows of the task's inputs"
        raise DataError("the split is missing", got=split, where=f"task {task.name}", fix=fix)
    available = len(task.splits[split])
    order = random.Random(f"polish:{seed}:{task.name}").sample(range(available), available)
    return order[:count]


def refuse_unlabelled(task: Task, split: str, who: str) -> None:
    """Refuse rows whose targets are placeholders.

    Args:
        task: of the rows.
        split: with the rows.
        who: reads the labels; for the error.

    Raises:
        DataError: they are.
    """
    if not task.splits[split].labelled:
        fix = "give --recipe, whose tasks have labels"
        raise DataError(f"{who} needs labels, and the rows have none", where=f"task {task.name}, {split}", fix=fix)


def without_labels(rows: Split, over: LogitsOver | None) -> Split:
    """Return the inputs with placeholders as targets.

    Args:
        rows: of a task.
        over: what the task's logits are over. Of tags, the positions of the words are kept as labels: every tag is 0.
    """
    inputs = {name: values for name, values in rows.inputs.items() if name not in _TARGETS}
    if over == "tags":
        inputs["labels"] = [torch.where(row == IGNORED, row, 0) for row in rows.inputs["labels"]]
    return Split(inputs, [0] * len(rows))


def joined(parts: Sequence[Split]) -> Split:
    """Return the rows of several splits of the same inputs, one after the other."""
    inputs: dict[str, Any] = {}
    for name, values in parts[0].inputs.items():
        listed = [part.inputs[name] for part in parts]
        one = isinstance(values, Tensor)
        inputs[name] = torch.cat([*map(torch.as_tensor, listed)]) if one else [row for rows in listed for row in rows]
    return Split(inputs, [0] * sum(map(len, parts)))


def shared_with_test(task: Task, split: str, rows: Sequence[int]) -> int:
    """Return how many of these rows have the inputs of a test row of the task."""
    if "test" not in task.splits:
        return 0
    own, test = task.splits[split], task.splits["test"]
    prints = {_row_print(test, row) for row in range(len(test))}
    return sum(_row_print(own, row) in prints for row in rows)


def _row_print(split: Split, row: int) -> str:
    return fingerprint_of({name: values[row] for name, values in split.inputs.items() if name not in _TARGETS})
