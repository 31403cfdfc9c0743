"""Several tasks in one training: models that share a backbone, and batches of one task each, in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tangora.modes.trainer import Rows
from tangora.tasks.model import TaskModel, collate
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from jaxtyping import Int

    from tangora.tasks import Base
    from tangora.tasks.values import Batch

__all__ = ["Mixture", "MixedRows", "one_or_mixed"]

Collate = Callable[[Sequence[Mapping[str, Any]]], "Batch"]
Combine = Callable[[Sequence[TaskModel]], nn.Module]


def one_or_mixed(
    base: Base, tasks: Sequence[Task], drawn: int, batch: int, seeds: Sequence[int]
) -> tuple[Dataset[Any], Collate, Combine]:
    """Return the rows of a training in their order, what makes batches of them, and what makes one model of the tasks'.

    Args:
        base: gives padding.
        tasks: whose train rows are drawn.
        drawn: rows in all, a multiple of ``batch``.
        batch: rows of a batch.
        seeds: of the order of each task's rows.
    """
    splits = [task.splits["train"].dataset() for task in tasks]
    collators = tuple(collate(task, base) for task in tasks)
    if len(tasks) == 1:
        return Rows(splits[0], drawn, seeds[0]), collators[0], lambda models: models[0]
    blocks = drawn // batch
    shares = [len(range(index, blocks, len(tasks))) * batch for index in range(len(tasks))]
    streams = [Rows(*of_task) for of_task in zip(splits, shares, seeds, strict=True)]
    return MixedRows(streams, batch), _MixedCollator(collators), Mixture


class MixedRows(Dataset[Any]):
    """Batches of the tasks in turn: ``batch`` rows of the first, then of the second, ...; each row has its ``task``."""

    def __init__(self, streams: Sequence[Rows], batch: int) -> None:
        self.streams, self.batch = list(streams), batch

    def __len__(self) -> int:
        """Rows in all."""
        return sum(map(len, self.streams))

    def __getitem__(self, position: int) -> Any:
        """The row at one place of the order."""
        block, place = divmod(position, self.batch)
        turn, task = divmod(block, len(self.streams))
        return {**self.streams[task][turn * self.batch + place], "task": task}


@dataclass(frozen=True)
class _MixedCollator:
    """Rows of one task to a batch; a value, so that data loader processes can have it."""

    collators: tuple[Collate, ...]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        task = rows[0]["task"]
        bare = [{name: value for name, value in row.items() if name != "task"} for row in rows]
        return {**self.collators[task](bare), "task": torch.full((len(rows),), task)}


class Mixture(nn.Module):
    """Models of several tasks that share a backbone; a batch is answered by the model of its task."""

    def __init__(self, models: Sequence[TaskModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, task: Int[Tensor, " batch"], **inputs: Tensor) -> dict[str, Tensor]:
        """``logits`` and ``loss``, as `TaskModel` returns them."""
        answer: dict[str, Tensor] = self.models[int(task[0])](**inputs)
        return answer
