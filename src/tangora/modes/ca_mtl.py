"""Train CA-MTL on several tasks at once, and make an adapter without the hypernetwork for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from tangora.adapters.initial import seed_of
from tangora.errors import ModelError
from tangora.modes.mixture import Mixture, TaskMeans
from tangora.modes.modular import modules_adapter, modules_footprint
from tangora.modes.preparation import refuse_held, refuse_quantized, refuse_spread
from tangora.modes.session import training
from tangora.modular.ca_mtl.baked import CHANGES, Baked
from tangora.modular.ca_mtl.conditional import Conditional
from tangora.modular.ca_mtl.encoder import encoder_of
from tangora.modular.ca_mtl.hooks import refuse_attention
from tangora.modular.ca_mtl.parts import Parts
from tangora.modular.conditioned import ConditionedTaskModel
from tangora.modular.network import attached, drawing

if TYPE_CHECKING:
    from tangora.adapters.adapter import Adapter
    from tangora.config.ca_mtl import CaMtlSettings
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.modular.ca_mtl.encoder import Encoder
    from tangora.tasks import Base, Task

__all__ = ["baked_network", "check", "footprint", "parts_of", "train"]


def parts_of(base: Base, settings: CaMtlSettings) -> Parts:
    """Return what is conditioned in a base.

    Raises:
        ModelError: the base is no encoder with the layers of BERT; or a number does not fit it.
    """
    encoder = encoder_of(base.backbone)
    n = len(encoder.layers)
    first = settings.unfreeze_from
    if first is not None and first >= n:
        fix = f"give a number from 0 to {n - 1}, or leave it out"
        raise ModelError(f"the model has {n} layers, counted from 0", got=first, where="unfreeze_from", fix=fix)
    changed = set(range(n if first is None else first, n)) | ({n - 1} if settings.top == "new" else set())
    return Parts(
        layers=n,
        width=encoder.width,
        embedded=encoder.embedded,
        length=_length(base, settings.length),
        large=settings.variant == "large",
        alignment=settings.alignment,
        attention=settings.attention,
        norms=settings.norms,
        bottleneck=settings.bottleneck,
        changed=sorted(changed),
    )


def _length(base: Base, given: int | None) -> int:
    """Return L: by default the largest number of tokens that the base reads.

    Raises:
        ModelError: the base reads more tokens than are given.
    """
    config: Any = base.backbone.config
    read = min(int(getattr(base.config, "max_length", config.max_position_embeddings)), config.max_position_embeddings)
    if given is not None and given < read:
        fix = f"set base.max_length: {given}, or length: {read}"
        raise ModelError(
            f"the base reads up to {read} tokens, and the bias is for fewer", got=given, where="length", fix=fix
        )
    return read if given is None else given


def check(base: Base, config: FinetuneConfig) -> None:
    """Refuse a base without the layers of BERT, and settings that do not fit it; see `Mode.check`.

    Raises:
        ModelError: names the key.
    """
    parts = parts_of(base, config.settings)
    if parts.attention:
        refuse_attention(base.backbone)
    refuse_spread(base, config)
    if parts.changed:
        refuse_held(base, config)
        refuse_quantized(base, config)
    if config.training.gradient_checkpointing:
        what = "a forward pass that is repeated in the backward pass would be of another task"
        raise ModelError(what, where="training.gradient_checkpointing", fix="switch it off")


def footprint(base: Base, config: FinetuneConfig) -> Footprint:
    """Count the hypernetwork of one task, with the weights that are trained, and the numbers of an adapter.

    Each further task adds an embedding of d numbers to what is trained.
    """
    parts, encoder = parts_of(base, config.settings), encoder_of(base.backbone)
    with drawing(0), torch.device("meta"):
        network, baked = Conditional(parts, 1), _empty(parts, encoder)
    own = sum(value.numel() for value in encoder.weights(parts.changed).values())
    sites = parts.alignment + parts.attention * parts.layers + len(parts.normed) + len(parts.squeezed)
    one = modules_footprint(network, sites + len(parts.changed), own, sum(p.numel() for p in baked.parameters()))
    return type(one)(one.sites, one.trainable + own, one.size, own)


def train(bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
    """Train the hypernetwork on all tasks, and bake it for each of them; see `Mode.train`."""
    base, settings = bench.base, config.settings
    parts, encoder = parts_of(base, settings), encoder_of(bench.base.backbone)
    with training(bench, tasks, config, copy_weights=bool(parts.changed)) as session:
        with drawing(seed_of("ca-mtl", config.seed)):
            network = Conditional(parts, len(tasks))
            if settings.top == "new":
                _renew_(encoder.layers[-1], base.backbone)
        own = encoder.weights(parts.changed)
        with attached(base.backbone, network):
            for parameter in own.values():
                parameter.requires_grad_(True)
            numbers = {task.name: number for number, task in enumerate(tasks)}
            session.fit(
                lambda task: ConditionedTaskModel(base.backbone, task, base, network=network, index=numbers[task.name]),
                TaskMeans if settings.loss == "tasks" else Mixture,
            )
            shared = {f"{CHANGES}{name}": p.detach().cpu() - session.pristine[name] for name, p in own.items()}
            made = {task.name: {**network.baked(numbers[task.name], encoder), **shared} for task in tasks}
    return {task.name: modules_adapter(base, tasks, config, made[task.name], parts.to_json()) for task in tasks}


def baked_network(backbone: nn.Module, adapter: Adapter) -> Baked:
    """Return the network of an adapter, without its tensors.

    Raises:
        ModelError: the backbone is no encoder with the layers of BERT.
    """
    parts = Parts.of(adapter.metadata.modules or {})
    return _empty(parts, encoder_of(backbone))


def _empty(parts: Parts, encoder: Encoder) -> Baked:
    return Baked(parts, {name: value.shape for name, value in encoder.weights(parts.changed).items()})


@torch.no_grad()
def _renew_(layer: nn.Module, backbone: nn.Module) -> None:
    """Give a layer the values with which a pretraining begins: the paper trains the top layer from scratch."""
    spread = float(getattr(cast(Any, backbone).config, "initializer_range", 0.02))
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=spread)
            module.bias.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
