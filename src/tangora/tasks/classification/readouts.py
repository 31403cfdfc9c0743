"""Readouts with heads: of rows (`RowReadout`), and of words (`TagReadout`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tangora.tasks.batches import IGNORED
from tangora.tasks.classification.heads import Head, Reads, read
from tangora.tasks.readouts import token_losses

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.classification.problems import Problem
    from tangora.tasks.values import Batch

__all__ = ["LOST", "HeadReadout", "RowReadout", "TagReadout"]

LOST = "lost"
"""The input with the number of words of a row that were cut off."""


class HeadReadout(nn.Module):
    """A backbone's output, read and passed through a head, whose modules are those of the readout.

    Args:
        head: its layers.
        reads: what it is applied to.
        width: number of logits.
        key: of the base; readouts of one base share features if they read the same.
    """

    def __init__(self, head: Head, reads: Reads, width: int, key: str) -> None:
        super().__init__()
        for name, module in head.modules.items():
            self.add_module(name, module)
        self.width, self._steps, self._reads = width, head.steps, reads
        self.features_key: Hashable = (key, reads)

    def features(self, backbone: nn.Module, inputs: Batch, labels: Tensor | None, /) -> Tensor:
        """Return what the head is applied to."""
        given = {name: value for name, value in inputs.items() if name != LOST}
        return read(backbone(**given), given, self._reads)

    def logits(self, features: Tensor, /) -> Float[Tensor, "batch *tokens width"]:
        """Return the head's logits in float32."""
        x = features.float()
        with torch.autocast(x.device.type, enabled=False):
            for step in self._steps:
                x = self.get_submodule(step)(x) if isinstance(step, str) else step(x)
        return x


class RowReadout(HeadReadout):
    """Logits, losses and answers of rows.

    Args:
        problem: what logits mean.
        args: see `HeadReadout`.
    """

    def __init__(self, problem: Problem, *args: Any) -> None:
        super().__init__(*args)
        self._problem = problem

    def losses(self, logits: Tensor, labels: Tensor, /) -> Float[Tensor, " batch"]:
        """Return the loss of each row."""
        return self._problem.losses(logits, labels)

    def answers_of(self, logits: Tensor, /) -> list[Any]:
        """Return the answers that logits mean."""
        return self._problem.answers(logits)

    def answer(
        self, backbone: nn.Module, inputs: Batch, labels: Tensor, settle: Callable[[Tensor], Tensor] | None, /
    ) -> tuple[list[Any], Float[Tensor, " batch"]]:
        """Return the answer and the loss of each row."""
        logits = self.logits(self.features(backbone, inputs, labels))
        logits = logits if settle is None else settle(logits)
        return self.answers_of(logits), self.losses(logits, labels)


class TagReadout(HeadReadout):
    """Logits of every token; those that begin a word have a label, and count.

    Args:
        tags: their names.
        outside: the tag of words that were cut off.
        args: see `HeadReadout`.
    """

    def __init__(self, tags: list[str], outside: str, *args: Any) -> None:
        super().__init__(*args)
        self._tags, self._outside = tags, outside

    def losses(
        self, logits: Float[Tensor, "batch tokens tags"], labels: Int[Tensor, "batch tokens"], /
    ) -> Float[Tensor, " batch"]:
        """Return the mean cross-entropy over the words of each row."""
        return token_losses(logits, labels)

    def answer(
        self, backbone: nn.Module, inputs: Batch, labels: Tensor, settle: Callable[[Tensor], Tensor] | None, /
    ) -> tuple[list[list[str]], Float[Tensor, " batch"]]:
        """Return the names of the tags of each row's words, and its loss."""
        logits = self.logits(self.features(backbone, inputs, labels))
        logits = logits if settle is None else settle(logits)
        best, counted = logits.argmax(-1).tolist(), (labels != IGNORED).tolist()
        lost = inputs[LOST].tolist() if LOST in inputs else [0] * len(best)
        answers = [
            [self._tags[tag] for tag, counts in zip(row, mask, strict=True) if counts] + [self._outside] * cut
            for row, mask, cut in zip(best, counted, lost, strict=True)
        ]
        return answers, self.losses(logits, labels)
