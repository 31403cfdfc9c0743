"""A gate on the weights of every layer: ``W = W̄ + 1[s ≥ τ] (W_trained − W̄)``.

The trained parameter is W itself rather than the change δ, and the gate selects W or W̄: so an open layer computes
exactly what full fine-tuning does, without the rounding of a sum ``W̄ + δ``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tangora.modular.layer_gates import LayerGate

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["gated_weights", "is_norm", "weight_groups"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Chosen(torch.autograd.Function):
    """The trained weight if its gate is open, else the one before; ``dL/ds = ⟨dL/dW, W − W̄⟩``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, start: Tensor, value: Tensor, threshold: float) -> Tensor:
        is_open = value >= threshold  # stays a tensor: its value is not waited for
        ctx.save_for_backward(weight, start, is_open)
        return torch.where(is_open, weight, start)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        weight, start, is_open = ctx.saved_tensors
        (gradient,) = gradients
        change = (gradient * (weight - start)).sum()
        return torch.where(is_open, gradient, torch.zeros_like(gradient)), None, change, None


class _GatedWeight(nn.Module):
    """The parametrization of one weight; the parameters of a layer share their gate."""

    start: Tensor

    def __init__(self, gate: LayerGate, start: Tensor) -> None:
        super().__init__()
        self.gate = gate
        self.register_buffer("start", start, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        gate = self.gate
        chosen: Tensor = _Chosen.apply(weight, self.start, gate.value, gate.threshold)  # type: ignore[no-untyped-call]
        return chosen


def is_norm(module: nn.Module) -> bool:
    """Return whether a layer normalizes: by torch's classes, or by a name such as ``LlamaRMSNorm``."""
    known = nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm
    return isinstance(module, known) or type(module).__name__.endswith("Norm")


def weight_groups(backbone: nn.Module, layers: Literal["linear", "all"]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return layer -> the parameters that its gate is for, each as a module and a name.

    Weight and bias of a layer are one group. So are layers that share a parameter, such as an embedding and the output
    layer that it is tied to: they open and close together. Normalization layers have no gate.

    Args:
        backbone: of any architecture.
        layers: ``linear`` for groups of linear layers and convolutions only.
    """
    groups: dict[str, list[tuple[nn.Module, str]]] = {}
    owner: dict[int, str] = {}
    for name, module in backbone.named_modules():
        own = {n: p for n, p in module.named_parameters(recurse=False) if p.is_floating_point()}
        if not own or is_norm(module):
            continue
        shared = dict.fromkeys(owner[id(p)] for p in own.values() if id(p) in owner)
        first = next(iter(shared), name or type(module).__name__)
        merged = [slot for group in shared for slot in groups.pop(group)] + [(module, n) for n in own]
        groups[first] = merged
        owner |= {id(getattr(m, n)): first for m, n in merged}
    return {name: group for name, group in groups.items() if layers == "all" or all(_is_linear(m) for m, _ in group)}


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D  # deferred: it takes seconds to import

    return isinstance(module, (nn.Linear, Conv1D, *_CONVOLUTIONS))


@contextlib.contextmanager
def gated_weights(
    groups: dict[str, list[tuple[nn.Module, str]]], start: float, threshold: float
) -> Iterator[dict[str, LayerGate]]:
    """Put a gate on every group of parameters for the block; at the end, closed layers have the weights of before.

    The parameters are trained, and stay the same objects. A copy of each is kept on its device.

    Args:
        groups: of `weight_groups`.
        start: the gates' first value.
        threshold: of an open gate.
    """
    gates: dict[str, LayerGate] = {}
    copies: dict[int, _GatedWeight] = {}
    with contextlib.ExitStack() as stack:
        for name, group in groups.items():
            device = getattr(*group[0]).device
            gates[name] = LayerGate(start, threshold).to(device)
            for module in dict.fromkeys(module for module, _ in group):
                names = [n for m, n in group if m is module]
                stack.callback(_restore, module, names, gates[name], tuple(module._parameters))
                for parameter in names:
                    _put(module, parameter, gates[name], copies)
        yield gates


def _put(module: nn.Module, name: str, gate: LayerGate, copies: dict[int, _GatedWeight]) -> None:
    """Gate a parameter; ``copies`` has those of parameters that several layers share."""
    parameter = getattr(module, name)
    if id(parameter) not in copies:
        parameter.requires_grad_(True)
        copies[id(parameter)] = _GatedWeight(gate, parameter.detach().clone())
    # unsafe: no forward pass to check its shape
    parametrize.register_parametrization(module, name, copies[id(parameter)], unsafe=True)


@torch.no_grad()
def _restore(module: nn.Module, names: Sequence[str], gate: LayerGate, order: Sequence[str]) -> None:
    """Take the parametrizations off, close for good what is closed, and put the parameters in their order again."""
    for name in names:
        if not parametrize.is_parametrized(module, name):
            continue
        (gated,) = module.parametrizations[name]  # type: ignore[index]
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        if not gate.is_open:
            getattr(module, name).copy_(gated.start)
    for name in order:  # the order of parameters is that of sums over them, such as the norm of gradients
        module._parameters[name] = module._parameters.pop(name)
