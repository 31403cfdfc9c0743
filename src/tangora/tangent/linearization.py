"""L-LoRA: replace every LoRA site of a `PeftModel` by its first-order expansion at φ₀, in closed form.

    y = Wx + s [B₀A₀ + (B − B₀)A₀ + B₀(A − A₀)] x  =  Wx + s [B A₀ + B₀ (A − A₀)] x        (arXiv:2310.04742, eq. 5)

peft starts with B₀ = 0. Then A drops out: the site is LoRA with A frozen at A₀, which costs less than LoRA, needs no
further memory, and is already a plain adapter. An embedding starts with A₀ = 0, and B is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor

from tangora.adapters.peft_layers import Layer, adapter_config, factor_names, factors, lora_layers
from tangora.errors import ModelError
from tangora.updates.task_vector import LowRank

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LinearizedLora", "buffer_names", "expand_sites", "linear_factors", "linearize", "looked_up", "product"]

KEEPS_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""peft's ``init_lora_weights`` that leave the base weights as they are (checked in peft 0.21)."""

_Model = TypeVar("_Model", bound="nn.Module")


def linearize(
    peft_model: _Model,
    adapter_name: str = "default",
    *,
    initial: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> _Model:
    """Linearize every LoRA site of an adapter at φ₀, in place, and return the model.

    .. math:: y = Wx + s [B A_0 + B_0 (A - A_0)] x

    (arXiv:2310.04742, eq. 5, per layer as in the paper's code; the network between the layers is unchanged.) If B₀ = 0
    (peft's default), A is set to A₀ and frozen; if A₀ = 0 (embeddings), B is. A frozen factor stays frozen after
    ``set_adapter``, ``set_requires_grad`` and ``load_adapter(is_trainable=True)``. The model then trains, merges and
    saves like any PEFT model; if both factors are trained, save `linear_factors` instead. Choose it for adapters to be
    added: adapters that share A₀ add up exactly, at the same rank. It needs a larger learning rate than LoRA.

    Args:
        peft_model: a `peft.PeftModel` (or a model with injected adapters) with LoRA on Linear, Conv1D or Embedding.
        adapter_name: the adapter to linearize.
        initial: site -> (A₀ ``[r, in]``, B₀ ``[out, r]``); by default the current values, which are φ₀ before training,
            but not for a trained adapter that was loaded.

    Raises:
        ModelError: there is no such adapter, no layer holds it, or a layer is of another kind; the initial values
            change the base weights; the adapter is of DoRA or another variant, or linearized at another φ₀ already.

    >>> import torch, peft
    >>> base = torch.nn.Sequential(torch.nn.Linear(4, 4))
    >>> model = linearize(peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"])))
    >>> [name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad]
    ['lora_B']
    """
    expand_sites(peft_model, adapter_name, initial, LinearizedLora)
    return peft_model


def expand_sites(
    peft_model: nn.Module,
    adapter_name: str,
    initial: Mapping[str, tuple[Tensor, Tensor]] | None,
    variant: type[LinearizedLora],
) -> None:
    """Give every LoRA site of an adapter a variant that has φ₀; do nothing if all have it already."""
    _refuse_config(adapter_config(peft_model, adapter_name))
    layers = lora_layers(peft_model, adapter_name)
    if all(type(layer.lora_variant.get(adapter_name)) is variant for layer in layers.values()):
        if initial is not None:
            raise ModelError(
                "the adapter is linearized already", got=adapter_name, fix="linearize before training, once"
            )
        return
    points = {site: _point(site, layer, adapter_name, initial) for site, layer in layers.items()}
    for site, (a0, b0) in points.items():
        _linearize_layer(layers[site], adapter_name, a0, b0, variant)


@torch.no_grad()
def linear_factors(peft_model: nn.Module, adapter_name: str = "default") -> dict[str, LowRank]:
    """Return the update of every site as plain LoRA for stock peft: float32 copies on the CPU.

    Updates have rank r. A linearized site with two trained factors has the exact form ``s [B | B₀] [A₀ ; A − A₀]`` of
    rank 2r.

    Raises:
        ModelError: there is no such adapter, or no layer holds it.
    """
    return {site: _export(layer, adapter_name) for site, layer in lora_layers(peft_model, adapter_name).items()}


class LinearizedLora(LoraVariant):
    """The variant that peft's LoRA layers call instead of their own forward and merge.

    Args:
        frozen: the factor that stays at its initial value, since the other one started at zero; None if both are
            trained. φ₀ is then kept in buffers of the layer that are not in its state dict.
    """

    def __init__(self, frozen: Literal["a", "b"] | None) -> None:
        self.frozen = frozen

    def supports_lora_conversion(self) -> bool:
        """Return whether B·A is the update."""
        return self.frozen is not None

    @staticmethod
    def forward(
        module: Layer, active_adapter: str, x: Tensor, result: Float[Tensor, "*batch out"], **_: Any
    ) -> Float[Tensor, "*batch out"]:
        """Return the site's output, with dropout on x as in peft."""
        a, b = product(module, active_adapter)
        scaling: float = module.scaling[active_adapter]
        if active_adapter in module.lora_embedding_A:
            return result + looked_up(module, active_adapter, x, a) @ b.T * scaling
        hidden = F.linear(module.lora_dropout[active_adapter](x), a)
        if result.dtype != hidden.dtype or result.ndim < 2:
            return result + F.linear(hidden, b) * scaling
        # one pass over the output instead of three: product, scaling and sum
        added = torch.addmm(result.flatten(0, -2), hidden.flatten(0, -2), b.T, alpha=scaling)
        return added.view(result.shape)

    @staticmethod
    def merge_safe(module: Layer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return a new base weight that includes the update."""
        return orig_weight + _delta(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Layer, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the update to the base weight in place."""
        orig_weight.data += _delta(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Layer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the base weight without the update."""
        return orig_weight.data - _delta(module, active_adapter).to(orig_weight.dtype)


def product(layer: Layer, adapter_name: str) -> tuple[Tensor, Tensor]:
    """Return two matrices with the update as their product; only trained factors have a gradient."""
    a, b = factors(layer, adapter_name)
    variant = layer.lora_variant.get(adapter_name)
    if not isinstance(variant, LinearizedLora):
        return a, b
    if variant.frozen == "a":
        return a.detach(), b
    if variant.frozen == "b":
        return a, b.detach()
    a0, b0 = (getattr(layer, name).to(a.dtype) for name in buffer_names(adapter_name))
    return torch.cat([a0, a - a0]), torch.cat([b, b0], dim=1)


@torch.no_grad()
def _export(layer: Layer, adapter_name: str) -> LowRank:
    a, b = (factor.to("cpu", torch.float32, copy=True) for factor in product(layer, adapter_name))
    return LowRank(b, a, float(layer.scaling[adapter_name]))


@torch.no_grad()
def _delta(layer: Layer, adapter_name: str) -> Tensor:
    """Return the update in the orientation of the base layer's weight."""
    delta = _export(layer, adapter_name).dense().to(layer.get_base_layer().weight.device)
    return delta.T if adapter_name in layer.lora_embedding_A or layer.fan_in_fan_out else delta


def _refuse_config(config: Any) -> None:
    init = config.init_lora_weights
    if init == "mica":
        fix = "mica trains only A and is linear already: train it unchanged"
        raise ModelError("mica cannot be linearized", where="init_lora_weights", fix=fix)
    if init not in KEEPS_BASE:
        fix = (
            "it changes the base weights, so that adapters would not share a base: use True, 'gaussian' or 'orthogonal'"
        )
        raise ModelError("these initial values cannot be linearized", got=init, where="init_lora_weights", fix=fix)
    if getattr(config, "ensure_weight_tying", False):
        fix = "a factor would be frozen in one layer and trained in the other: set it to False"
        raise ModelError("tied adapters cannot be linearized", where="ensure_weight_tying", fix=fix)


def _point(
    site: str, layer: Layer, adapter_name: str, initial: Mapping[str, tuple[Tensor, Tensor]] | None
) -> tuple[Tensor, Tensor]:
    """Return (A₀, B₀) of a site, checked."""
    if (variant := layer.lora_variant.get(adapter_name)) is not None:
        fix = "only plain LoRA has this expansion: switch DoRA and other variants off"
        raise ModelError("the layer computes a variant of LoRA", got=type(variant).__name__, where=site, fix=fix)
    if layer.merged:
        raise ModelError("the adapter is merged into the base", where=site, fix="call unmerge_adapter() first")
    a, b = factors(layer, adapter_name)
    if initial is None:
        return a.detach(), b.detach()
    if site not in initial:
        raise ModelError("no initial value for this site", where=site, fix="give (A0, B0) for every adapted layer")
    a0, b0 = initial[site]
    if a0.shape != a.shape or b0.shape != b.shape:
        got = f"A0 {tuple(a0.shape)}, B0 {tuple(b0.shape)}"
        fix = f"they must be {tuple(a.shape)} and {tuple(b.shape)}"
        raise ModelError("the initial value has another shape", got=got, where=site, fix=fix)
    return a0.detach().to(a), b0.detach().to(b)


@torch.no_grad()
def _linearize_layer(layer: Layer, adapter_name: str, a0: Tensor, b0: Tensor, variant: type[LinearizedLora]) -> None:
    a, b = factors(layer, adapter_name)
    frozen: Literal["a", "b"] | None = None if bool(b0.any()) and bool(a0.any()) else "b" if bool(b0.any()) else "a"
    if frozen is None:
        for name, value in zip(buffer_names(adapter_name), (a0, b0), strict=True):
            layer.register_buffer(name, value.clone(), persistent=False)
    else:
        (a if frozen == "a" else b).copy_(a0 if frozen == "a" else b0)
        name = factor_names(layer, adapter_name)[0 if frozen == "a" else 1]
        # peft freezes the names listed here whenever it makes an adapter trainable; the class attribute is the default
        layer.frozen_peft_weight_names = {**layer.frozen_peft_weight_names, adapter_name: (name,)}
        layer._freeze_non_trainable_peft_weights(adapter_name)
    layer.lora_variant[adapter_name] = variant(frozen)


def looked_up(layer: Layer, adapter_name: str, x: Tensor, a: Tensor) -> Tensor:
    """Return columns of A by token, with the hooks and the scale of peft's own forward."""
    hooks = layer.input_fns.get(adapter_name), layer.output_fns.get(adapter_name)
    rows = layer._embed(x, a.T, input_fn=hooks[0], output_fn=hooks[1])
    scale = layer._get_embed_scale()
    scaled: Tensor = rows if scale is None else rows * scale.to(rows.dtype)
    return scaled


def buffer_names(adapter_name: str) -> tuple[str, str]:
    """Return the names of the buffers with A₀ and B₀ of an adapter with two trained factors."""
    return f"tangora_a0_{adapter_name}", f"tangora_b0_{adapter_name}"
