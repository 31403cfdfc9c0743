"""Prepare a base model for training (LoRA layers, φ₀, gradients), and undo all of it afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tangora.adapters import initial
from tangora.adapters.peft_layers import lora_layers
from tangora.errors import ModelError
from tangora.modes.contract import Footprint
from tangora.modes.targets import check_patterns, check_syntax, check_targets
from tangora.storage.spread import move_, places_of
from tangora.updates.task_vector import LowRank

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from tangora.config.recipe import FinetuneConfig, LoraSettings
    from tangora.tasks import Base

__all__ = [
    "Start",
    "adapt",
    "as_before",
    "check_lora",
    "checkpoint_gradients",
    "frozen_statistics",
    "lora_footprint",
    "refuse_checkpointing",
    "refuse_held",
    "refuse_spread",
    "refuse_quantized",
    "weights_footprint",
]


@dataclass(frozen=True)
class Start:
    """A PEFT model before training: φ₀ (None if it is not recorded), and peft's configuration."""

    model: PeftModel
    initial: dict[str, LowRank] | None
    embeddings: frozenset[str]
    config: dict[str, Any]


def check_lora(base: Base, config: FinetuneConfig) -> None:
    """Refuse targets, patterns and starts with which no LoRA can be trained, before peft sees the model.

    Raises:
        ModelError: a target matches nothing, a pattern is not a regular expression, or the start changes the base.
    """
    check_syntax(config.lora)
    check_targets(base.backbone, config.lora.target_modules)
    initial.kind_of(config.lora.init)


def adapt(backbone: nn.Module, task: str | None, config: FinetuneConfig) -> Start:
    """Put LoRA layers at φ₀ into the backbone.

    Args:
        backbone: the model, changed in place.
        task: determines A₀ with ``a_init: per_task``; None if the adapter is of several tasks.
        config: its ``lora`` section and seed.

    Raises:
        ModelError: as `check_lora`; a pattern matches no adapted layer; or ``a_init: per_task`` without a task.
    """
    from peft import get_peft_model  # deferred: takes seconds to import

    if task is None and config.lora.a_init == "per_task":
        fix = "set a_init: shared"
        raise ModelError("an adapter of several tasks has no A₀ of its own task", where="lora.a_init", fix=fix)
    name = task if config.lora.a_init == "per_task" else None
    with torch.random.fork_rng(devices=()):  # peft draws before we do, and some of its values are kept
        torch.manual_seed(initial.seed_of("peft", config.seed, name))
        model = get_peft_model(backbone, _lora_config(config.lora, dora=config.train == "dora"))
    layers = lora_layers(model)
    check_patterns(layers, config.lora)
    _refuse_parts(backbone, layers)
    start = initial.set_initial_(model, config.seed, task=name)
    embeddings = frozenset(site for site, layer in layers.items() if "default" in layer.lora_embedding_A)
    return Start(model, start, embeddings, _plain(model.peft_config["default"].to_dict()))


def _refuse_parts(backbone: nn.Module, layers: Collection[str]) -> None:
    """Refuse a device map that moves an adapted layer by itself: its inputs would not follow to its factors."""
    for site in layers:
        if site in places_of(backbone):
            fix = "put the block that contains it on the device"
            raise ModelError("an adapted layer has an entry of its own", got=site, where="base.device_map", fix=fix)


def refuse_spread(base: Base, config: FinetuneConfig) -> None:
    """Refuse a base that is spread over devices, for a mode that trains the whole network or its expansion.

    Raises:
        ModelError: names the key.
    """
    if base.config.device_map is not None:
        fix = "leave base.device_map out, or train LoRA or L-LoRA"
        raise ModelError(f"mode {config.mode} needs the model on one device", where="base.device_map", fix=fix)


def lora_footprint(
    base: Base, config: FinetuneConfig, expand: Callable[[PeftModel], object] | None = None
) -> Footprint:
    """Count the factors of a LoRA by adding it and removing it again.

    Args:
        base: as before afterwards.
        config: its ``lora`` section.
        expand: linearizes the model, which may freeze one factor of each site.

    Raises:
        ModelError: as `adapt`.
    """
    with as_before(base.backbone, values=False):
        model = adapt(base.backbone, "footprint", config).model
        if expand is not None:
            expand(model)
        factors = [p for name, p in model.named_parameters() if "lora_" in name]
        trainable = sum(p.numel() for p in factors if p.requires_grad)
        adapted = sum(layer.get_base_layer().weight.numel() for layer in lora_layers(model).values())
        return Footprint(len(lora_layers(model)), trainable, 4 * sum(p.numel() for p in factors), adapted)


