"""Train bottleneck adapters, by themselves or by a hypernetwork: shared by their modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tangora.adapters.initial import seed_of
from tangora.errors import AdapterError, ModelError
from tangora.modes.modular import adding, modules_adapter, modules_footprint
from tangora.modular.bottleneck.adapters import Bottlenecks, Form
from tangora.modular.bottleneck.hypernetwork import Hypernetwork, Plan, sizes_of
from tangora.modular.bottleneck.places import find_places
from tangora.modular.conditioned import ConditionedTaskModel
from tangora.modular.network import drawing
from tangora.tasks.model import TaskModel

if TYPE_CHECKING:
    from torch import nn

    from tangora.adapters.adapter import Adapter
    from tangora.config.bottleneck import BottleneckKeys, HyperformerSettings
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task

__all__ = [
    "baked_network",
    "bottlenecks",
    "check_hypernetwork",
    "hyper_footprint",
    "hypernetwork",
    "own_footprint",
    "train_hypernetwork",
    "train_own",
]


def bottlenecks(backbone: nn.Module, settings: BottleneckKeys) -> Bottlenecks:
    """Return new adapters for a backbone.

    Raises:
        ModelError: it has no such places, or they are narrower than the reduction.
    """
    places = find_places(backbone, settings.places)
    return Bottlenecks(places, _form(settings), [s.bottleneck for s in sizes_of(places, settings.reduction)])


def hypernetwork(backbone: nn.Module, settings: HyperformerSettings, tasks: int) -> Hypernetwork:
    """Return a new hypernetwork for a backbone.

    Raises:
        ModelError: the backbone has no such places, or their widths do not fit.
    """
    plan = Plan(
        form=_form(settings),
        reduction=settings.reduction,
        embedding=settings.embedding,
        hidden=settings.hidden,
        projected=settings.projected,
        share=settings.share,
        rank=getattr(settings, "rank", None),
        released=getattr(settings, "kernels", "scaled") == "released",
        template_first=getattr(settings, "order", "kernel-first") == "template-first",
    )
    return Hypernetwork(find_places(backbone, settings.places), plan, tasks)


def check_hypernetwork(base: Base, config: FinetuneConfig) -> None:
    """Refuse places that the base lacks, widths that do not fit, and gradient checkpointing; see `Mode.check`.

    Raises:
        ModelError: names the key.
    """
    with torch.device("meta"):
        hypernetwork(base.backbone, config.settings, 1)
    if config.training.gradient_checkpointing:
        what = "a forward pass that is repeated in the backward pass would be of another task"
        raise ModelError(what, where="training.gradient_checkpointing", fix="switch it off")


def own_footprint(base: Base, config: FinetuneConfig) -> Footprint:
    """Count the weights of one task's adapters."""
    with torch.device("meta"):
        network = bottlenecks(base.backbone, config.settings)
    return modules_footprint(network, len(network.places))


def hyper_footprint(base: Base, config: FinetuneConfig) -> Footprint:
    """Count the hypernetwork of one task, and the numbers of its adapters.

    Each further task adds an embedding to what is trained.
    """
    with torch.device("meta"):
        network = hypernetwork(base.backbone, config.settings, 1)
        kept = sum(p.numel() for p in network.unwritten().parameters())
    return modules_footprint(network, len(network.places), kept=kept)


def train_own(bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
    """Train the adapters of one task; see `Mode.train`."""
    base, (task,) = bench.base, tasks
    with drawing(seed_of("bottleneck", config.seed)):
        network = bottlenecks(base.backbone, config.settings)
    with adding(bench, tasks, config, network) as session:
        session.fit(lambda task: TaskModel(base.backbone, task, base))
        return {task.name: modules_adapter(base, tasks, config, network.state_dict(), network.settings)}


def train_hypernetwork(bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
    """Train a hypernetwork on all tasks, and return the adapters that it writes for each; see `Mode.train`."""
    base, numbers = bench.base, {task.name: number for number, task in enumerate(tasks)}
    with drawing(seed_of("hypernetwork", config.seed)):
        network = hypernetwork(base.backbone, config.settings, len(tasks))
    with adding(bench, tasks, config, network) as session:
        session.fit(
            lambda task: ConditionedTaskModel(base.backbone, task, base, network=network, index=numbers[task.name])
        )
        written = {name: network.baked(number) for name, number in numbers.items()}
    return {n: modules_adapter(base, tasks, config, one.state_dict(), one.settings) for n, one in written.items()}


def baked_network(backbone: nn.Module, adapter: Adapter) -> Bottlenecks:
    """Return the network of an adapter, without its tensors.

    Raises:
        AdapterError: its record describes no adapters.
        ModelError: the backbone lacks a place.
    """
    settings: Mapping[str, Any] = adapter.metadata.modules or {}
    try:
        network = Bottlenecks.of(settings)
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        what, fix = "modules in tangora.json describes no bottleneck adapters", "copy the adapter's folder again"
        raise AdapterError(what, got=sorted(settings)[:6], where="tangora.json", fix=fix) from cause
    present = {name for name, _ in backbone.named_modules()}
    if absent := [path for place in network.places for path in (place.entry, place.exit) if path not in present]:
        raise ModelError("the base lacks a layer of the adapter", got=absent[0], fix="give the adapter's base")
    return network


def _form(settings: BottleneckKeys) -> Form:
    return Form(settings.form, settings.activation, settings.norm, settings.output_scale)
