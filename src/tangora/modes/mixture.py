"""Joint training of several tasks: models that share a backbone, and batches of one task each, or of several.

rows of each task ─ draws ─▶ MixedRows ─ MixedCollator ─▶ one part per task in the batch ─ Mixture ─▶ mean loss
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tangora.adapters.initial import seed_of
from tangora.config.settings import SamplingSettings
from tangora.modes.sampling import draws
from tangora.modes.trainer import Rows
from tangora.modes.uncertainty import Candidates, CandidatesCollator, Choosing, refuse_packed
from tangora.tasks.model import collate
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from tangora.tasks import Base
    from tangora.tasks.values import Batch

__all__ = [
    "Collate",
    "Combine",
    "MixedCollator",
    "MixedRows",
    "Mixture",
    "Ordered",
    "TaskMeans",
    "in_turns",
    "one_or_mixed",
]

Collate = Callable[[Sequence[Mapping[str, Any]]], "Batch"]
Combine = Callable[[Sequence[nn.Module]], nn.Module]
Ordered = tuple["Dataset[Any]", Callable[[Any], Any], Combine]
"""Rows in their order, their collator, and a function that combines the tasks' models."""


def one_or_mixed(
    base: Base,
    tasks: Sequence[Task],
    drawn: int,
    batch: int,
    seed: int,
    sampling: SamplingSettings | None = None,
    combine: Combine | None = None,
) -> Ordered:
    """Return the rows of a training in their order, their collator, and a function that combines the tasks' models.

    Args:
        base: provides the padding.
        tasks: their train rows are drawn.
        drawn: rows in all, a multiple of ``batch``.
        batch: rows of a batch.
        seed: of the order of each task's rows, and of the order of the tasks.
        sampling: how tasks are drawn; by default in turn, a batch each.
        combine: of several models; by default a `Mixture`.
    """
    splits: list[Any] = [task.splits["train"].dataset() for task in tasks]
    collators = tuple(_of_training(collate(task, base)) for task in tasks)
    seeds = [seed_of("order", seed, task.name) for task in tasks]
    if len(tasks) == 1 and combine is None:
        return Rows(splits[0], drawn, seeds[0]), collators[0], lambda models: models[0]
    chosen = sampling or SamplingSettings()
    if chosen.by == "uncertainty":
        refuse_packed(tasks, [collate(task, base) for task in tasks])
        return _least_certain(tasks, splits, collators, seeds, drawn, batch, chosen, combine or Mixture)
    count = drawn if chosen.mixed else drawn // batch
    order = draws(
        chosen, [len(split) for split in splits], count, seed_of("tasks", seed, "+".join(t.name for t in tasks))
    )
    order = order if chosen.mixed else [task for task in order for _ in range(batch)]
    shares = Counter(order)
    streams = [Rows(split, shares[i], seeds[i]) for i, split in enumerate(splits)]
    return MixedRows(streams, order), MixedCollator(collators), combine or Mixture


def _least_certain(
    tasks: Sequence[Task],
    splits: Sequence[Any],
    collators: tuple[Collate, ...],
    seeds: Sequence[int],
    drawn: int,
    batch: int,
    sampling: SamplingSettings,
    combine: Combine,
) -> Ordered:
    """Return candidates of every task for each row, and a model that trains on the least certain ones of a batch."""
    streams = [Rows(split, drawn, seed) for split, seed in zip(splits, seeds, strict=True)]
    order = draws(sampling, [len(split) for split in splits], drawn * len(splits), 0)
    rows = Candidates(MixedRows(streams, order), len(splits), batch)
    forms = [task.form for task in tasks]
    return (
        rows,
        CandidatesCollator(MixedCollator(collators)),
        lambda models: Choosing(combine(models), forms, sampling.scored == "released"),
    )


def in_turns(count: int, batch: int, length: int) -> list[int]:
    """Return the number of a task for each of ``length`` rows: ``batch`` of the first task, then of the second, ...

    >>> in_turns(2, 2, 8)
    [0, 0, 1, 1, 0, 0, 1, 1]
    """
    return [position // batch % count for position in range(length)]


def _of_training(collator: Collate) -> Collate:
    """Return the collator that a family has for training, such as one that packs rows, or the same."""
    chosen: Callable[[], Collate] | None = getattr(collator, "for_training", None)
    return collator if chosen is None else chosen()


class MixedRows(Dataset[Any]):
    """Rows of several tasks in one order; each has its ``task``.

    Args:
        streams: the rows of each task, in their order.
        order: the number of a task for each row.
    """

    def __init__(self, streams: Sequence[Rows], order: Sequence[int]) -> None:
        self.streams, self.order = list(streams), list(order)
        seen: Counter[int] = Counter()
        self._places = []
        for task in self.order:
            self._places.append(seen[task])
            seen[task] += 1

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.order)

    def __getitem__(self, position: int) -> Any:
        """Return the row at a position of the order."""
        task = self.order[position]
        return {**self.streams[task][self._places[position]], "task": task}


@dataclass(frozen=True)
class MixedCollator:
    """Collates rows of several tasks, each task's by itself; picklable, for data loader processes."""

    collators: tuple[Collate, ...]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Batch]]:
        """Return ``parts``: a batch for each task that has rows, with its number in ``task``, in the tasks' order."""
        parts = []
        for task in sorted({row["task"] for row in rows}):
            bare = [{n: value for n, value in row.items() if n != "task"} for row in rows if row["task"] == task]
            parts.append({**self.collators[task](bare), "task": torch.full((len(bare),), task)})
        return {"parts": parts}


class Mixture(nn.Module):
    """Models of several tasks that share a backbone; each part of a batch goes to the model of its task."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, parts: Sequence[Batch]) -> dict[str, Tensor]:
        """Return the mean ``loss`` over the rows of all parts."""
        rows, losses = [], []
        for part in parts:
            task = part["task"]
            inputs = {name: value for name, value in part.items() if name != "task"}
            losses.append(self.models[int(task[0])](**inputs)["loss"])
            rows.append(len(task))
        return {"loss": self.combined(torch.stack(losses), torch.tensor(rows, device=losses[0].device))}

    def combined(self, losses: Tensor, rows: Tensor) -> Tensor:
        """Return one loss from the mean loss of each part, and its number of rows."""
        return losses[0] if len(losses) == 1 else (losses * rows).sum() / rows.sum()


class TaskMeans(Mixture):
    """A mixture with the mean over the tasks of a batch of each task's mean loss (arXiv:2009.09139)."""

    def combined(self, losses: Tensor, rows: Tensor) -> Tensor:
        """Return the mean of the parts' losses, however many rows they have."""
        return losses.mean()
