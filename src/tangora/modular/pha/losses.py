"""The losses between encodings and prototypes (arXiv:2310.11670, §3.1, §3.2), and the nearest prototype."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["instance_loss", "nearest_prototype", "prototype_loss"]


def instance_loss(
    encodings: Float[Tensor, "rows dim"], tasks: Int[Tensor, " rows"], temperature: float
) -> Float[Tensor, ""]:
    """Return the contrastive loss between rows: rows of one task shall be near each other.

    With unit vectors z, P(i) the other rows of row i's task, and the mean over rows with P(i) not empty::

        L_ins = −mean_i mean_{p ∈ P(i)} log( exp(z_i·z_p / τ) / Σ_{a ≠ i} exp(z_i·z_a / τ) )

    It is 0 if no row has another one of its task.

    Args:
        encodings: of rows of several tasks; not normalized.
        tasks: the number of each row's task.
        temperature: τ.
    """
    unit = normalize(encodings, dim=-1)
    same = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    positive = (tasks[:, None] == tasks[None, :]) & ~same
    anchors = positive.any(1)
    if not bool(anchors.any()):
        return encodings.sum() * 0.0  # a number with gradients, of zero, as for any other batch
    logs = (unit @ unit.T / temperature).masked_fill(same, -torch.inf).log_softmax(-1)
    # The diagonal is −∞, and −∞ · 0 is no number: leave it out of the sum rather than weigh it with 0.
    means = logs.masked_fill(~positive, 0.0).sum(1)[anchors] / positive.sum(1)[anchors]
    return -means.mean()


def prototype_loss(
    encodings: Float[Tensor, "rows dim"],
    tasks: Int[Tensor, " rows"],
    prototypes: Float[Tensor, "tasks dim"],
    temperature: float,
    *,
    released: bool = False,
) -> Float[Tensor, ""]:
    """Return the contrastive loss between rows and prototypes: a row shall be near the prototype of its task.

    With unit vectors z and k, and t(i) the task of row i::

        L_pro = −mean_i ( z_i·k_{t(i)} / τ − log Σ_k exp(z_i·k / τ) )

    Args:
        encodings: of rows; not normalized.
        tasks: the number of each row's prototype.
        prototypes: of all tasks; not normalized.
        temperature: τ.
        released: leave k_{t(i)} out of the sum over k, as the authors' program does. The loss then has no lower
            bound of 0, and there must be two prototypes.
    """
    logits = normalize(encodings, dim=-1) @ normalize(prototypes, dim=-1).T / temperature
    own = logits.gather(1, tasks[:, None])
    others = logits.scatter(1, tasks[:, None], -torch.inf) if released else logits
    return (others.logsumexp(1) - own[:, 0]).mean()


def nearest_prototype(encodings: Float[Tensor, "rows dim"], prototypes: Float[Tensor, "tasks dim"]) -> int:
    """Return the number of the prototype with the largest cosine to the mean of the rows' unit encodings.

    Args:
        encodings: of a new task's rows; not normalized.
        prototypes: of earlier tasks; not normalized.
    """
    mean = normalize(encodings, dim=-1).mean(0)
    return int((normalize(prototypes, dim=-1) @ mean).argmax())
