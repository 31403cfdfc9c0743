"""Consensus merging: entries that enough tasks have a use for (TALL masks)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods._limits import Limit
from tangora.methods._registry import fusion_method
from tangora.methods._sums import in_blocks, weighted_sum, widened

__all__ = ["consensus"]

SHARE = Limit(low=0, fix="give a number of at least 0; the paper searches 0.2 to 0.6")
TASKS = Limit(low=0, fix="give the number of tasks that must agree, such as 2")


@fusion_method(
    "consensus",
    granularity="element",
    reference="arXiv:2405.07813",
    default_weight=0.3,
    limits={"share": SHARE, "tasks": TASKS},
)
def consensus(
    deltas: Float[Tensor, "tasks *param"],
    *,
    weights: Float[Tensor, "tasks *#param"],
    share: float = 0.4,
    tasks: int = 2,
) -> Float[Tensor, "*param"]:
    """The weighted sum of the updates at entries that matter to at least so many tasks, zero elsewhere.

    With ``τ = Σₜ νₜ``, an entry matters to task t where ``|νₜ| ≥ share · |τ − νₜ|`` (its TALL mask); entries that
    matter to fewer than ``tasks`` tasks are dropped: ``ν = m ⊙ Σₜ λₜ νₜ`` (arXiv:2405.07813, equations 3 and 6).

    Choose it when most entries serve one task or none: dropping those costs little and frees the others.

    The masks are made from the unweighted updates; the weights multiply afterwards. With fewer updates than
    ``tasks``, all of them must agree.

    Args:
        deltas: the updates νₜ, stacked.
        weights: one row per task, broadcasting to the update.
        share: how large a task's entry must be, relative to what all others add there; at least 0.
        tasks: how many tasks an entry must matter to; 0 drops nothing.

    Raises:
        FusionError: a parameter is negative.

    >>> deltas = torch.tensor([[4.0, 1.0, 3.0], [3.0, -0.1, 0.0]])
    >>> consensus(deltas, weights=torch.ones(2, 1), share=0.5)
    tensor([7., 0., 0.])
    """
    SHARE.check("consensus", "share", share)
    TASKS.check("consensus", "tasks", tasks)
    needed = min(tasks, len(deltas))
    return in_blocks(lambda d, w: torch.where(_votes(d, share) >= needed, weighted_sum(d, w), 0.0), deltas, weights)


def _votes(deltas: Float[Tensor, "tasks *param"], share: float) -> Tensor:
    """To how many tasks each entry matters; sums in float64, so that their order does not decide."""
    wide = widened(deltas).double()
    total = wide.sum(0)
    return ((wide.abs() >= share * (total - wide).abs()) & (wide != 0)).sum(0)
