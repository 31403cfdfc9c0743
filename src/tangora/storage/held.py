"""Weights held in half precision, in a model that computes as if they were in float32.

`hold_` casts the matrices of a model to bfloat16 or float16, and leaves vectors (biases, norms) in float32. What reads
a matrix gets its float32 values: layers multiply by a copy that lives for one operation, and is made again in the
backward pass. So the model computes exactly what the float32 model with the rounded weights computes, in half the
memory, and the dtype of forward passes remains a choice of its own (`tangora.support.machine`).
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["HALVES", "autocasts", "entries", "held_names", "hold_", "is_held", "values_of", "widened"]

HALVES = (torch.bfloat16, torch.float16)


def hold_(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Hold the matrices of a model in a dtype, in place, and everything else in float32; return the model.

    Args:
        model: any; parameters that several layers share stay shared. Recurrent layers stay in float32.
        dtype: float32, bfloat16 or float16.

    >>> model = hold_(nn.Sequential(nn.Linear(4, 2)), torch.bfloat16)
    >>> {name: p.dtype for name, p in model.named_parameters()}
    {'0.weight': torch.bfloat16, '0.bias': torch.float32}
    >>> model[0].weight.dtype, model(torch.ones(1, 4)).dtype
    (torch.float32, torch.float32)
    """
    for module in model.modules():
        half = dtype in HALVES and not isinstance(module, nn.RNNBase)
        held = [name for name, p in module._parameters.items() if p is not None and half and _is_matrix(p)]
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype in (torch.float32, *HALVES):
                parameter.data = parameter.data.to(dtype if name in held else torch.float32)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype in HALVES:
                module._buffers[name] = buffer.float()
        if held and not is_held(module):
            module.__class__ = _class(cast(Any, type(module)), tuple(held))
    return model


def is_held(module: nn.Module) -> bool:
    """Return whether matrices of the module itself are held in half precision, or quantized."""
    return hasattr(type(module), "_tangora_held")


def held_names(model: nn.Module) -> dict[str, int]:
    """Return the name of each parameter that is held in half precision, or quantized -> the number of its entries."""
    return {
        f"{prefix}.{name}" if prefix else name: entries(parameter)
        for prefix, module in model.named_modules()
        if is_held(module)
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if parameter.dtype not in (torch.float32, torch.float64)
    }


def entries(parameter: Tensor) -> int:
    """Return the number of a parameter's entries; in 4 bits, a byte holds two."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)


def values_of(model: nn.Module, name: str) -> Tensor:
    """Return the values of a parameter: in float32 if it is held in another form, else the parameter itself."""
    module, _, leaf = name.rpartition(".")
    values: Tensor = getattr(model.get_submodule(module), leaf)
    return values


def autocasts(device: torch.device) -> bool:
    """Return whether products on a device are in the dtype of `torch.autocast` now."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor in half precision as float32, and any other as it is."""
    return tensor.float() if tensor.dtype in HALVES else tensor


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and parameter.dtype in (torch.float32, *HALVES)


@cache
def _class(of: Any, names: tuple[str, ...]) -> type[nn.Module]:
    """Return a subclass, under the same name, whose attributes ``names`` are float32 values of the parameters."""
    members: dict[str, Any] = {name: property(_read(name)) for name in names}
    members |= {"_tangora_held": names, "__module__": of.__module__, "__doc__": of.__doc__}
    if of.forward is nn.Linear.forward:
        members["forward"] = _linear
    elif of.forward is nn.Embedding.forward:
        members["forward"] = _embedding
    return cast("type[nn.Module]", type(of.__name__, (of,), members))


def _read(name: str) -> Any:
    def values(module: nn.Module) -> Tensor:
        parameter = cast(Tensor, module._parameters[name])
        if parameter.ndim == 3 and autocasts(parameter.device):
            return parameter  # of experts, read one by one: the product casts the one that it uses
        return widened(parameter)

    return values


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = cast(Tensor, module._parameters["weight"]), module.bias
    if weight.dtype not in HALVES or autocasts(x.device):
        return F.linear(x, weight, bias)
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if frozen and x.requires_grad and torch.is_grad_enabled() and forward_ad._current_level < 0:
        product: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return product
    return F.linear(x, weight.float(), bias)


def _embedding(module: nn.Embedding, ids: Tensor) -> Tensor:
    weight = cast(Tensor, module._parameters["weight"])
    if module.max_norm is not None:  # changes the rows that it reads
        return nn.Embedding.forward(module, ids)
    return widened(F.embedding(ids, weight, module.padding_idx))


class _Product(torch.autograd.Function):
    """``x Wᵀ + b`` by a frozen W in half precision, without keeping W's float32 values for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.float(), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradient @ weight.float(), None, None
