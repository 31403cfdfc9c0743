"""A base class for readouts with logits over classes, and the loss of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tangora.tasks.batches import IGNORED

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from tangora.tasks.values import Batch

__all__ = ["ClassReadout", "token_losses"]


class ClassReadout(nn.Module, ABC):
    """A readout with logits over classes: the loss is their cross-entropy, the answer the class of the largest logit.

    Derive from it, and implement `features` and `logits` as described in `tangora.tasks.contract.Readout`. Parameters
    of the derived class are trained with an adapter.

    Args:
        width: number of classes.
        features_key: readouts of one base with equal keys compute the same features.
    """

    def __init__(self, width: int, features_key: Hashable) -> None:
        super().__init__()
        self.width, self.features_key = width, features_key

    @abstractmethod
    def features(self, backbone: nn.Module, inputs: Batch, labels: Tensor | None, /) -> Tensor:
        """Compute the part that does not depend on the task, one entry per row."""

    @abstractmethod
    def logits(self, features: Tensor, /) -> Float[Tensor, "batch classes"]:
        """Return float32 logits of the rows from their features."""

    def losses(
        self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], /
    ) -> Float[Tensor, " batch"]:
        """Return the cross-entropy of each row."""
        return cross_entropy(logits, labels, reduction="none")

    def answer(
        self, backbone: nn.Module, inputs: Batch, labels: Tensor, settle: Callable[[Tensor], Tensor] | None, /
    ) -> tuple[list[Any], Float[Tensor, " batch"]]:
        """Return the class of the largest logit, and the loss of each row."""
        logits = self.logits(self.features(backbone, inputs, labels))
        logits = logits if settle is None else settle(logits)
        return self.answers_of(logits), self.losses(logits, labels)

    def answers_of(self, logits: Float[Tensor, "batch classes"], /) -> list[int]:
        """Return the class of the largest logit of each row."""
        numbers: list[int] = logits.argmax(-1).tolist()
        return numbers


def token_losses(
    logits: Float[Tensor, "batch tokens vocabulary"], labels: Int[Tensor, "batch tokens"]
) -> Float[Tensor, " batch"]:
    """Return the cross-entropy of each row: the mean over its target tokens, without ignored ones."""
    tokens = cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return tokens.sum(1) / (labels != IGNORED).sum(1)
