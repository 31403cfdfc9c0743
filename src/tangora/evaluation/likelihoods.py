"""The likelihoods whose squared gradients are the Fisher information of a model's predictions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tangora.tasks.lines import lines_of

if TYPE_CHECKING:
    from tangora.tasks.values import Task

__all__ = ["EXACT", "is_exact", "likelihoods_of"]

EXACT = 16
"""The largest number of classes for which the Fisher information sums over all of them, at a backward pass each."""


def is_exact(task: Task, width: int) -> bool:
    """Return whether the expectation over outcomes is computed, instead of one outcome drawn."""
    return task.form.logits_over is None or (task.form.logits_over in ("classes", "labels") and width <= EXACT)


def likelihoods_of(task: Task, logits: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield sums over rows whose squared gradients, for each row, sum up to the Fisher information.

    They are ``√p · log p(y|x)`` for every class y; ``√(p(1 − p)) · z`` for every label with the logit z, and z for a
    number, as both expectations come to; or ``log p(y|x)`` for an outcome y of every line drawn from p.
    """
    over, width = task.form.logits_over, logits.shape[-1]
    if over is None:
        yield from logits.reshape(-1, width).sum(0)
    elif over == "classes" and width <= EXACT:
        for chosen in logits.log_softmax(-1).unbind(-1):
            yield (chosen.detach().exp().sqrt() * chosen).sum()
    elif over == "labels" and width <= EXACT:
        p = logits.detach().sigmoid()
        yield from ((p * (1 - p)).sqrt() * logits).sum(0)
    else:
        flat = lines_of(over, labels, width).of(logits).log_softmax(-1)
        drawn = torch.multinomial(flat.detach().exp().cpu(), 1, generator=generator).to(flat.device)
        yield flat.gather(1, drawn).sum()
