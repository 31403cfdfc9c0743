"""The rules of operators: the primal as usual, and its tangent without a graph, by the fused kernels.

Operators that are linear in their tensors (sums, means, views, concatenation, casts) need none: autograd saves nothing
of them, and records no graph of their tangent. Products and functions of entries or rows save their operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tangora.tangent._attention import attention
from tangora.tangent._numbers import dual, has_tangent, parts, plus

__all__ = ["rule_of"]

aten = torch.ops.aten


def rule_of(function: Any) -> Callable[..., Any] | None:
    """Return the rule of a function of torch, or of a registered operator; None if it has none."""
    rule = RULES.get(function)
    if rule is not None or not (name := _registered(function)):
        return rule
    return RULES.get(name, None if name.startswith("aten::") else _checked(function, name))


def _registered(function: Any) -> str | None:
    """Return the name of a registered operator, such as ``aten::silu``."""
    name: str | None = getattr(getattr(function, "_overloadpacket", function), "_qualified_op_name", None)
    return name


def _checked(operator: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the operator with a check of its result: where no gradient is recorded, it may drop tangents silently."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        problem = NotImplementedError(f"Trying to use forward AD with {name} that does not support it")
        try:
            result = operator(*args, **kwargs)
        except NotImplementedError as cause:
            raise problem from cause
        tensors = [t for t in (result if isinstance(result, tuple | list) else [result]) if isinstance(t, Tensor)]
        if any(t.is_floating_point() for t in tensors) and not any(map(has_tangent, tensors)):
            raise problem
        return result

    return checked


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    (x, dx), (weight, dw), (bias, db) = parts(input), parts(weight), parts(bias)
    primal = F.linear(x, weight, bias)
    with torch.no_grad():
        tangent = None if dx is None else F.linear(dx, weight)
        if dw is not None:
            tangent = plus(tangent, F.linear(x, dw))
        if db is not None:
            tangent = plus(tangent, db.expand_as(primal))
    return dual(primal, tangent)


def _product(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the rule of a function that is linear in its first argument, and in its second."""

    def rule(*args: Any, **kwargs: Any) -> Tensor:
        if len(args) == 1 and "other" in kwargs:
            args = (*args, kwargs.pop("other"))
        if len(args) < 2 or kwargs.get("bias") is not None:
            return function(*args, **kwargs)
        (x, dx), (y, dy), rest = parts(args[0]), parts(args[1]), args[2:]
        primal = function(x, y, *rest, **kwargs)
        with torch.no_grad():
            tangent = None if dx is None else function(dx, y, *rest, **kwargs)
            if dy is not None:
                tangent = plus(tangent, function(x, dy, *rest, **kwargs))
        return dual(primal, tangent)

    return rule


