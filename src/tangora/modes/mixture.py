"""Joint training of several tasks: models that share a backbone, and batches of one task each, in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tangora.modes.trainer import Rows
from tangora.tasks.model import collate
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from jaxtyping import Int

    from tangora.tasks import Base
    from tangora.tasks.values import Batch

__all__ = ["Collate", "Combine", "MixedCollator", "MixedRows", "Mixture", "one_or_mixed"]

Collate = Callable[[Sequence[Mapping[str, Any]]], "Batch"]
Combine = Callable[[Sequence[nn.Module]], nn.Module]


def one_or_mixed(
    base: Base, tasks: Sequence[Task], drawn: int, batch: int, seeds: Sequence[int]
) -> tuple[Dataset[Any], Collate, Combine]:
    """Return the rows of a training in their order, their collator, and a function that combines the tasks' models.

    Args:
        base: provides the padding.
        tasks: their train rows are drawn.
        drawn: rows in all, a multiple of ``batch``.
        batch: rows of a batch.
        seeds: of the order of each task's rows.
    """
    splits = [task.splits["train"].dataset() for task in tasks]
    collators = tuple(_of_training(collate(task, base)) for task in tasks)
    if len(tasks) == 1:
        return Rows(splits[0], drawn, seeds[0]), collators[0], lambda models: models[0]
    blocks = drawn // batch
    shares = [len(range(index, blocks, len(tasks))) * batch for index in range(len(tasks))]
    streams = [Rows(*of_task) for of_task in zip(splits, shares, seeds, strict=True)]
    return MixedRows(streams, batch), MixedCollator(collators), Mixture


def _of_training(collator: Collate) -> Collate:
    """Return the collator that a family has for training, such as one that packs rows, or the same."""
    chosen: Callable[[], Collate] | None = getattr(collator, "for_training", None)
    return collator if chosen is None else chosen()


class MixedRows(Dataset[Any]):
    """Rows in the order of batches: ``batch`` of the first task, then of the second, ...; each has its ``task``."""

    def __init__(self, streams: Sequence[Rows], batch: int) -> None:
        self.streams, self.batch = list(streams), batch

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(map(len, self.streams))

    def __getitem__(self, position: int) -> Any:
        """Return the row at a position of the order."""
        block, place = divmod(position, self.batch)
        turn, task = divmod(block, len(self.streams))
        return {**self.streams[task][turn * self.batch + place], "task": task}


@dataclass(frozen=True)
class MixedCollator:
    """Collates rows of one task; picklable, for data loader processes."""

    collators: tuple[Collate, ...]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return the batch of rows of one task, with the task's number."""
        task = rows[0]["task"]
        bare = [{name: value for name, value in row.items() if name != "task"} for row in rows]
        return {**self.collators[task](bare), "task": torch.full((len(rows),), task)}


class Mixture(nn.Module):
    """Models of several tasks that share a backbone; each batch goes to the model of its task."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, task: Int[Tensor, " batch"], **inputs: Tensor) -> dict[str, Tensor]:
        """Return ``logits`` and ``loss``, as `TaskModel` does."""
        answer: dict[str, Tensor] = self.models[int(task[0])](**inputs)
        return answer
