"""Forward-mode differentiation of a whole network, with a graph of the primal for reverse mode.

PyTorch's dual tensors carry a tangent through any operator. By default, autograd also records the computation of each
tangent, since tangents are computed from primals that require a gradient. That graph is never used here (the gradient
of a linear model is taken at φ₀), and it would double the memory of a training step.

The operators that do nearly all of a transformer's work therefore have rules here: a rule computes the primal as usual,
and the tangent without a graph, by the fused kernels. Other operators use PyTorch's own derivative, and their graph of
the tangent ends at the next rule. A dual tensor that autograd saves for the backward pass keeps its tangent until the
block ends; since a product saves both of its operands, it has a rule too.

Attention has a rule because the fused kernels have no forward derivative: its primal stays fused, and

    Ȯ = P V̇ + (P ∘ Ṡ) V − rowsum(P ∘ Ṡ) ∘ O,     Ṡ = scale · (Q̇ Kᵀ + Q K̇ᵀ),     P = softmax(scale · Q Kᵀ + mask);

with dropout, P and P ∘ Ṡ are masked before the products with V̇ and V.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tangora.errors import ModelError

__all__ = ["dual", "dual_numbers", "expand", "expand_last", "expand_mapped", "has_tangent", "in_dual_numbers", "parts"]


def parts(value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return primal and tangent of a tensor; the tangent has no graph, and is None if there is none."""
    primal, tangent = forward_ad.unpack_dual(value)
    return primal, None if tangent is None else tangent.detach()


def dual(primal: Tensor, tangent: Tensor | None) -> Tensor:
    """Return a tensor with a tangent, in the primal's dtype."""
    return primal if tangent is None else forward_ad.make_dual(primal, tangent.to(primal.dtype))


def has_tangent(value: Any) -> bool:
    """Return whether this is a tensor with a tangent."""
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


def in_dual_numbers() -> bool:
    """Return whether this runs in a block of `dual_numbers`."""
    return forward_ad._current_level >= 0


@contextmanager
def dual_numbers() -> Iterator[None]:
    """Propagate tangents within the block.

    Raises:
        ModelError: an operator in the block has no forward derivative; the message names it.
    """
    with _named(), forward_ad.dual_level(), _Rules():
        yield


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except NotImplementedError as cause:
        name = re.search(r"forward AD with (\S+)", str(cause))
        fix = "use another implementation of it (attention: 'eager'), or linearize: module"
        raise ModelError(
            "an operator of the model has no forward derivative",
            got=name.group(1) if name else str(cause).splitlines()[0],
            where="linearize: model",
            fix=fix,
        ) from cause


