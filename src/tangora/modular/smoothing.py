"""Label smoothing (arXiv:1512.00567, §7) of the losses of any readout, from its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tangora.tasks.batches import IGNORED

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.tasks.contract import LogitsOver

__all__ = ["smoothed"]


def smoothed(
    losses: Float[Tensor, " batch"],
    logits: Float[Tensor, "batch *tokens width"],
    labels: Tensor,
    over: LogitsOver | None,
    smoothing: float,
) -> Float[Tensor, " batch"]:
    """Return ``(1 − ε) · loss + ε · (mean over all answers of −log p)``: the label has ε less, all share it.

    With logits over ``labels``, each label of a row is a question of two answers. A regression has no distribution to
    smooth, so its losses are returned unchanged.

    Args:
        losses: of the rows, from the readout.
        logits: that the losses were computed from.
        labels: of the batch; ignored ones among tokens do not count.
        over: what the logits are distributions over.
        smoothing: ε, in [0, 1).
    """
    if over is None or smoothing == 0:
        return losses
    return (1 - smoothing) * losses + smoothing * _uniform(logits, labels, over)


def _uniform(logits: Tensor, labels: Tensor, over: LogitsOver) -> Float[Tensor, " batch"]:
    """Return the cross-entropy of each row with equal probabilities of all answers."""
    if over == "labels":
        return (softplus(logits) + softplus(-logits)).mean(-1) / 2
    entropies = -logits.log_softmax(-1).mean(-1)
    if over == "classes":
        return entropies
    counted = (labels != IGNORED).to(entropies.dtype)
    return torch.where(counted > 0, entropies, 0.0).sum(1) / counted.sum(1)
