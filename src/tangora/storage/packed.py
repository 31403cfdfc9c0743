"""Linear layers whose weights are quantized, in a model that computes with the dequantized values.

    8bit   rows in int8 (arXiv:2208.07339):                             W ≈ q · max|row| / 127
    4bit   blocks of 64 entries in NF4 (arXiv:2305.14314), by bitsandbytes:   W ≈ code[q] · max|block|

A layer multiplies by a float32 copy of its weight that lives for one operation, and is made again in the backward
pass; inputs are not quantized. So the model computes exactly what the float32 model with the dequantized weights
computes. Weights are always quantized on the CPU: their bytes, and so the base's fingerprint, do not depend on the
device.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import cache
from typing import Any, Literal, cast

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn

from tangora.errors import ModelError
from tangora.storage.held import autocasts, is_held
from tangora.support.extras import require

__all__ = ["Bits", "contents", "dequantized", "is_packed", "pack_"]

Bits = Literal["8bit", "4bit"]
_BLOCK, _TYPE = 64, "nf4"
_SCALES = "_tangora_scales"
_FIX = "leave base.quantization out, or install another version of bitsandbytes"


def pack_(model: nn.Module, bits: Bits, where: object) -> nn.Module:
    """Quantize the linear layers of a model in place, and return it; those that are quantized stay as they are.

    The output layer of a language model and layers that share their weight with another stay as they are, and so does
    everything that is not a linear layer: embeddings, convolutions, norms, biases.

    Args:
        model: on the CPU, in float32 or held in half precision.
        bits: ``8bit`` or ``4bit``.
        where: the model's name, for errors.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        ModelError: the model has no such layer, has matrices of experts, or bitsandbytes unpacks a shape wrongly.
    """
    if bits == "4bit":
        require("quantized", purpose="a base in 4 bits")
    layers = {name: module for name, module in model.named_modules() if _is_plain(module)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    owners = [id(p) for module in model.modules() for p in module.parameters(recurse=False)]
    chosen = {n: m for n, m in layers.items() if m is not head and owners.count(id(m._parameters["weight"])) == 1}
    packed = any(is_packed(module) for module in model.modules())
    if not chosen and not packed:
        fix = "leave base.quantization out; base.weights_dtype: bfloat16 halves the memory of any model"
        raise ModelError("the model has no linear layer to quantize", got=type(model).__name__, where=where, fix=fix)
    _refuse_experts(model, where)
    checked: set[tuple[int, ...]] = set()
    for name, module in chosen.items():
        _pack(module, bits)
        shape = (module.out_features, module.in_features)
        if bits == "4bit" and shape not in checked:
            _check(module, f"{where}, {name}")
            checked.add(shape)
    if hasattr(model, "save_pretrained"):  # it would write codes as if they were weights
        cast(Any, model).save_pretrained = _not_saved
    return model


def _not_saved(*_: Any, **__: Any) -> None:
    fix = "save the adapter; to save the model, load it without base.quantization"
    raise ModelError("a quantized model cannot be saved as a checkpoint", where="save_pretrained", fix=fix)


def is_packed(module: nn.Module) -> bool:
    """Return whether the weight of the module itself is quantized."""
    return hasattr(type(module), "_tangora_bits")


def dequantized(module: nn.Module) -> Tensor:
    """Return the float32 values of a quantized weight, ``[out, in]``."""
    packed, scales = cast(Tensor, module._parameters["weight"]), cast(Tensor, module._buffers[_SCALES])
    return _values(packed, scales, cast(nn.Linear, module).in_features)


def contents(module: nn.Module, name: str) -> Tensor | list[Tensor]:
    """Return what determines the values of a module's own parameter: float32 values, or codes and scales."""
    parameter = cast(Tensor, module._parameters[name])
    if is_packed(module) and not parameter.is_floating_point():
        return [parameter, cast(Tensor, module._buffers[_SCALES])]
    return parameter.float() if is_held(module) else parameter


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module multiplies its input by its weight, and does nothing else with it."""
    if not isinstance(module, nn.Linear) or is_packed(module) or module.in_features % 2:
        return False
    return _origin(type(module)).forward is nn.Linear.forward and not isinstance(
        module, nn.modules.linear.NonDynamicallyQuantizableLinear
    )


def _origin(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that a held layer had before."""
    return cast("type[nn.Module]", kind.__bases__[0] if hasattr(kind, "_tangora_held") else kind)


def _refuse_experts(model: nn.Module, where: object) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3 and min(parameter.shape) > 1 and "expert" in name:
            fix = "leave base.quantization out, and set base.weights_dtype: bfloat16"
            raise ModelError("matrices of experts cannot be quantized", got=name, where=where, fix=fix)


