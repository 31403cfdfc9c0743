"""A backbone and the readout of one task: losses, logits and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tangora.errors import DataError
from tangora.support.seams import FAMILIES
from tangora.support.shown import one_line
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.tasks.base import Base
    from tangora.tasks.contract import Readout
    from tangora.tasks.values import Batch, Collate, Split, Task

__all__ = ["Predictions", "TaskModel", "collate", "predict"]


@dataclass(frozen=True)
class Predictions:
    """What a model answers each row with, in the split's order.

    Attributes:
        values: class numbers (int64), generated texts, or numbers (float64).
        losses: of each row (float32).
    """

    values: np.ndarray | list[str]
    losses: np.ndarray

    def __repr__(self) -> str:
        return one_line("Predictions", f"{len(self.losses)} rows", f"mean loss {self.losses.mean():.4g}")


def collate(task: Task, base: Base) -> Collate:
    """Return the function that makes entries of ``task`` a batch, as `DataLoader` and `Trainer` want it."""
    found: Collate = FAMILIES.get(task.family).collate(base)
    return found


class TaskModel(nn.Module):
    """A backbone (adapted or not) that answers ``task``, through a readout.

    Args:
        backbone: the base's own, or a `PeftModel` around it.
        task: gives the family, and what its readout needs.
        base: gives preprocessing and settings.
        readout: the task's; by default a new one, whose parameters, if it has any, are at their start.
    """

    def __init__(self, backbone: nn.Module, task: Task, base: Base, readout: Readout | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.collator = collate(task, base)
        self.readout: Readout = FAMILIES.get(task.family).readout(task, base) if readout is None else readout
        cast(nn.Module, self.readout).to(next(backbone.parameters()).device).train(backbone.training)
        self.answers = FAMILIES.get(task.family).answers
        self.training = backbone.training

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """Return ``logits``, and with labels the mean ``loss``.

        Args:
            labels: of the batch.
            inputs: the rest of the batch, by the names that the family's backbone takes.
        """
        logits = self.logits(inputs, labels)
        if labels is None:
            return {"logits": logits}
        return {"loss": self.readout.losses(logits, labels).mean(), "logits": logits}

    def predict_batch(self, batch: Batch) -> tuple[list[Any], Float[Tensor, "batch"]]:
        """Return answers and losses of the rows of one batch."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return self.readout.answer(self.backbone, inputs, batch["labels"], None)

    def logits(self, inputs: Batch, labels: Tensor | None = None) -> Float[Tensor, "batch *tokens width"]:
        """Return float32 logits of the classes, or of the tokens of the targets ``labels``."""
        return self.readout.logits(self.readout.features(self.backbone, inputs, labels))

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute activations in the backward pass; frozen inputs need it non-reentrant, so that is the default."""
        chosen = gradient_checkpointing_kwargs or {"use_reentrant": False}
        cast(Any, self.backbone).gradient_checkpointing_enable(gradient_checkpointing_kwargs=chosen)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        cast(Any, self.backbone).gradient_checkpointing_disable()


def predict(model: TaskModel, split: Split, batch_size: int) -> Predictions:
    """Return predictions and losses for every row of ``split``, in order.

    Rows of similar length share a batch, and batches are prepared once per split and ``batch_size``: predicting again
    with other weights costs forward passes only.

    Args:
        model: put into evaluation mode meanwhile.
        split: of the model's task.
        batch_size: rows per forward pass; changes results by rounding at most.

    Raises:
        DataError: ``batch_size`` is smaller than 1.
    """
    if batch_size < 1:
        raise DataError("batch_size must be at least 1", got=batch_size, where="evaluation.batch_size")
    device = next(model.parameters()).device
    values: list[Any] = [None] * len(split)
    found = np.empty(len(split), dtype=np.float32)
    with evaluating(model), torch.no_grad():  # not inference mode, in which no tangent flows
        for rows, batch in split.batches(batch_size, model.collator):
            answers, row_losses = model.predict_batch({k: v.to(device) for k, v in batch.items()})
            found[rows] = row_losses.cpu().numpy()
            for row, answer in zip(rows, answers, strict=True):
                values[row] = answer
    return Predictions(_of_kind(values, model.answers), found)


def _of_kind(values: list[Any], answers: str) -> np.ndarray | list[str]:
    kinds: Mapping[str, Any] = {"classes": np.int64, "number": np.float64}
    return np.array(values, dtype=kinds[answers]) if answers in kinds else values
