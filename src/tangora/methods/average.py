"""The weighted mean of the updates."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tangora.errors import ArgumentError
from tangora.methods._registry import fusion_method
from tangora.methods._sums import weighted_sum, widened

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["average"]


def _shares(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    if abs(total) <= 8 * sys.float_info.epsilon * math.fsum(map(abs, weights)):
        raise _cancelling(total)
    return [weight / total for weight in weights]


def _cancelling(total: float) -> ArgumentError:
    fix = "use task_arithmetic for weights that cancel"
    return ArgumentError("average: the weights must not sum to zero", got=total, where="fuse.weights", fix=fix)


@fusion_method(
    "average",
    granularity="element",
    reference="arXiv:2203.05482",
    default_weight=1.0,
    linear=True,
    homogeneous=False,
    rule=_shares,
    additive=False,
)
def average(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """The mean of the updates, with each task counted by its weight.

    ``ν = Σₜ wₜ νₜ / Σₜ wₜ``; with equal weights this is the simple average of arXiv:2310.04742 and the uniform
    soup of arXiv:2203.05482.

    Choose it when nothing may be tuned: it has no coefficient to find and never leaves the span of its experts,
    but each task keeps only its share, so it fades as tasks are added.

    Only the ratios of the weights matter, so it is not homogeneous. The references have equal weights only.

    Args:
        deltas: the updates νₜ, stacked.
        weights: one row per task, broadcasting to the update; not summing to zero.

    Raises:
        ArgumentError: the weights sum to zero (to within rounding) somewhere.

    >>> import torch
    >>> average(torch.tensor([[4.0, 0.0], [0.0, 8.0]]), weights=torch.tensor([[3.0], [1.0]]))
    tensor([3., 2.])
    """
    import torch  # deferred: torch takes a second, and linear methods do without it

    weights = weights.to(widened(deltas[:0]).dtype)
    total = weights.sum(0)
    if bool((total.abs() <= 8 * torch.finfo(total.dtype).eps * weights.abs().sum(0)).any()):
        raise _cancelling(float(total.abs().min()))
    return (weighted_sum(deltas, weights) / total).to(deltas.dtype)
