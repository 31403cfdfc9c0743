"""A gate on every LoRA layer of a peft model: ``y = Wx + 1[s ≥ τ] · scaling · BAx``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor

from tangora.adapters.peft_layers import Layer, lora_layers
from tangora.modular.layer_gates import LayerGate

if TYPE_CHECKING:
    from torch import nn

__all__ = ["gate_lora_"]

_ADAPTER = "default"
_GATE = "gate"


def gate_lora_(model: nn.Module, start: float, threshold: float) -> dict[str, LayerGate]:
    """Give every LoRA layer a gate, and return site -> gate. The gates go away with peft's layers.

    Args:
        model: of peft, with one LoRA adapter.
        start: the gates' first value.
        threshold: of an open gate.
    """
    gates = {}
    for site, layer in lora_layers(model).items():
        device = layer.get_base_layer().weight.device
        gates[site] = LayerGate(start, threshold).to(device)
        layer.add_module(_GATE, gates[site])
        layer.lora_variant[_ADAPTER] = _GatedLora()
    return gates


class _GatedLora(LoraVariant):
    """The variant that peft's LoRA layers call instead of their own forward.

    The gate multiplies ``Ax``, of width r, rather than ``s·BAx``: as B is linear, the gradients are the same, and
    autograd keeps r numbers a token for dL/ds instead of the width of the output. A gate of 1 changes no bit.
    """

    @staticmethod
    def forward(
        module: Layer, active_adapter: str, x: Tensor, result: Float[Tensor, "*batch out"], **_: Any
    ) -> Float[Tensor, "*batch out"]:
        """Return the layer's output."""
        gate: Tensor = getattr(module, _GATE)()
        scaling: float = module.scaling[active_adapter]
        if active_adapter in module.lora_embedding_A:
            return _embedded(module, active_adapter, x, gate, result)
        dropout = module.lora_dropout[active_adapter]
        hidden = module.lora_A[active_adapter](dropout(x)) * gate
        added: Tensor = result + module.lora_B[active_adapter](hidden) * scaling
        return added


def _embedded(module: Layer, adapter: str, x: Tensor, gate: Tensor, result: Tensor) -> Tensor:
    """Return the output of an embedding, in the order of peft's own operations."""
    hooks = {"input_fn": module.input_fns.get(adapter), "output_fn": module.output_fns.get(adapter)}
    hidden = module._embed(x, module.lora_embedding_A[adapter].T, **hooks) * gate
    added = (hidden @ module.lora_embedding_B[adapter].T) * module.scaling[adapter]
    scale = module._get_embed_scale()  # of layers that multiply what they look up, such as Gemma's
    total: Tensor = result + (added if scale is None else added * scale.to(added.dtype))
    return total
