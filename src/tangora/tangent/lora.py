"""LoRA sites in the expansion of the whole network: the primal at φ₀, the tangent in the direction φ − φ₀.

With δA = A − A₀ and δB = B − B₀, a site's output and its tangent are

    y = W x + s B₀ A₀ x,        ẏ = W ẋ + s B₀ A₀ ẋ + s (δB A₀ + B₀ δA) x

(arXiv:2310.04742, eq. 4, restricted to one site). The gradient of the linear model's loss with respect to φ is Jᵀ∇L
with J at φ₀. So only the primal has a graph: it uses the factors' initial values, and passes gradients to φ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tangora.adapters.peft_layers import Layer, factors
from tangora.errors import ModelError
from tangora.tangent._dual import dual, in_dual_numbers, parts
from tangora.tangent._numbers import alias
from tangora.tangent.linearization import LinearizedLora, buffer_names, expand_sites, looked_up

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TangentLora", "expand_lora"]

_Model = TypeVar("_Model", bound="nn.Module")


def expand_lora(
    peft_model: _Model,
    adapter_name: str = "default",
    *,
    initial: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> _Model:
    """Prepare every LoRA site of an adapter for `TangentModel`, in place, and return the model.

    As in `tangora.linearize`, A is set to A₀ and frozen if B₀ = 0, and B if A₀ = 0 (embeddings).

    Args:
        peft_model: a `peft.PeftModel` with LoRA on Linear, Conv1D or Embedding.
        adapter_name: the adapter to prepare.
        initial: site -> (A₀ ``[r, in]``, B₀ ``[out, r]``); by default the current values, which are φ₀ before training.

    Raises:
        ModelError: see `tangora.linearize`.
    """
    expand_sites(peft_model, adapter_name, initial, TangentLora)
    return peft_model


class TangentLora(LinearizedLora):
    """The variant that peft's LoRA layers call in a network that is expanded as a whole."""

    @staticmethod
    def forward(
        module: Layer, active_adapter: str, x: Tensor, result: Float[Tensor, "*batch out"], **_: Any
    ) -> Float[Tensor, "*batch out"]:
        """Return the site's output as a dual number.

        Raises:
            ModelError: the model was called directly; only `TangentModel` (or a task model) can call it.
        """
        if not in_dual_numbers():
            fix = "call it through tangora.TangentModel, or merge the adapter for the non-linear network"
            raise ModelError("the model is expanded as a whole and cannot be called directly", where="forward", fix=fix)
        a, b = factors(module, active_adapter)
        scaling: float = module.scaling[active_adapter]
        embedding = active_adapter in module.lora_embedding_A
        frozen = module.lora_variant[active_adapter].frozen
        if frozen == "a" and not embedding:
            return _moved_by_b(result, module.lora_dropout[active_adapter](parts(x)[0].detach()), a, b, scaling)
        (a0, b0) = _initial(module, active_adapter, a, b)
        a_dual = dual(_at(a0, a), None if frozen == "a" else (a - a0).detach())
        b_dual = dual(_at(b0, b), None if frozen == "b" else (b - b0).detach())
        if embedding:
            return result + looked_up(module, active_adapter, x, a_dual) @ b_dual.T * scaling
        return result + F.linear(F.linear(module.lora_dropout[active_adapter](x), a_dual), b_dual) * scaling


def _initial(module: Layer, adapter_name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return A₀ and B₀; if one factor is frozen, the other's initial value is zero."""
    frozen = module.lora_variant[adapter_name].frozen
    if frozen == "a":
        return a.detach(), torch.zeros_like(b)
    if frozen == "b":
        return torch.zeros_like(a), b.detach()
    a0, b0 = (getattr(module, name).to(a.dtype) for name in buffer_names(adapter_name))
    return a0, b0


def _at(initial: Tensor, parameter: Tensor) -> Tensor:
    """Return the value of ``initial`` with the gradient of ``parameter``."""
    return initial + (parameter - parameter.detach()) if parameter.requires_grad else initial


def _moved_by_b(result: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Return the output for B₀ = 0: the primal is the base layer's, ẏ = W ẋ + s B A₀ x, and dL/dB = s gᵀ (A₀ x)."""
    primal, tangent = parts(result)
    with torch.no_grad():
        hidden = F.linear(x, a)
    primal = _GradientOfB.apply(primal, hidden, b, scaling)  # type: ignore[no-untyped-call]
    with torch.no_grad():  # the dual number is made outside, or the primal would lose its graph
        if tangent is None or tangent.dtype != hidden.dtype:
            moved = F.linear(hidden, b) * scaling
            moved = moved if tangent is None else tangent + moved
        else:
            moved = torch.addmm(tangent.flatten(0, -2), hidden.flatten(0, -2), b.T, alpha=scaling).view(tangent.shape)
    return dual(primal, moved)


class _GradientOfB(torch.autograd.Function):
    """The identity on the output of a site with B₀ = 0, and B's gradient there."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, hidden: Tensor, b: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.scaling, ctx.dtype = scaling, b.dtype
        return alias(output)  # the network may change it in place, which autograd forbids for a view

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (hidden,) = ctx.saved_tensors
        of_b = gradient.flatten(0, -2).T.to(hidden.dtype) @ hidden.flatten(0, -2)
        return gradient, None, (of_b * ctx.scaling).to(ctx.dtype), None
