"""Spherical interpolation between two updates."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import FusionError
from tangora.methods._angles import gram
from tangora.methods._limits import Limit, check_value
from tangora.methods._registry import fusion_method
from tangora.methods._sums import weighted_sum, widened

__all__ = ["slerp"]

POSITION = Limit(low=0, high=1, fix="0 is the first update, 1 the second, 0.5 half way")
_STRAIGHT = 1e-4  # sine of the angle under which the arc and the straight line agree to rounding


@fusion_method(
    "slerp",
    granularity="tensor",
    reference="doi:10.1145/325334.325242",
    default_weight=1.0,
    tasks=2,
    limits={"position": POSITION},
)
def slerp(
    deltas: Float[Tensor, " tasks *param"], *, weights: Float[Tensor, "tasks *#param"], position: float = 0.5
) -> Float[Tensor, "*param"]:
    """The point on the arc between two updates, tensor by tensor.

    ``ν = sin((1−p)Ω)/sin Ω · λ₁ν₁ + sin(pΩ)/sin Ω · λ₂ν₂`` with Ω the angle between ν₁ and ν₂
    (Shoemake 1985, doi:10.1145/325334.325242, there for unit quaternions) and p the ``position``.

    Choose it for exactly two experts when their average is too weak: for updates of one norm the result has that norm,
    while an average of nearly orthogonal updates has 0.7 of it.

    The angle is between updates; mergekit uses that between whole weights, which are nearly parallel, so that its arc
    is almost a straight line. If the updates are parallel, opposite or zero there is no arc, and the straight line
    (1−p)λ₁ν₁ + pλ₂ν₂ is used. The weights multiply afterwards and do not change the position.

    Args:
        deltas: the two updates, stacked; one tensor of the model.
        weights: one row per task, broadcasting to the update.
        position: p, the position on the arc, in [0, 1].

    Raises:
        ArgumentError: the position is not in [0, 1].
        FusionError: there are not two tasks.

    >>> slerp(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), weights=torch.ones(2, 1)).round(decimals=4)
    tensor([1.4142, 1.4142])
    """
    check_value("slerp", "position", position, 0.5, POSITION)
    if len(deltas) != 2:
        raise FusionError("slerp: it is between exactly two updates", got=len(deltas), where="fuse.adapters")
    first, second = _shares(deltas, position)
    # float64 coefficients would widen a result in float32, so they take the dtype that sums are kept in
    shares = torch.tensor([first, second], dtype=widened(deltas[:0]).dtype, device=deltas.device)
    shares = shares.reshape(2, *(1,) * (deltas.ndim - 1))
    return weighted_sum(deltas, shares * weights.to(shares.dtype)).to(deltas.dtype)


def _shares(deltas: Float[Tensor, " 2 *param"], position: float) -> tuple[float, float]:
    """Return the coefficients of the two updates."""
    products = gram(deltas)
    length = math.sqrt(products[0, 0] * products[1, 1])
    cosine = float(products[0, 1]) / length if length > 0 else 1.0
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(angle) < _STRAIGHT:
        return 1 - position, position
    return math.sin((1 - position) * angle) / math.sin(angle), math.sin(position * angle) / math.sin(angle)