def _added_product(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the rule of ``beta · input + alpha · x y``, for matrices or for batches of them."""

    def rule(*args: Tensor, beta: float = 1, alpha: float = 1, **named: Tensor) -> Tensor:
        if named:
            return function(*args, beta=beta, alpha=alpha, **named)
        (added, da), (x, dx), (y, dy) = map(parts, args)
        primal = function(added, x, y, beta=beta, alpha=alpha)
        with torch.no_grad():
            tangent = None if da is None else (da * beta).expand_as(primal)
            if dx is not None:
                tangent = plus(tangent, dx @ y * alpha)
            if dy is not None:
                tangent = plus(tangent, x @ dy * alpha)
        return dual(primal, tangent)

    return rule


def _grouped_product(*args: Any, **kwargs: Any) -> Tensor:
    """Multiply groups of rows, each with its matrix, as transformers does without a kernel for it."""
    return _product(torch.ops.transformers.grouped_mm_fallback)(*args, **kwargs)


def _quotient(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is not None:
        return torch.div(input, other, rounding_mode=rounding_mode)
    (x, dx), (y, dy) = parts(input), parts(other)
    primal = torch.div(x, y)
    with torch.no_grad():
        tangent = None if dx is None else dx / y
        if dy is not None:
            tangent = plus(tangent, -primal * (dy / y))
    return dual(primal, tangent)


def _power(input: Any, exponent: Any) -> Tensor:
    if not isinstance(exponent, int | float):
        return torch.pow(input, exponent)
    x, dx = parts(input)
    primal = torch.pow(x, exponent)
    with torch.no_grad():
        tangent = None
        if dx is not None and exponent != 0:
            tangent = (x if exponent == 2 else x.pow(exponent - 1)) * exponent * dx
    return dual(primal, tangent)


def _by_entry(function: Callable[..., Tensor], push: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Any:
    """Return the rule of a function of each entry; its tangent is ``push(ẋ, x, y)``."""

    def rule(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if any(args) or any(kwargs.values()):  # in place
            return function(input, *args, **kwargs)
        x, dx = parts(input)
        primal = function(x)
        with torch.no_grad():
            tangent = None if dx is None else push(dx.to(primal.dtype), x.to(primal.dtype), primal)
        return dual(primal, tangent)

    return rule


def _gelu(input: Tensor, approximate: str = "none") -> Tensor:
    x, dx = parts(input)
    with torch.no_grad():
        tangent = None if dx is None else aten.gelu_backward(dx, x, approximate=approximate)
    return dual(F.gelu(x, approximate=approximate), tangent)


def _softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """Push a tangent by the backward kernel: the Jacobian is symmetric."""
    x, dx = parts(input)
    primal = F.softmax(x, dim=dim, dtype=dtype)
    with torch.no_grad():
        tangent = None
        if dx is not None:
            axis = -1 if dim is None else dim
            tangent = aten._softmax_backward_data(dx.to(primal.dtype), primal, axis, primal.dtype)
    return dual(primal, tangent)


def _softmax_along(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    return _softmax(input, dim, dtype=dtype)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Push a tangent by the backward kernel: the Jacobian of the normalization itself is symmetric."""
    (x, dx), (weight, dw), (bias, db) = parts(input), parts(weight), parts(bias)
    shape = list(normalized_shape)
    primal, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
    with torch.no_grad():
        tangent = None
        if dx is not None:
            backward = aten.native_layer_norm_backward
            tangent = backward(dx.contiguous(), x, shape, mean, rstd, None, None, [True, False, False])[0]
            tangent = tangent if weight is None else tangent.mul_(weight)
        if dw is not None:
            tangent = plus(tangent, (x - mean) * rstd * dw)
        if db is not None:
            tangent = plus(tangent, db.expand_as(primal))
    return dual(primal, tangent)


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    (x, dx), (weight, dw) = parts(input), parts(weight)
    primal = F.rms_norm(x, list(normalized_shape), weight, eps)
    with torch.no_grad():
        axes = list(range(-len(normalized_shape), 0))
        wide = x if x.dtype == torch.float64 else x.float()
        scale = (wide.square().mean(axes, keepdim=True) + (torch.finfo(wide.dtype).eps if eps is None else eps)).rsqrt()
        unit, tangent = wide * scale, None
        if dx is not None:
            tangent = (dx - unit * (unit * dx).mean(axes, keepdim=True)) * scale
            tangent = tangent if weight is None else tangent * weight
        if dw is not None:
            tangent = plus(tangent, unit * dw)
    return dual(primal, tangent)


_BY_ENTRY: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "exp": lambda dx, x, y: dx * y,
    "relu": lambda dx, x, y: aten.threshold_backward(dx, y, 0),
    "rsqrt": lambda dx, x, y: y.pow(3) * dx * -0.5,
    "sigmoid": lambda dx, x, y: aten.sigmoid_backward(dx, y),
    "silu": lambda dx, x, y: aten.silu_backward(dx, x),
    "sqrt": lambda dx, x, y: dx / (2 * y),
    "square": lambda dx, x, y: dx * (2 * x),
    "tanh": lambda dx, x, y: aten.tanh_backward(dx, y),
}


def _found(*names: str) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """Return the functions with these names, as a function or as a method; some are not in every version of torch."""
    spaces = torch, Tensor, F
    return ((name, getattr(space, name)) for name in names for space in spaces if hasattr(space, name))


RULES: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.gelu: _gelu,
    F.softmax: _softmax,
    torch.softmax: _softmax_along,
    Tensor.softmax: _softmax_along,
    F.scaled_dot_product_attention: attention,
    Tensor.__pow__: _power,
    "transformers::grouped_mm_fallback": _grouped_product,
    **{f: _by_entry(f, _BY_ENTRY[name]) for name, f in _found(*_BY_ENTRY)},
    **{f: _product(f) for _, f in _found("mul", "multiply", "matmul", "mm", "bmm", "grouped_mm", "_grouped_mm")},
    **{f: _added_product(f) for _, f in _found("addmm", "baddbmm")},
    **{f: _quotient for _, f in _found("div", "divide", "true_divide")},
    **{f: _power for _, f in _found("pow")},
}
