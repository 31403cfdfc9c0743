"""A backbone that answers a task: losses, logits and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from tangora.errors import DataError
from tangora.support.shown import one_line
from tangora.tasks.families.registry import FAMILIES
from tangora.tasks.families.zero_shot_text import pad
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.base import Base
    from tangora.tasks.values import Batch, Split, Task

__all__ = ["Collator", "Predictions", "TaskModel", "collate", "predict"]

IGNORED = -100  # cross_entropy's default


@dataclass(frozen=True)
class Predictions:
    """What a model says of each row, in the split's order.

    Attributes:
        values: predicted labels (int64), or generated texts.
        losses: cross-entropy of each row (float32; text-to-text: mean over its target's tokens).
    """

    values: np.ndarray | list[str]
    losses: np.ndarray

    def __repr__(self) -> str:
        return one_line("Predictions", f"{len(self.losses)} rows", f"mean loss {self.losses.mean():.4g}")


@dataclass(frozen=True)
class Collator:
    """Rows of a `Split` to one padded batch with ``labels``; a value, so that data loader processes can have it."""

    pad_id: int = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Ids padded on the right, with an attention mask; pixels stacked."""
        batch: Batch = {}
        if "input_ids" in rows[0]:
            ids = [row["input_ids"] for row in rows]
            batch["input_ids"] = pad(ids, self.pad_id)
            batch["attention_mask"] = pad([torch.ones_like(row) for row in ids], 0)
        else:
            batch["pixel_values"] = torch.stack([row["pixel_values"] for row in rows])
        labels = [row["labels"] for row in rows]
        batch["labels"] = pad(labels, IGNORED) if isinstance(labels[0], Tensor) else torch.tensor(labels)
        return batch


def collate(task: Task, base: Base) -> Collator:
    """The function that makes rows of ``task`` into a batch, as `DataLoader` and `Trainer` want it."""
    return Collator(getattr(base.processor, "pad_token_id", None) or 0)


class TaskModel(nn.Module):
    """A backbone (adapted or not) that answers ``task``.

    Zero-shot, with unit features v and the task's head of unit class embeddings h:
    ``logits_c = scale * <v, h_c>``, and the loss is the cross-entropy. Text-to-text: the loss is the mean over rows of
    the mean cross-entropy over a row's target tokens.

    Args:
        backbone: the base's own, or a `PeftModel` around it.
        task: gives head and scale.
        base: gives pooling and padding.
    """

    head: Tensor | None

    def __init__(self, backbone: nn.Module, task: Task, base: Base) -> None:
        super().__init__()
        self.backbone = backbone
        self._settings = base.config  # not `config`: the trainer would write into it
        self.scale = task.scale
        self.collator = collate(task, base)
        self._tokenizer = base.processor if task.head is None else None
        self._features = FAMILIES[task.family].features
        device = next(backbone.parameters()).device
        self.register_buffer("head", None if task.head is None else task.head.to(device), persistent=False)
        self.training = backbone.training

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        pixel_values: Float[Tensor, "batch 3 height width"] | None = None,
        labels: Int[Tensor, "batch *tokens"] | None = None,
    ) -> dict[str, Tensor]:
        """``logits``, and with labels the mean ``loss``.

        No ``**kwargs``: by that sign a Trainer would leave the division by accumulated batches to the model.
        """
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}
        logits = self.logits({name: value for name, value in given.items() if value is not None}, labels)
        if labels is None:
            return {"logits": logits}
        return {"loss": losses(logits, labels).mean(), "logits": logits}

    def predict_batch(self, batch: Batch) -> tuple[list[Any], Float[Tensor, "batch"]]:
        """Predicted labels (or texts) and losses of the rows of one batch."""
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if self._features is not None:
            logits = self.logits(inputs)
            return logits.argmax(-1).tolist(), losses(logits, labels)
        return self._answer(inputs, labels)

    def logits(self, inputs: Batch, labels: Tensor | None = None) -> Float[Tensor, "batch *tokens classes"]:
        """Float32 logits of the classes, or of the tokens of the targets ``labels``."""
        if self._features is None:
            found: Tensor = self.backbone(**inputs, labels=labels).logits
            return found.float()
        assert self.head is not None
        assert self.scale is not None
        features = normalize(self._features(self.backbone, self._settings, inputs).float(), dim=-1)
        return self.scale * features @ self.head.T

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute activations in the backward pass; frozen inputs need it non-reentrant, so that is the default."""
        chosen = gradient_checkpointing_kwargs or {"use_reentrant": False}
        self._any_backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs=chosen)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self._any_backbone.gradient_checkpointing_disable()

    @property
    def _any_backbone(self) -> Any:
        return self.backbone

    def _answer(self, inputs: Batch, labels: Tensor) -> tuple[list[str], Tensor]:
        """Greedy generation and teacher-forced losses, from one pass of the encoder."""
        model = self._any_backbone
        mask = inputs["attention_mask"]
        encoded = model.get_encoder()(**inputs)
        logits = model(encoder_outputs=encoded, attention_mask=mask, labels=labels).logits.float()
        generated = model.generate(
            encoder_outputs=encoded,
            attention_mask=mask,
            max_new_tokens=self._settings.max_new_tokens,
            do_sample=False,
            num_beams=1,
        )
        assert self._tokenizer is not None
        return self._tokenizer.batch_decode(generated, skip_special_tokens=True), losses(logits, labels)


def losses(
    logits: Float[Tensor, "batch *tokens classes"], labels: Int[Tensor, "batch *tokens"]
) -> Float[Tensor, "batch"]:
    """Cross-entropy of each row; over tokens, the mean of those that are not padding."""
    if labels.ndim == 1:
        return cross_entropy(logits, labels, reduction="none")
    tokens = cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return tokens.sum(1) / (labels != IGNORED).sum(1)


def predict(model: TaskModel, split: Split, batch_size: int) -> Predictions:
    """Predictions and losses for every row of ``split``, in order.

    Rows of similar length share a batch, and batches are prepared once per split and ``batch_size``: predicting again
    with other weights costs forward passes only.

    Args:
        model: put into evaluation mode meanwhile.
        split: of the model's task.
        batch_size: rows per forward pass; changes results by rounding at most.
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
    return Predictions(values if model.head is None else np.array(values, dtype=np.int64), found)
