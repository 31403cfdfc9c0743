"""Lines: the distributions that the logits of a batch consist of, whatever they are over.

A cross-entropy, an entropy, a divergence and Fisher information are defined for one distribution over some outcomes.
Columns, searches and statistics are about such lines, and so do without a case for every kind of task:

    classes   a line for each row
    tokens    a line for each target token
    tags      a line for each word
    labels    a line for each label of each row, with the outcomes no and yes: softmax(0, z) = (1 − σ(z), σ(z))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangora.tasks.batches import IGNORED

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.contract import LogitsOver

__all__ = ["Lines", "count_lines", "lines_of", "multi_hot", "outcomes"]


@dataclass(frozen=True)
class Lines:
    """The lines of a batch, without those that do not count.

    Attributes:
        labels: the correct outcome of each.
        rows: the row of the batch that each belongs to.
        over: see `tangora.tasks.contract.LogitsOver`.
        chosen: their numbers among all lines, on the device of the logits; None for all of them.
    """

    labels: Int[Tensor, " lines"]
    rows: Int[Tensor, " lines"]
    over: LogitsOver
    chosen: Int[Tensor, " lines"] | None = None

    def of(self, logits: Float[Tensor, "*many batch *tokens width"]) -> Float[Tensor, "*many lines outcomes"]:
        """Return the logits of the lines; a linear function, so that a tangent or a column has lines too.

        Args:
            logits: of the batch; leading dimensions are for several such logits at once.
        """
        if self.over == "labels":
            flat = logits.flatten(-2)
            return torch.stack([torch.zeros_like(flat), flat], -1)
        flat = logits if self.over == "classes" else logits.flatten(-3, -2)
        return flat if self.chosen is None else flat.index_select(-2, self.chosen)


def lines_of(
    over: LogitsOver, labels: Int[Tensor, " batch *tokens"], width: int, device: torch.device | None = None
) -> Lines:
    """Return the lines of a batch.

    Args:
        over: what the logits are over.
        labels: of the batch; with lines on the CPU, an accelerator need not synchronize to count them.
        width: the number of logits of a row, a token or a word.
        device: of the logits; by default that of the labels.

    >>> lines = lines_of("tags", torch.tensor([[-100, 2, -100], [-100, 0, 1]]), 3)
    >>> lines.labels.tolist(), lines.rows.tolist(), tuple(lines.of(torch.zeros(2, 3, 3)).shape)
    ([2, 0, 1], [0, 1, 1], (3, 3))
    >>> lines = lines_of("labels", torch.tensor([[0, 2]]), 3)
    >>> lines.labels.tolist(), lines.of(torch.tensor([[1.0, -1.0, 2.0]])).tolist()
    ([1, 0, 1], [[0.0, 1.0], [0.0, -1.0], [0.0, 2.0]])
    """
    rows = torch.arange(len(labels), device=labels.device)
    if over == "classes":
        return Lines(labels, rows, over)
    if over == "labels":
        return Lines(multi_hot(labels, width).long().flatten(), rows.repeat_interleave(width), over)
    chosen = (labels != IGNORED).flatten().nonzero().squeeze(1)
    owners = rows[:, None].expand_as(labels).flatten()
    return Lines(labels.flatten()[chosen], owners[chosen], over, chosen.to(device or labels.device))


def multi_hot(labels: Int[Tensor, "batch most"], width: int) -> Float[Tensor, "batch width"]:
    """Return 1 for every label of a row and 0 for the others, from padded numbers of labels.

    >>> multi_hot(torch.tensor([[0, 2], [1, -100]]), 3).tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    places = torch.where(labels == IGNORED, width, labels)  # a column more, for the padding
    return torch.zeros(len(labels), width + 1, device=labels.device).scatter_(1, places, 1.0)[:, :width]


def outcomes(over: LogitsOver | None, width: int) -> int:
    """Return the number of outcomes of a line."""
    return 2 if over == "labels" else width


def count_lines(over: LogitsOver | None, rows: int, labels: list[Tensor] | Tensor | None, width: int) -> int:
    """Return the number of lines of some rows.

    Args:
        over: what the logits are over.
        rows: how many.
        labels: of the rows, if they are not the targets.
        width: the number of logits of a row, a token or a word.
    """
    if over == "labels":
        return rows * width
    if labels is None or over not in ("tokens", "tags"):
        return rows
    return sum(int((row != IGNORED).sum()) for row in labels)