@torch.no_grad()
def _pack(module: nn.Module, bits: Bits) -> None:
    layer = cast(nn.Linear, module)
    weight = layer.weight.detach().float().cpu()  # of a held layer: its float32 values
    if bits == "4bit":
        codes, state = _bitsandbytes().quantize_4bit(
            weight, blocksize=_BLOCK, quant_type=_TYPE, compress_statistics=False
        )
        scales = state.absmax.float()
    else:
        scales = weight.abs().amax(1)
        steps = torch.where(scales > 0, scales, 1) / 127
        codes = (weight / steps[:, None]).round().clamp(-127, 127).to(torch.int8)
    if not bool(torch.isfinite(scales).all()):
        raise ModelError("a weight is not finite", where=type(module).__name__, fix="check the checkpoint")
    device = cast(Tensor, module._parameters["weight"]).device
    origin = _origin(type(module))
    module._parameters["weight"] = nn.Parameter(codes.view(layer.out_features, -1).to(device), requires_grad=False)
    module.register_buffer(_SCALES, scales.to(device), persistent=False)
    module.__class__ = _class(cast(Any, origin), bits)


def _values(packed: Tensor, scales: Tensor, width: int) -> Tensor:
    if packed.dtype == torch.int8:
        return packed.float() * (scales / 127)[:, None]
    # As one row: the kernel of some versions unpacks narrow rows wrongly.
    _bitsandbytes()
    size = packed.numel() * 2
    flat = torch.ops.bitsandbytes.dequantize_4bit(packed.view(-1, 1), scales, _BLOCK, _TYPE, (size,), torch.float32)
    return cast(Tensor, flat).view(-1, width)


def _check(module: nn.Module, where: str) -> None:
    """Refuse a shape that the kernel unpacks to other values than the definition of the format."""
    packed, scales = cast(Tensor, module._parameters["weight"]).view(-1), cast(Tensor, module._buffers[_SCALES])
    code = _bitsandbytes().get_4bit_type(_TYPE, device="cpu").to(packed.device)
    entries = torch.stack([packed >> 4, packed & 15], 1).view(-1).long()
    expected = code[entries] * scales.repeat_interleave(_BLOCK)[: len(entries)]
    if not torch.equal(dequantized(module).view(-1), expected):
        shape = tuple(dequantized(module).shape)
        raise ModelError("bitsandbytes unpacks a weight to wrong values", got=shape, where=where, fix=_FIX)


@cache
def _bitsandbytes() -> Any:
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it speaks of kernels that are not used here
    try:
        import bitsandbytes.functional  # deferred: optional, and takes seconds to import
    finally:
        logger.setLevel(level)
    return bitsandbytes.functional


@cache
def _class(of: Any, bits: Bits) -> type[nn.Module]:
    """Return a subclass of a linear layer, under the same name, whose weight is dequantized when it is read."""
    members: dict[str, Any] = {"weight": property(_read), "forward": _forward}
    members |= {"_tangora_held": ("weight",), "_tangora_bits": bits, "__module__": of.__module__, "__doc__": of.__doc__}
    return cast("type[nn.Module]", type(of.__name__, (of,), members))


def _read(module: nn.Module) -> Tensor:
    own = cast(Tensor, module._parameters["weight"])
    return own if own.is_floating_point() else dequantized(module)


def _forward(module: nn.Linear, x: Tensor) -> Tensor:
    own, bias = cast(Tensor, module._parameters["weight"]), module.bias
    if own.is_floating_point():  # another weight in its place
        return F.linear(x, own, bias)
    frozen = bias is None or not bias.requires_grad
    if frozen and x.requires_grad and torch.is_grad_enabled() and forward_ad._current_level < 0:
        scales = cast(Tensor, module._buffers[_SCALES])
        half = torch.get_autocast_dtype(x.device.type) if autocasts(x.device) else None
        product: Tensor = _Product.apply(x, own, scales, bias, half)  # type: ignore[no-untyped-call]
        return product
    return F.linear(x, dequantized(module), bias)


class _Product(torch.autograd.Function):
    """``x Wᵀ + b`` by a quantized W, without keeping W's values for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None, half: torch.dtype | None
    ) -> Tensor:
        ctx.save_for_backward(packed, scales)
        ctx.dtype, ctx.half, ctx.width = x.dtype, half, x.shape[-1]
        return F.linear(x, _values(packed, scales, ctx.width), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight = _values(ctx.saved_tensors[0], ctx.saved_tensors[1], ctx.width)
        weight = weight if ctx.half is None else weight.to(ctx.half)
        kind = gradient.device.type
        with torch.autocast(kind, enabled=False) if autocasts(gradient.device) else nullcontext():
            return (gradient.to(weight.dtype) @ weight).to(ctx.dtype), None, None, None, None
