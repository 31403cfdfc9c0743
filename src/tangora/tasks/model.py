"""`TaskModel`: a backbone with the readout of one task, and its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tangora.adapters.heads import heads_digest
from tangora.errors import AdapterError, ArgumentError
from tangora.support.seams import FAMILIES
from tangora.support.shown import one_line
from tangora.tasks.fitting import head_of
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.adapters.adapter import Adapter
    from tangora.tasks.base import Base
    from tangora.tasks.contract import Readout
    from tangora.tasks.values import Batch, Collate, Split, Task

__all__ = ["Predictions", "TaskModel", "collate", "make_readout", "predict"]


@dataclass(frozen=True)
class Predictions:
    """A model's answer and loss for each row, in the split's order.

    Attributes:
        values: an answer per row: class numbers as int64, numbers as float64, others as a list.
        losses: of each row (float32).
        unended: number of generated answers that reached the largest number of tokens without an end.
    """

    values: np.ndarray | list[Any]

    @property
    def plain(self) -> list[Any]:
        """The answers as plain Python values."""
        return self.values.tolist() if isinstance(self.values, np.ndarray) else list(self.values)

    losses: np.ndarray
    unended: int = 0

    def __repr__(self) -> str:
        return one_line("Predictions", f"{len(self.losses)} rows", f"mean loss {self.losses.mean():.4g}")


def collate(task: Task, base: Base) -> Collate:
    """Return the function that collates entries of ``task`` into a batch, for `DataLoader` and `Trainer`."""
    function: Collate = FAMILIES.get(task.family).collate(base)
    return function


def make_readout(task: Task, base: Base, *adapters: Adapter) -> Readout:
    """Return a readout of the task, with the head that one of the adapters has for it (`tangora.tasks.fitting`).

    If none has one, or the readout has no parameters, it is the family's new readout.

    Args:
        task: the task.
        base: its base.
        adapters: the adapters to search for heads.

    Raises:
        AdapterError: the head's classes, names, shapes or settings differ; two adapters have different heads for the
            task.
    """
    readout: Readout = FAMILIES.get(task.family).readout(task, base)
    module = cast(nn.Module, readout)
    if not module.state_dict():
        return readout
    found = [(a, head_of(a, base, task, module.state_dict().keys())) for a in adapters]
    heads = {heads_digest({task.name: head}): (a, head) for a, head in found if head is not None}
    if len(heads) > 1:
        fix = "give the expert of each task once"
        raise AdapterError("two adapters have different heads for one task", got=task.name, where="heads", fix=fix)
    for adapter, head in heads.values():
        _refuse_other_classes(task, adapter)
        try:
            module.load_state_dict(dict(head))
        except RuntimeError as cause:
            what = f"the head does not fit the task ({' '.join(str(cause).split())[:200]})"
            fix = "give the base and the task that the adapter was trained with"
            raise AdapterError(what, where=f"heads/{task.name}.safetensors", fix=fix) from cause
    return readout


def _refuse_other_classes(task: Task, adapter: Adapter) -> None:
    record = adapter.records.get(task.name)
    if record is not None and record.labels != task.labels:
        what = f"the head was trained for the classes {', '.join(record.labels)}, in this order"
        fix = "name the same classes in the same order"
        raise AdapterError(what, got=task.labels, where=f"task {task.name}, labels", fix=fix)


class TaskModel(nn.Module):
    """A backbone (adapted or not) with the readout of a task.

    Args:
        backbone: the base's own, or a `PeftModel` around it.
        task: the task, with its family and what the readout needs.
        base: the base model, for preprocessing and settings.
        readout: the task's, from `make_readout`; by default a new one with initial parameters.
    """

    def __init__(self, backbone: nn.Module, task: Task, base: Base, readout: Readout | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.collator = collate(task, base)
        self.readout: Readout = FAMILIES.get(task.family).readout(task, base) if readout is None else readout
        cast(nn.Module, self.readout).to(next(backbone.parameters()).device).train(backbone.training)
        self.form = task.form
        self.losses_only = False
        self._machine = base.machine
        self.training = backbone.training

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """Return ``logits`` and, with labels, the mean ``loss``; in a training, the loss alone.

        Args:
            labels: of the batch.
            inputs: the other entries of the batch, by the backbone's names for them.
        """
        if labels is not None and self.losses_only:
            return {"loss": self.losses(inputs, labels).mean()}
        logits = self.logits(inputs, labels)
        if labels is None:
            return {"logits": logits}
        return {"loss": self.readout.losses(logits, labels).mean(), "logits": logits}

    def losses(self, inputs: Batch, labels: Tensor) -> Float[Tensor, " batch"]:
        """Return the loss of each row, without the logits of a whole vocabulary if the readout can do without."""
        direct = getattr(self.readout, "losses_only", None)
        if direct is None:
            return self.readout.losses(self.logits(inputs, labels), labels)
        with self._machine.autocast():
            losses: Tensor = direct(self.backbone, inputs, labels)
        return losses

    def predict_batch(self, batch: Batch) -> tuple[list[Any], Float[Tensor, " batch"]]:
        """Return answers and losses of a batch's rows."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with self._machine.autocast():
            return self.readout.answer(self.backbone, inputs, batch["labels"], None)

    def logits(self, inputs: Batch, labels: Tensor | None = None) -> Float[Tensor, "batch *tokens width"]:
        """Return float32 logits of the classes, or of the tokens of the targets ``labels``."""
        with self._machine.autocast():
            features = self.readout.features(self.backbone, inputs, labels)
        return self.readout.logits(features.float())  # a loss in half precision would be too coarse

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute activations in the backward pass; non-reentrant by default, as frozen inputs require."""
        chosen = gradient_checkpointing_kwargs or {"use_reentrant": False}
        cast(Any, self.backbone).gradient_checkpointing_enable(gradient_checkpointing_kwargs=chosen)

    def gradient_checkpointing_disable(self) -> None:
        """Stop recomputing activations."""
        cast(Any, self.backbone).gradient_checkpointing_disable()


def predict(model: TaskModel, split: Split, batch_size: int) -> Predictions:
    """Return predictions and losses for every row of ``split``, in order.

    Rows of similar length share a batch, and batches are prepared once per split and ``batch_size``: predicting again
    with other weights costs only forward passes.

    Args:
        model: the model; it is in evaluation mode during the call.
        split: of the model's task.
        batch_size: rows per forward pass; it changes results by rounding at most.

    Raises:
        ArgumentError: ``batch_size`` is smaller than 1.
    """
    if batch_size < 1:
        raise ArgumentError("batch_size must be at least 1", got=batch_size, where="evaluation.batch_size")
    device = next(model.parameters()).device
    values: list[Any] = [None] * len(split)
    losses = np.empty(len(split), dtype=np.float32)
    before = getattr(model.readout, "unended", 0)
    with evaluating(model), torch.no_grad():  # inference mode would disable forward-mode differentiation
        for rows, batch in split.batches(batch_size, model.collator):
            answers, row_losses = model.predict_batch({k: v.to(device) for k, v in batch.items()})
            losses[rows] = row_losses.cpu().numpy()
            for row, answer in zip(rows, answers, strict=True):
                values[row] = answer
    unended = getattr(model.readout, "unended", 0) - before
    return Predictions(_of_kind(values, model.form.kind), losses, unended)


def _of_kind(values: list[Any], answers: str) -> np.ndarray | list[Any]:
    kinds: Mapping[str, Any] = {"classes": np.int64, "number": np.float64}
    return np.array(values, dtype=kinds[answers]) if answers in kinds else values
