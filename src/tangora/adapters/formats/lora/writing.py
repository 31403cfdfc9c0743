"""Write updates as the files of a PEFT adapter, from which stock peft computes exactly these updates."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tangora.adapters.formats.lora.base_dependent import DoraUpdate
from tangora.adapters.formats.lora.layers import expert_of, experts_of, is_bias, join_experts
from tangora.adapters.formats.lora.names import PREFIX
from tangora.adapters.formats.lora.settings import HEADS, is_bias_alone, is_in_saved_module, rank_and_scaling
from tangora.errors import AdapterError
from tangora.support.threads import in_threads
from tangora.updates.task_vector import Dense, Factors, LowRank, Update

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter

__all__ = ["Content", "alpha_of", "content_of", "write_config", "write_tensors"]

_INIT_ONLY = ("eva_config", "corda_config", "lora_ga_config", "loftq_config")
_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


@dataclass(frozen=True)
class Content:
    """The content of an adapter's files.

    Args:
        updates: site -> update; an expert's site is ``<layer>[e]``.
        biases: site -> the change of its layer's bias.
        embeddings: the sites that are embeddings.
        kernels: site -> ``(in, k₁, k₂, …)`` of a convolution.
        whole: parameter of the base -> its new value.
        norms: site -> DoRA's m; for all sites or none.
    """

    updates: Mapping[str, Factors]
    biases: Mapping[str, Tensor]
    embeddings: frozenset[str]
    kernels: Mapping[str, tuple[int, ...]]
    whole: Mapping[str, Tensor]
    norms: Mapping[str, Tensor] = field(default_factory=dict)


def content_of(adapter: Adapter) -> Content:
    """Return the content of an adapter's files: every update as factors, and biases separately.

    A dense update becomes factors of its numerical rank, by an SVD. The updates of a trained DoRA stay DoRA's.
    """
    dora = {site: update for site, update in adapter.updates.items() if isinstance(update, DoraUpdate)}
    if adapter.metadata.base.adapted is not None and len(dora) == len(adapter.updates):
        products = {site: update.product for site, update in dora.items()}
        norms = {site: update.norms for site, update in dora.items()}
        return Content(products, {}, adapter.embeddings, adapter.kernels, adapter.whole, norms)
    biases = {site: update for site, update in adapter.updates.items() if is_bias(site, update)}
    others = {site: update for site, update in adapter.updates.items() if site not in biases}
    return Content(
        updates=dict(zip(others, in_threads(_as_factors, list(others.values())), strict=True)),
        biases={site.removesuffix(".bias"): update.dense() for site, update in biases.items()},
        embeddings=adapter.embeddings,
        kernels=adapter.kernels,
        whole=adapter.whole,
    )


def _as_factors(update: Update) -> Factors:
    factors = update.factors()
    if factors is None:
        return Dense(update.dense()).low_rank()
    # a loader may read an alpha of 0 as a missing one
    return factors if factors.scaling != 0.0 else LowRank(torch.zeros_like(factors.b), factors.a)


def write_config(content: Content, template: Mapping[str, Any] | None, base: str | None) -> dict[str, Any]:
    """Return a configuration with which peft computes exactly ``content``; it keeps the template's settings if it can.

    Raises:
        AdapterError: no configuration of peft can express it.
    """
    plain = {"peft_type": "LORA", "base_model_name_or_path": base, "task_type": None, "bias": "none"}
    config = dict(template or plain) | {"inference_mode": True, "init_lora_weights": True}
    config = {key: value for key, value in config.items() if key not in _INIT_ONLY}
    config |= {key: False for key in ("use_dora", "lora_bias", "ensure_weight_tying") if key in config}
    if content.norms:
        config["use_dora"] = True
    if content.biases:
        _refuse_biases(content)
        config["lora_bias"] = True
    _name_whole(config, content)
    modules = {site: u for site, u in content.updates.items() if expert_of(site) is None}
    if experts := experts_of(content.updates):
        config["lora_dropout"] = 0.0  # peft accepts no other with target_parameters
        if config.get("fan_in_fan_out"):
            fix = "write a full checkpoint: tangora merge ... --base BASE"
            raise AdapterError("peft adapts no parameters with fan_in_fan_out", got=min(experts), fix=fix)
    elif config.get("target_parameters"):
        config["target_parameters"] = None
    if not _selects(config, modules):
        config |= dict.fromkeys(_SELECTION[1:]) | {"target_modules": sorted(modules)}
    ranks = {site: u.rank for site, u in modules.items()}
    largest = max(_ranks(content.updates), default=1)
    as_stated = all(rank_and_scaling(config, site) == (u.rank, u.scaling) for site, u in modules.items())
    if not experts and as_stated and config.get("r", 8) >= largest:
        return config
    alphas = {site: alpha_of(u) for site, u in modules.items()}
    # The largest, since servers reserve room for r. Experts get the defaults: peft rejects a pattern for a parameter.
    rank, alpha = largest, largest if experts else _most(alphas, 1)
    config |= {"r": rank, "lora_alpha": alpha, "use_rslora": False}
    return config | {"rank_pattern": _exceptions(ranks, rank), "alpha_pattern": _exceptions(alphas, alpha)}


def _most(values: Mapping[str, Any], default: Any) -> Any:
    return Counter(values.values()).most_common(1)[0][0] if values else default


def _refuse_biases(content: Content) -> None:
    other = sorted(s for s in content.updates if s in content.embeddings or expert_of(s) is not None)
    if other:
        fix = "write a full checkpoint: tangora merge ... --base BASE"
        raise AdapterError("peft has no lora_bias together with an embedding or a parameter", got=other[0], fix=fix)
    if odd := sorted(content.biases.keys() - content.updates.keys()):
        fix = "write a full checkpoint: tangora merge ... --base BASE"
        raise AdapterError("peft has no update for the bias of a layer without factors", got=odd[0], fix=fix)


def _name_whole(config: dict[str, Any], content: Content) -> None:
    """Set ``modules_to_save`` and ``bias`` to match the tensors: peft fails if one that they name is missing."""
    listed = config.get("modules_to_save") or ()
    modules = [module for module in listed if any(is_in_saved_module(name, [module]) for name in content.whole)]
    config["modules_to_save"] = modules or None
    head = HEADS.get(str(config.get("task_type")))  # peft wraps it, whether it is listed or not
    if head and not any(is_in_saved_module(name, head) for name in content.whole):
        config["task_type"] = None
    named = any(is_bias_alone(name, config) for name in content.whole)
    config["bias"] = config.get("bias") if named else "none"


def _ranks(updates: Mapping[str, Factors]) -> Iterator[int]:
    return (update.rank for update in updates.values())


def alpha_of(update: Factors) -> float:
    """Return an alpha with ``alpha / rank == scaling``, to the last bit if such an alpha exists."""
    near = update.scaling * update.rank
    options = (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    exact = next((x for x in options if x / update.rank == update.scaling), near)
    return int(exact) if exact == int(exact) else exact


def _exceptions(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Return patterns for values that differ from the default; anchored, since peft matches a pattern as a suffix."""
    return {f"^{re.escape(site)}": value for site, value in sorted(values.items()) if value != default}


