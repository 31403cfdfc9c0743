"""Problems: what the logits of a row mean, as losses and answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tangora.tasks.lines import multi_hot

if TYPE_CHECKING:
    from tangora.tasks.classification.settings import RowSettings

__all__ = ["Problem", "problem_of"]


@dataclass(frozen=True)
class Problem:
    """Losses and answers of logits.

    Attributes:
        losses: logits ``[batch, outputs]``, labels -> a loss per row.
        answers: logits -> an answer per row.
    """

    losses: Callable[[Tensor, Tensor], Tensor]
    answers: Callable[[Tensor], list[Any]]


def problem_of(config: RowSettings) -> Problem:
    """Return the problem of a task with these settings."""
    if config.problem == "multi":
        least = math.log(config.threshold / (1 - config.threshold))
        return Problem(_binary, lambda logits: [_above(row, least) for row in logits])
    if config.problem == "regression":
        return Problem(_squared, lambda logits: logits.squeeze(-1).tolist())
    return Problem(_cross_entropy, lambda logits: logits.argmax(-1).tolist())


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels, reduction="none")


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over the labels of a row, as transformers does."""
    hot = multi_hot(labels, logits.shape[-1])
    return binary_cross_entropy_with_logits(logits, hot, reduction="none").mean(-1)


def _squared(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.squeeze(-1) - labels.to(logits.dtype)).square()


def _above(logits: Tensor, least: float) -> list[int]:
    """Return the numbers of the logits that are at least this."""
    numbers: list[int] = torch.nonzero(logits >= least).flatten().tolist()
    return numbers
