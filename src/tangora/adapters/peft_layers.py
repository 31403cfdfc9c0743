"""Find the layers of a peft model that hold an adapter, and their two factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

from tangora.errors import ModelError

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

Layer: TypeAlias = Any  # peft.tuners.lora.layer.Linear | Embedding, annotated in part only

__all__ = ["Layer", "adapter_config", "base_of", "factor_names", "factors", "lora_layers"]


def base_of(model: nn.Module) -> nn.Module:
    """Return the base model inside a `PeftModel`; a model that holds its adapters itself is its own base."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def adapter_config(model: nn.Module, adapter_name: str) -> LoraConfig:
    """Return the configuration of a LoRA adapter.

    Raises:
        ModelError: there is no such adapter, or it is not LoRA.
    """
    configs: dict[str, Any] = getattr(model, "peft_config", None) or {}
    if adapter_name not in configs:
        fix = f"the model has: {', '.join(configs)}" if configs else "wrap the model with peft.get_peft_model first"
        raise ModelError("no such adapter in the model", got=adapter_name, where="adapter_name", fix=fix)
    config = configs[adapter_name]
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise ModelError("only LoRA adapters are supported", got=kind, where=adapter_name, fix="use peft.LoraConfig")
    return cast("LoraConfig", config)


def lora_layers(model: nn.Module, adapter_name: str = "default") -> dict[str, Layer]:
    """Return site -> LoRA layer (`peft.tuners.lora.layer.Linear` or ``Embedding``) of one adapter.

    Raises:
        ModelError: there is no such adapter, no layer holds it, or a layer is not a Linear, Conv1D or Embedding.
    """
    from peft.tuners.lora.layer import LoraLayer  # deferred: it takes seconds to import

    adapter_config(model, adapter_name)
    layers = {
        site: module
        for site, module in base_of(model).named_modules()
        if isinstance(module, LoraLayer) and adapter_name in module.r
    }
    if not layers:
        raise ModelError("no layer of the model holds the adapter", got=adapter_name, fix="check target_modules")
    for site, layer in layers.items():
        _refuse_unless_plain(layer, site, adapter_name)
    return layers


def _refuse_unless_plain(layer: Layer, site: str, adapter_name: str) -> None:
    """Refuse other types, subclasses too: these may compute something else (quantized, sharded)."""
    from peft.tuners.lora.layer import Embedding, Linear  # deferred: it takes seconds to import

    if type(layer) not in (Linear, Embedding):
        name, fix = f"{type(layer).__module__}.{type(layer).__name__}", "target Linear, Conv1D or Embedding layers only"
        raise ModelError("only LoRA on Linear, Conv1D and Embedding layers is supported", got=name, where=site, fix=fix)
    if layer.lora_bias.get(adapter_name):
        raise ModelError("lora_bias is not a low-rank update", where=site, fix="set lora_bias=False")


def factor_names(layer: Layer, adapter_name: str) -> tuple[str, str]:
    """Return the names of the attributes of ``layer`` that hold A and B; those of an embedding differ."""
    if adapter_name in layer.lora_embedding_A:
        return "lora_embedding_A", "lora_embedding_B"
    return "lora_A", "lora_B"


def factors(layer: Layer, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """Return the parameters A ``[r, in]`` and B ``[out, r]`` of a Linear, Conv1D or Embedding site."""
    name_a, name_b = factor_names(layer, adapter_name)
    a, b = getattr(layer, name_a)[adapter_name], getattr(layer, name_b)[adapter_name]
    return getattr(a, "weight", a), getattr(b, "weight", b)
