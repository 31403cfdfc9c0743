"""The weighted sum of the updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tangora.methods._registry import fusion_method
from tangora.methods._sums import weighted_sum

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["task_arithmetic"]


@fusion_method(
    "task_arithmetic", granularity="element", reference="arXiv:2212.04089", default_weight=0.3, linear=True, rule=list
)
def task_arithmetic(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """The sum of the updates, each times its weight; a negative weight forgets a task.

    ``ν = Σₜ λₜ νₜ`` (arXiv:2212.04089, section 2), with one λ for all tasks in the reference and one per task,
    or per task and site, here. λ = 1/T is the average of T tasks.

    Choose it first: it is exact on low-rank updates, one λ covers most of what finer methods gain, and a whole
    grid over λ costs one fusion.

    Args:
        deltas: the updates νₜ, stacked.
        weights: one row per task, broadcasting to the update; any sign.

    >>> import torch
    >>> task_arithmetic(torch.tensor([[4.0, 0.0], [1.0, 8.0]]), weights=torch.tensor([[0.5], [-1.0]]))
    tensor([ 1., -8.])
    """
    return weighted_sum(deltas, weights).to(deltas.dtype)