def expand(function: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Evaluate ``function`` in dual numbers; return primal and tangent of its result, zero if it has no tangent."""
    with dual_numbers():
        primal, tangent = parts(function())
        return primal, torch.zeros_like(primal) if tangent is None else tangent


def expand_last(function: Callable[[Tensor], Tensor], x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """Return primal and tangent of ``function`` at ``x`` in direction ``dx``, both with the graph of its parameters.

    `expand` drops the tangent's graph: for a model linear in φ, the gradient follows from the primal alone. But the
    last part of a network may have parameters that the model is not linear in, such as a head trained together with φ.
    Their gradient has a further term, through the tangent. ``x`` is detached for the tangent, since φ has no such term.
    Both draw the same random numbers, so that dropout has one mask.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _named(), forward_ad.dual_level():
        moved = function(forward_ad.make_dual(x.detach(), dx.detach()))
        tangent = forward_ad.unpack_dual(moved).tangent
    primal = function(x)
    return primal, torch.zeros_like(primal) if tangent is None else tangent


def expand_mapped(function: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Do what `expand` does, inside `torch.vmap`, where dual numbers need functorch's own level."""

    def with_rules(_: Tensor) -> Tensor:
        with _Rules():
            return function()

    zero = torch.zeros(())
    with _named():
        primal, tangent, *_ = torch.func.jvp(with_rules, (zero,), (zero,))
        return primal, tangent


class _Rules(TorchFunctionMode):
    """Applies the rule of an operator, if it has one and one of its tensors has a tangent."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = RULES.get(func)
        if rule is not None and any(has_tangent(v) for v in (*args, *kwargs.values())):
            return rule(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    (x, dx), (weight, dw) = parts(x), parts(weight)
    bias, db = (None, None) if bias is None else parts(bias)
    primal = F.linear(x, weight, bias)
    with torch.no_grad():
        tangent = None if dx is None else F.linear(dx, weight)
        if dw is not None:
            tangent = _sum(tangent, F.linear(x, dw))
        if db is not None:
            tangent = _sum(tangent, db.expand_as(primal))
    return dual(primal, tangent)


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Push a tangent by the backward kernel: the Jacobian of the normalization itself is symmetric."""
    x, dx = parts(x)
    (weight, dw), (bias, db) = (((None, None) if v is None else parts(v)) for v in (weight, bias))
    primal, mean, rstd = torch.native_layer_norm(x, list(shape), weight, bias, eps)
    with torch.no_grad():
        tangent = None
        if dx is not None:
            backward = torch.ops.aten.native_layer_norm_backward
            tangent = backward(dx.contiguous(), x, list(shape), mean, rstd, None, None, [True, False, False])[0]
            tangent = tangent if weight is None else tangent.mul_(weight)
        if dw is not None:
            tangent = _sum(tangent, (x - mean) * rstd * dw)
        if db is not None:
            tangent = _sum(tangent, db.expand_as(primal))
    return dual(primal, tangent)


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    x, dx = parts(x)
    with torch.no_grad():
        tangent = None if dx is None else torch.ops.aten.gelu_backward(dx, x, approximate=approximate)
    return dual(F.gelu(x, approximate=approximate), tangent)


def _sigmoid(x: Tensor) -> Tensor:
    x, dx = parts(x)
    primal = torch.sigmoid(x)
    with torch.no_grad():
        tangent = None if dx is None else torch.ops.aten.sigmoid_backward(dx, primal.detach())
    return dual(primal, tangent)


def _multiply(x: Tensor | float, other: Tensor | float) -> Tensor:
    (x, dx), (y, dy) = (parts(v) if isinstance(v, Tensor) else (v, None) for v in (x, other))
    primal = torch.mul(x, y)
    with torch.no_grad():
        tangent = None if dx is None else dx * y
        if dy is not None:
            tangent = _sum(tangent, x * dy)
    return dual(primal, tangent)


def _softmax(x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """Push a tangent by the backward kernel: the Jacobian is symmetric."""
    x, dx = parts(x)
    primal = F.softmax(x, dim=dim, dtype=dtype)
    with torch.no_grad():
        tangent = None if dx is None else _push_softmax(primal, dx.to(primal.dtype), -1 if dim is None else dim)
    return dual(primal, tangent)


def _push_softmax(p: Tensor, dx: Tensor, dim: int) -> Tensor:
    pushed: Tensor = torch.ops.aten._softmax_backward_data(dx, p.detach(), dim, p.dtype)
    return pushed


def _attention(
    query: Float[Tensor, "*batch l d"],
    key: Float[Tensor, "*batch m d"],
    value: Float[Tensor, "*batch m v"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    (q, dq), (k, dk), (v, dv) = parts(query), parts(key), parts(value)
    if enable_gqa:
        groups = q.shape[-3] // k.shape[-3]
        k, v = (t.repeat_interleave(groups, -3) for t in (k, v))
        dk, dv = (None if t is None else t.repeat_interleave(groups, -3) for t in (dk, dv))
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if dropout_p > 0:  # the tangent needs the primal's mask, which a fused kernel does not return
        p = _probabilities(q, k, attn_mask, is_causal, factor)
        kept = F.dropout(torch.ones_like(p), dropout_p)
        primal, p = (p * kept) @ v, p.detach()
    else:
        primal, kept = F.scaled_dot_product_attention(q, k, v, attn_mask, 0.0, is_causal, scale=scale), None
    with torch.no_grad():
        p = _probabilities(q, k, attn_mask, is_causal, factor) if kept is None else p
        tangent = None if dv is None else (p if kept is None else p * kept) @ dv
        scores = None if dq is None else (dq * factor) @ k.transpose(-2, -1)
        if dk is not None:
            scores = _sum(scores, (q * factor) @ dk.transpose(-2, -1))
        if scores is not None:
            weighted = scores * p
            mean = weighted.sum(-1, keepdim=True)
            weighted = weighted if kept is None else weighted * kept
            tangent = _sum(tangent, weighted @ v) - mean * primal
    return dual(primal, tangent)


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, factor: float) -> Tensor:
    scores = (q * factor) @ k.transpose(-2, -1)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores.masked_fill_(~mask, -math.inf)
    elif mask is not None:
        scores.add_(mask)
    return scores.softmax(-1).nan_to_num(0.0)  # a row that attends to nothing gets zeros, as in the fused kernels


def _sum(left: Tensor | None, right: Tensor) -> Tensor:
    return right if left is None else left + right


RULES: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    F.gelu: _gelu,
    torch.sigmoid: _sigmoid,
    torch.mul: _multiply,
    Tensor.mul: _multiply,
    F.softmax: _softmax,
    F.scaled_dot_product_attention: _attention,
}
