"""SLERP: between two updates along the arc."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tangora.errors import FusionError
from tangora.methods._matrices import one_per_task
from tangora.methods._registry import fusion_method
from tangora.methods._sums import weighted_sum, widened

__all__ = ["slerp"]

_STRAIGHT = 1e-6  # angles (from 0 or π) at which sines lose their digits and the arc is a line


@fusion_method("slerp", granularity="tensor", reference="arXiv:2203.05482", default_weight=1.0, homogeneous=False)
def slerp(deltas: Float[Tensor, "tasks *param"], *, weights: Float[Tensor, "tasks *#param"]) -> Float[Tensor, "*param"]:
    """Two updates, interpolated along the arc between them instead of the straight line, tensor by tensor.

    ``ν = [sin((1 − p) Ω) ν₁ + sin(p Ω) ν₂] / sin Ω`` with Ω the angle between them and ``p = λ₂ / (λ₁ + λ₂)``
    (Shoemake, 1985; beside the straight line of arXiv:2203.05482).

    Choose it for two updates of equal worth whose mean is too short: the arc keeps their length.

    It interpolates updates, not whole weights, so the base model is the centre of the sphere. Only the ratio of the
    weights matters. Updates in one line, or zero, are interpolated along the line; a single update is returned as
    it is.

    Args:
        deltas: the two updates, stacked; one tensor of the model.
        weights: one number per task, of one sign.

    Raises:
        FusionError: there are more than two updates, or the weights have two signs or differ within a tensor.

    >>> slerp(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), weights=torch.ones(2, 1))
    tensor([0.7071, 0.7071])
    """
    if len(deltas) > 2:
        fix = "fuse two, and the result with the next; or use task_arithmetic"
        raise FusionError("slerp: it takes two updates", got=len(deltas), where="fuse.adapters", fix=fix)
    scales = one_per_task("slerp", weights, deltas).double()
    if float(scales.sum()) == 0 or bool((scales * scales.sum() < 0).any()):
        fix = "give two numbers of one sign; their ratio is the place on the arc"
        raise FusionError("slerp: the weights must not cancel", got=scales.tolist(), where="fuse.weights", fix=fix)
    shares = scales / scales.sum()
    if len(deltas) == 2:
        shares = _arc(widened(deltas).reshape(2, -1).double(), shares)
    rows = shares.reshape(-1, *(1,) * (deltas.ndim - 1))
    return weighted_sum(deltas, rows).to(deltas.dtype)


def _arc(flat: Float[Tensor, "2 entries"], shares: Float[Tensor, "2"]) -> Float[Tensor, "2"]:
    """What the two are multiplied by."""
    lengths = flat.norm(dim=1)
    if not bool(lengths.all()):
        return shares
    angle = math.acos(max(-1.0, min(1.0, float(flat[0] @ flat[1]) / float(lengths.prod()))))
    if min(angle, math.pi - angle) < _STRAIGHT:
        return shares
    return torch.sin(shares * angle) / math.sin(angle)
