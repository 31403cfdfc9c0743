"""Collate entries of a split into padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tangora.tasks.base import Base
    from tangora.tasks.values import Batch

__all__ = ["IGNORED", "Collator", "collator", "pad"]

IGNORED = -100
"""The label of positions that do not count, cross_entropy's default."""


def pad(rows: Sequence[Tensor], value: int) -> Tensor:
    """Stack 1-D tensors, padded on the right with ``value``."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


@dataclass(frozen=True)
class Collator:
    """Collates entries of a `Split` into one padded batch with ``labels``; it can be pickled for data loader processes.

    Ids are padded on the right, with an attention mask; pixels are stacked.
    """

    pad_id: int = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return the batch of the rows."""
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


def collator(base: Base) -> Collator:
    """Return the collator that pads with the tokenizer's own id."""
    return Collator(getattr(base.processor, "pad_token_id", None) or 0)
