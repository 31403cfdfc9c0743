"""Fisher merging: a weighted mean by how much an entry matters to each task."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._registry import fusion_method
from tangora.methods._sums import in_blocks, weighted_sum, widened

__all__ = ["fisher"]


@fusion_method("fisher", granularity="element", reference="arXiv:2111.09832", default_weight=1.0, statistics="fisher")
def fisher(
    deltas: Float[Tensor, " tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    statistics: Float[Tensor, " tasks *param"] | None,
) -> Float[Tensor, "*param"]:
    """The mean of the updates, weighted entry by entry with the tasks' diagonal Fisher information.

    ``ν = Σₜ λₜ (Fₜ / Σⱼ Fⱼ) νₜ`` with ``Fₜ = E_x E_{y∼p(y|x)} (∇ log p(y|x))²`` at the expert (arXiv:2111.09832,
    section 3; on updates it equals the merge of whole weights, because the base is common).

    Choose it when the tasks depend on different weights: an entry that one task is sensitive to stays near that
    task's value. Needs ``tangora statistics`` of every adapter.

    The weights multiply the updates only, so that λ scales the result and may be negative; in the paper a λ also
    is in the denominator, and with λ = 1 for all tasks the two are the same. Nothing is added to F: at entries where
    all are exactly zero, the result is the mean. The information is the mean over rows; the paper's code can also
    rescale each task's to one norm.

    Args:
        deltas: the updates νₜ, stacked.
        weights: one row per task, broadcasting to the update.
        statistics: Fₜ, the diagonal Fisher information, stacked and shaped like the updates, not negative; if a tensor
            has none, None, and the result is the mean.

    >>> deltas = torch.tensor([[4.0, 4.0, 4.0], [0.0, 0.0, 0.0]])
    >>> information = torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    >>> fisher(deltas, weights=torch.ones(2, 1), statistics=information)
    tensor([3., 0., 2.])
    """
    return in_blocks(_weighted, deltas, weights, torch.ones_like(deltas) if statistics is None else statistics)


def _weighted(
    deltas: Float[Tensor, " tasks *param"], weights: Float[Tensor, "tasks *#param"], information: Tensor
) -> Float[Tensor, "*param"]:
    # float64: products with squares of small gradients underflow in float32
    total = information.double().sum(0)
    known = total > 0
    total = total.where(known, 1.0)
    shares = (f.double().div(total).where(known, 1 / len(deltas)) for f in information)
    wide = widened(deltas[:0]).dtype
    return weighted_sum((share.to(wide) * delta for share, delta in zip(shares, deltas, strict=True)), weights)
