"""Dual numbers: tensors with a tangent."""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

__all__ = ["alias", "dual", "has_tangent", "parts", "plus"]


def parts(value: Any) -> tuple[Any, Tensor | None]:
    """Return primal and tangent of a value; the tangent has no graph, and is None if there is none, as for numbers."""
    if not isinstance(value, Tensor):
        return value, None
    primal, tangent = forward_ad.unpack_dual(value)
    if tangent is None:
        return primal, None
    return _alone(primal), tangent.detach()


def _alone(primal: Tensor) -> Tensor:
    """Return the primal without the dual number that it is a view of.

    A view keeps its base alive, and so the base's tangent: if autograd saves the view for the backward pass, until the
    block of dual numbers ends.
    """
    base = primal._base if primal.requires_grad and torch.is_grad_enabled() else None
    return primal if base is None or not has_tangent(base) else alias(primal)


def alias(value: Tensor) -> Tensor:
    """Return a tensor with the same data that, to autograd, is no view."""
    shared: Tensor = torch.ops.aten._unsafe_view(value, value.shape)
    return shared


def dual(primal: Tensor, tangent: Tensor | None) -> Tensor:
    """Return a tensor with a tangent, in the primal's dtype."""
    return primal if tangent is None else forward_ad.make_dual(primal, tangent.to(primal.dtype))


def has_tangent(value: Any) -> bool:
    """Return whether this is a tensor with a tangent."""
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


def plus(left: Tensor | None, right: Tensor) -> Tensor:
    """Return a sum of tangents; None is zero."""
    return right if left is None else left + right
