"""Texts that a model generates itself, as the targets of its rows: for searches and polishes without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangora.evaluation.evaluator import answering
from tangora.support.files import digest
from tangora.tasks.values import Split, Task, evaluating

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.tasks import Base, TaskModel

__all__ = ["generated_labels", "with_own_answers"]

_BATCH = 32


def generated_labels(model: TaskModel, rows: Split) -> list[Tensor]:
    """Return the token ids of the texts that the model itself generates, in the order of the rows."""
    texts: list[str] = [""] * len(rows)
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():  # inference mode would disable forward-mode differentiation
        for numbers, batch in rows.batches(_BATCH, model.collator):
            placed = {name: value.to(device) for name, value in batch.items()}
            placed["labels"] = torch.zeros(len(numbers), 1, dtype=torch.int64, device=device)
            for number, text in zip(numbers, model.predict_batch(placed)[0], strict=True):
                texts[number] = text
    return model.readout.labels_of(texts)


def with_own_answers(base: Base, task: Task, split: str, rows: Sequence[int], adapter: Adapter) -> Task:
    """Return the task with some rows of a split, whose target tokens are those that its adapter generates.

    Args:
        base: as before afterwards.
        task: answers with texts.
        split: of the task; the others are left out.
        rows: of the split.
        adapter: the task's expert.
    """
    chosen = task.splits[split].select(rows)
    bare = Split({name: v for name, v in chosen.inputs.items() if name not in ("labels", "earlier")}, [0] * len(chosen))
    with answering(adapter, base) as model_of:
        labels = generated_labels(model_of(task), bare)
    part = Split({**bare.inputs, "labels": labels}, chosen.targets)
    print_ = digest([task.fingerprint, split, part.fingerprint])
    return replace(task, splits={split: part}, fingerprint=print_)