def _selects(config: Mapping[str, Any], sites: Iterable[str]) -> bool:
    """Return whether peft would adapt all ``sites``; they were selected with the same layer filters."""
    targets = config.get("target_modules")
    if isinstance(targets, str):
        return all(re.fullmatch(targets, site) for site in sites)
    return all(any(site == t or site.endswith(f".{t}") for t in targets or ()) for site in sites)


def write_tensors(content: Content, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the tensors of ``adapter_model.safetensors``, in float32 unless another dtype is given."""
    tensors: dict[str, Tensor] = {}
    for site, update in content.updates.items():
        if expert_of(site) is None:
            tensors |= _layer(site, update, content)
    experts = experts_of(content.updates)
    for layer, updates in experts.items():  # they have the default rank, which is the largest
        a, b = join_experts(updates, max(_ranks(content.updates)))
        tensors |= {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
    for name, tensor in content.whole.items():
        stem, _, kind = name.rpartition(".")
        adapted = stem in content.updates  # peft keeps it in the wrapped layer
        tensors[f"{stem}.base_layer.{kind}" if adapted else name] = tensor
    return {
        PREFIX + name: tensor.detach().float().cpu().to(dtype or torch.float32, copy=True)
        for name, tensor in tensors.items()
    }


def _layer(site: str, update: Factors, content: Content) -> dict[str, Tensor]:
    if site in content.embeddings:
        return {f"{site}.lora_embedding_A": update.a, f"{site}.lora_embedding_B": update.b}
    a, b = update.a, update.b
    if kernel := content.kernels.get(site):
        a, b = a.reshape(-1, *kernel), b.reshape(*b.shape, *(1,) * (len(kernel) - 1))
    tensors = {f"{site}.lora_A.weight": a, f"{site}.lora_B.weight": b}
    if content.biases and site not in content.embeddings:
        bias = content.biases.get(site)
        bias = torch.zeros(update.shape[0]) if bias is None else bias.double() / update.scaling
        tensors[f"{site}.lora_B.bias"] = bias
    if site in content.norms:
        tensors[f"{site}.lora_magnitude_vector"] = content.norms[site]
    return tensors
