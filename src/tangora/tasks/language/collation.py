"""Collate rows of tokens into a batch: prompts end, and completions begin, in the same column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangora.tasks.batches import IGNORED, pad

if TYPE_CHECKING:
    from tangora.tasks.values import Batch

__all__ = ["LanguageCollator", "PackingCollator", "padded_left"]


def padded_left(rows: Sequence[Tensor], value: int) -> Tensor:
    """Stack 1-D tensors, padded on the left with ``value``."""
    return pad([row.flip(0) for row in rows], value).flip(1)


@dataclass(frozen=True)
class LanguageCollator:
    """Collates rows with ``input_ids`` and ``labels``; it can be pickled for data loader processes.

    The batch has

    - ``input_ids`` and ``attention_mask`` of prompts and completions, [rows, columns];
    - ``labels``: the last columns, from the first one with a target in any row on; others are ignored;
    - ``boundary``: the column in which completions begin, the same number for each row;
    - ``choices``, padded with zeros, if the rows have them.
    """

    pad_id: int = 0
    packing: bool = False

    def for_training(self) -> LanguageCollator | PackingCollator:
        """Return the collator of a training."""
        return PackingCollator() if self.packing else self

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return the batch of the rows; rows without labels get one token as a placeholder."""
        prompts = [row["input_ids"] for row in rows]
        targets = [row["labels"] if isinstance(row["labels"], Tensor) else torch.zeros(1).long() for row in rows]
        before, after = padded_left(prompts, self.pad_id), pad(targets, self.pad_id)
        seen = [
            padded_left([torch.ones_like(row) for row in prompts], 0),
            pad([torch.ones_like(t) for t in targets], 0),
        ]
        labels = pad(targets, IGNORED)
        if "earlier" in rows[0]:
            labels = torch.cat([_without_empty_columns([row["earlier"] for row in rows]), labels], 1)
        batch = {
            "input_ids": torch.cat([before, after], 1),
            "attention_mask": torch.cat(seen, 1),
            "boundary": torch.full((len(rows),), before.shape[1]),
            "labels": labels,
        }
        if "choices" in rows[0]:
            batch["choices"] = pad([row["choices"] for row in rows], 0)
        return batch


@dataclass(frozen=True)
class PackingCollator:
    """Collates rows into one sequence without padding; each row attends to itself only.

    Positions begin at 0 with each row: the masks of transformers' decoders separate rows by that. The batch has

    - ``input_ids`` and ``position_ids``, [1, tokens of all rows], without the last token of a row;
    - ``labels``, [rows, targets], ignored ones at the end;
    - ``places``, [rows, targets]: the token whose logits predict each target.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Return the batch of the rows."""
        ids, ranges, labels, places = [], [], [], []
        start = 0
        for row in rows:
            whole = torch.cat([row["input_ids"], row["labels"]])
            before = row["earlier"] if "earlier" in row else torch.full_like(row["input_ids"], IGNORED)
            targets = torch.cat([before, row["labels"]])[1:]
            learned = targets != IGNORED
            ids.append(whole[:-1])
            ranges.append(torch.arange(len(whole) - 1))
            labels.append(targets[learned])
            places.append(start + learned.nonzero()[:, 0])
            start += len(whole) - 1
        return {
            "input_ids": torch.cat(ids)[None],
            "position_ids": torch.cat(ranges)[None],
            "labels": pad(labels, IGNORED),
            "places": pad(places, 0),
        }


def _without_empty_columns(earlier: Sequence[Tensor]) -> Tensor:
    """Return the labels of prompts from the first column with a target in any row on."""
    labels = padded_left(earlier, IGNORED)
    used = (labels != IGNORED).any(0).nonzero()
    return labels[:, int(used[0]) :] if len(used) else labels[:, :0]
