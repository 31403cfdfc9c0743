"""Consensus merging: keep the entries of the sum that matter to enough tasks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import ArgumentError
from tangora.methods._limits import Limit, check_value
from tangora.methods._registry import fusion_method
from tangora.methods._sums import in_blocks, weighted_sum, widened

__all__ = ["consensus"]

SHARE = Limit(low=0, fix="0.2 to 0.6 are usual")
AGREEMENT = Limit(low=0, fix="2 drops entries of fewer than two masks, 1 those of no mask, 0 none")


@fusion_method(
    "consensus",
    granularity="element",
    neutral={"agreement": 1},
    reference="arXiv:2405.07813",
    default_weight=0.3,
    limits={"share": SHARE, "agreement": AGREEMENT},
)
def consensus(
    deltas: Float[Tensor, " tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    agreement: int = 2,
    share: float = 0.4,
) -> Float[Tensor, "*param"]:
    """The weighted sum at the entries that matter to enough tasks, zero elsewhere (Consensus Task Arithmetic).

    The TALL mask of task t, ``mₜ = 1{|νₜ| ≥ s·|Σⱼ νⱼ − νₜ|}``, is 1 at entries where t dominates the sum;
    ``ν = 1{Σₜ mₜ ≥ k} ⊙ Σₜ λₜ νₜ`` (arXiv:2405.07813, TALL masks and Consensus Merging; there s is λₜ, one per task,
    found on validation data).

    Choose it when the sum of many tasks is hurt by entries that serve only one of them (k = 2), or none (k = 1).

    The masks come from the unweighted updates, with one s for all tasks. An agreement larger than the number of tasks
    would drop all entries, and is refused.

    Args:
        deltas: the updates νₜ, stacked.
        weights: one row per task, broadcasting to the update; they multiply what is left.
        agreement: k, how many masks must have an entry.
        share: s, how large a task's entry must be beside the sum of the others'.

    Raises:
        ArgumentError: agreement or share is negative, or agreement is more than the number of tasks.

    >>> deltas = torch.tensor([[4.0, 1.0, 1.0], [3.0, 0.0, -1.0]])
    >>> consensus(deltas, weights=torch.ones(2, 1), agreement=2)
    tensor([7., 0., 0.])
    """
    check_value("consensus", "agreement", agreement, 2, AGREEMENT)
    check_value("consensus", "share", share, 0.4, SHARE)
    if agreement > len(deltas):
        what = f"consensus: agreement must be at most the number of tasks, {len(deltas)}"
        raise ArgumentError(what, got=agreement, where="fuse.agreement", fix=f"agreement={len(deltas)}")
    return in_blocks(lambda d, w: _agreed(d, agreement, share) * weighted_sum(d, w), deltas, weights)


def _agreed(deltas: Float[Tensor, " tasks *param"], agreement: int, share: float) -> Float[Tensor, "*param"]:
    """Return 1 at entries of at least ``agreement`` masks, else 0."""
    wide = [widened(delta) for delta in deltas]
    total = wide[0].double()
    for delta in wide[1:]:
        total = total + delta  # in float64, so that the order of the tasks does not change a mask
    votes = sum((delta.double().abs() >= share * (total - delta).abs()).to(torch.int64) for delta in wide)
    return (torch.as_tensor(votes) >= agreement).to(wide[0].dtype)
