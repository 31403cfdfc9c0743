"""Problems: what the logits of pixels mean, as losses and answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tangora.tasks.maps import UNCOUNTED

if TYPE_CHECKING:
    from tangora.tasks.dense.settings import DenseSettings

__all__ = ["Problem", "problem_of"]


@dataclass(frozen=True)
class Problem:
    """Losses and answers of logits of shape [batch, height, width, outputs].

    Attributes:
        outputs: logits of a pixel.
        losses: logits, labels [batch, height, width] -> a loss per row.
        answers: logits -> a map per row.
    """

    outputs: int
    losses: Callable[[Tensor, Tensor], Tensor]
    answers: Callable[[Tensor], Tensor]


def problem_of(config: DenseSettings, classes: int) -> Problem:
    """Return the problem of a task with these settings.

    Args:
        config: of the task.
        classes: the number of classes of a segmentation.
    """
    if config.problem == "segmentation":
        return Problem(classes, _cross_entropy, lambda logits: logits.argmax(-1).to(torch.uint8))
    if config.problem == "binary":
        weight = config.positive_weight
        return Problem(1, lambda logits, labels: _binary(logits, labels, weight), _levels)
    power = 2 if config.loss == "squared" else 1
    return Problem(1, lambda logits, labels: _errors(logits, labels, power), lambda logits: logits[..., 0].float())


def _mean(losses: Tensor, counted: Tensor) -> Tensor:
    """Return the mean over the pixels of each row that count; 0 if none does."""
    return (losses * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    labels = labels.long()
    losses = cross_entropy(logits.movedim(-1, 1), labels, reduction="none", ignore_index=UNCOUNTED)
    return _mean(losses, labels != UNCOUNTED)


def _binary(logits: Tensor, labels: Tensor, weight: float) -> Tensor:
    marked = (labels == 1).to(logits.dtype)
    weights = logits.new_tensor(weight)
    losses = binary_cross_entropy_with_logits(logits[..., 0], marked, reduction="none", pos_weight=weights)
    return _mean(losses, labels != UNCOUNTED)


def _errors(logits: Tensor, labels: Tensor, power: int) -> Tensor:
    counted = ~labels.isnan()
    errors = logits[..., 0] - torch.where(counted, labels, 0.0).to(logits.dtype)
    return _mean(errors.square() if power == 2 else errors.abs(), counted)


def _levels(logits: Tensor) -> Tensor:
    """Return probabilities in steps of 1/255."""
    return (255 * logits[..., 0].sigmoid()).round().to(torch.uint8)
