"""The fusion method ``median``: ``tangora fuse a b c --method median --out fused`` once this package is installed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.methods import fusion_method


@fusion_method(
    "median",
    granularity="element",
    reference="arXiv:1803.01498",
    default_weight=1.0,
    additive=False,  # weights multiply before the median is taken
)
def median(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"]
) -> Float[Tensor, "*param"]:
    """Return the median of the weighted updates, entry by entry.

    ``ν[i] = median over t of λₜ νₜ[i]`` (arXiv:1803.01498, there of gradients); of an even number of tasks, the mean of
    the two in the middle.

    Choose it when one of several experts of the same task may be far off: no single update moves it far.

    >>> median(torch.tensor([[1.0], [2.0], [90.0]]), weights=torch.ones(3, 1))
    tensor([2.])
    """
    dtype = torch.promote_types(deltas.dtype, torch.float32)
    ordered = (deltas.to(dtype) * weights.to(dtype)).sort(0).values
    below, above = (len(ordered) - 1) // 2, len(ordered) // 2
    return ((ordered[below] + ordered[above]) / 2).to(deltas.dtype)