def weights_footprint(base: Base) -> Footprint:
    """Count the parameters of the whole model; their changes are kept in float32."""
    sizes = [p.numel() for p in base.backbone.parameters()]
    return Footprint(len(sizes), sum(sizes), 4 * sum(sizes), sum(sizes))


def _lora_config(lora: LoraSettings, *, dora: bool) -> LoraConfig:
    from peft import LoraConfig  # deferred: it takes seconds to import

    targets = lora.target_modules
    return LoraConfig(
        r=lora.r,
        lora_alpha=cast(int, lora.alpha),  # peft divides it, and takes fractions too
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        use_rslora=lora.rslora,
        use_dora=dora,
        init_lora_weights=cast(bool, lora.init),
    )


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as JSON values: sets as sorted lists, enumerations as their values."""
    values = {key: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for key, v in config.items()}
    return values | {"inference_mode": True}


def refuse_checkpointing(config: FinetuneConfig) -> None:
    """Raise `ModelError` if the configuration checkpoints gradients, for a mode that trains by tangents."""
    if config.training.gradient_checkpointing:
        fix = "switch it off: tangents are not kept for the backward pass anyway"
        raise ModelError("tangents cannot be recomputed", where="training.gradient_checkpointing", fix=fix)


def checkpoint_gradients(backbone: nn.Module) -> None:
    """Recompute activations in the backward pass.

    Raises:
        ModelError: the model cannot.
    """
    if not hasattr(backbone, "gradient_checkpointing_enable"):
        where = "training.gradient_checkpointing"
        raise ModelError("this model cannot checkpoint gradients", got=type(backbone).__name__, where=where)
    cast(Any, backbone).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def refuse_held(base: Base, config: FinetuneConfig) -> None:
    """Refuse a base whose weights are not in float32, for a mode that trains them, or trains from their values.

    Raises:
        ModelError: names the key.
    """
    if (weights := base.config.weights) != "float32":
        what = f"mode {config.mode} needs the base's weights in float32, and they are held in another form"
        fix = "set base.weights_dtype: float32, or train LoRA or L-LoRA"
        raise ModelError(what, got=weights, where="base.weights_dtype", fix=fix)


def refuse_quantized(base: Base, config: FinetuneConfig) -> None:
    """Refuse a quantized base, for a mode that trains a change of every weight.

    Raises:
        ModelError: names the key.
    """
    if base.config.quantization is not None:
        what = f"mode {config.mode} changes every weight, and quantized weights have no gradients"
        fix = "leave base.quantization out, or train LoRA or L-LoRA"
        raise ModelError(what, got=base.config.quantization, where="base.quantization", fix=fix)


@contextlib.contextmanager
def as_before(backbone: nn.Module, *, values: bool) -> Iterator[dict[str, Tensor]]:
    """Restore layers, weights, flags, mode and device of the backbone at the end; yield the weights if copied."""
    flags = {name: p.requires_grad for name, p in backbone.named_parameters()}
    training, device = backbone.training, next(backbone.parameters()).device
    pristine = {n: p.detach().to("cpu", copy=True) for n, p in backbone.named_parameters()} if values else {}
    try:
        yield pristine
    finally:
        _unload(backbone)
        if any(getattr(module, "gradient_checkpointing", False) for module in backbone.modules()):
            cast(Any, backbone).gradient_checkpointing_disable()
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if name in pristine:
                    parameter.copy_(pristine[name])
                parameter.requires_grad_(flags[name])
                parameter.grad = None
        move_(backbone, device)
        backbone.train(training)


def _unload(backbone: nn.Module) -> None:
    """Put back the layers that peft wrapped, also if peft failed half-way."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # deferred: it takes seconds to import

    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, module.get_base_layer())
    if hasattr(backbone, "peft_config"):
        del backbone.peft_config


@contextlib.contextmanager
def frozen_statistics(backbone: nn.Module) -> Iterator[None]:
    """Keep layers with running statistics in evaluation mode for the block, whatever the mode of the model around them.

    No adapter contains these statistics (batch normalization has them). With those of the base, training and evaluation
    compute the same function of the weights, so that an adapter is exactly what was trained.
    """

    def still(module: nn.Module, _: object) -> None:
        module.training = False

    layers = [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    hooks = [layer.register_forward_pre_hook(still) for layer in layers if layer.track_running_stats]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
