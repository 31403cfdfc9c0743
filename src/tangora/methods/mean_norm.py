"""A step: the fused update gets the mean norm of the tasks' updates at every site."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from tangora.methods._steps import Change, fusion_step, norms_of

__all__ = ["mean_norm"]


def _mean(norms: Sequence[float]) -> tuple[list[float], float]:
    return [1.0] * len(norms), math.fsum(norms) / max(1, sum(norm > 0 for norm in norms))


@fusion_step("mean_norm", reference="arXiv:2505.15875", by_norms=_mean, default_weight=1.0)
def mean_norm(deltas: Float[Tensor, " tasks *param"]) -> Change:
    """Scale the fused update of every tensor so that its norm is the mean of the tasks' norms.

    ``ν = n̄ / ‖f(ν₁, …, ν_T; 1)‖ · f(ν₁, …, ν_T; λ)`` for a method f and ``n̄ = (1/T) Σₜ ‖νₜ‖``: λ comes from a ratio of
    norms, site by site, and 1 is its default. Alone, f is the sum. That the magnitude of a merge should be that of its
    parts, and be merged apart from the direction, is the idea of DO-Merging (arXiv:2505.15875); see `do_merging`.

    Choose it when no λ can be searched for, or as the centre of a grid that means the same for every number of tasks:
    a sum of T unrelated updates is √T times too long, one of equal updates T times. ``mean_norm+ties_per_tensor``
    puts it around a method.

    The factor belongs to weights of 1, so that the weights still scale the result: 0.5 is half of the mean norm. An
    update of zero does not count in the mean. Where the fused update is zero up to rounding, because tasks cancel, it
    is left as it is. For methods without a λ (`average`) weights change nothing but shares, as without the step. The
    cost is one more call of the method; a sum of low-rank updates stays exact, as factors.

    Args:
        deltas: the updates νₜ, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.

    >>> import torch
    >>> mean_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), weights=torch.ones(2, 1)).round(decimals=4)
    tensor([2.1000, 2.8000])
    """
    return Change(deltas, norm=_mean(norms_of(deltas))[1])
