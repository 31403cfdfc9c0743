"""Train the hypernetwork of ``pha`` on several tasks, and bake the adapter of each.

tasks ─▶ PrototypeNetwork ─ PrototypeMixture: tasks' losses + L_ins + L_pro ─▶ baked adapters, one per task
                 ▲                                                                │ with joint.* for new tasks
                 └── start: the earlier network, and the nearest prototype ◀──────┘
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.adapters.initial import seed_of
from tangora.config.pha import JointPart
from tangora.errors import ModelError
from tangora.modes.mixture import Mixture
from tangora.modes.modular import adding, modules_adapter, modules_footprint
from tangora.modes.preparation import refuse_spread
from tangora.modes.prototype_parts import joint_part, load_start, read_start
from tangora.modular.conditioned import ConditionedTaskModel
from tangora.modular.network import drawing
from tangora.modular.pha.losses import instance_loss, nearest_prototype, prototype_loss
from tangora.modular.pha.networks import ParallelAdapters, PrototypeNetwork
from tangora.modular.pha.places import halves_of
from tangora.modular.smoothing import smoothed
from tangora.tasks.model import TaskModel
from tangora.tasks.splits import sample
from tangora.tasks.values import evaluating

if TYPE_CHECKING:
    from jaxtyping import Float

    from tangora.config.pha import PrototypeSettings
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task
    from tangora.tasks.values import Batch

__all__ = [
    "PrototypeMixture",
    "PrototypeTaskModel",
    "adapters_of",
    "check_prototypes",
    "footprint_of",
    "new_network",
    "train_prototypes",
]

_FAMILIES = ("text-classification", "text-to-text", "text-zero-shot")
_REASONS = {
    "causal-lm": "a decoder reads a prompt with its answer, so that no half of it encodes the prompt alone",
    "token-classification": "prototypes are of rows, and here each word of a row has an answer",
}
_OTHERWISE = "rows are encoded by a mean over tokens, between two halves of a model of texts"
_ROWS = 64  # of a batch of a new task's encodings


class PrototypeTaskModel(ConditionedTaskModel):
    """A task model whose loss has smoothed labels; predictions have ordinary losses.

    Args:
        args, conditioned: as of `ConditionedTaskModel`.
        smoothing: ε of `tangora.modular.smoothing.smoothed`.
    """

    def __init__(self, *args: Any, smoothing: float, **conditioned: Any) -> None:
        super().__init__(*args, **conditioned)
        self._smoothing = smoothing

    def losses(self, inputs: Batch, labels: Tensor) -> Float[Tensor, " batch"]:
        """Return the smoothed loss of each row, for training."""
        if self._smoothing == 0:
            return super().losses(inputs, labels)
        logits = self.logits(inputs, labels)
        losses = self.readout.losses(logits, labels)
        return smoothed(losses, logits, labels, self.form.logits_over, self._smoothing)


class PrototypeMixture(Mixture):
    """Models of several tasks, whose loss is the mean over the rows + ``a L_ins + b L_pro`` (arXiv:2310.11670).

    Both are of all rows of the batch, whatever their tasks.

    Args:
        models: of the tasks, in the order of their prototypes.
        network: in the backbone.
        settings: with the weights a and b.
    """

    def __init__(self, models: Sequence[nn.Module], network: PrototypeNetwork, settings: PrototypeSettings) -> None:
        super().__init__(models)
        self._network = (network,)  # a tuple, so that the network stays a module of the backbone alone
        self._settings = settings

    def forward(self, parts: Sequence[Batch]) -> dict[str, Tensor]:
        """Return the ``loss`` of a batch."""
        (network,), settings = self._network, self._settings
        with network.collecting() as pooled:
            loss = super().forward(parts)["loss"]
        encodings = network.retriever(torch.cat(pooled)).float()
        tasks = torch.cat([part["task"] for part in parts]).to(encodings.device)
        if settings.instance_weight:
            loss = loss + settings.instance_weight * instance_loss(encodings, tasks, settings.temperature)
        if settings.prototype_weight:
            own, released = tasks + len(network.earlier), settings.contrast == "released"
            to_prototypes = prototype_loss(
                encodings, own, network.all_prototypes, settings.temperature, released=released
            )
            loss = loss + settings.prototype_weight * to_prototypes
        return {"loss": loss}


def check_prototypes(base: Base, config: FinetuneConfig) -> None:
    """Refuse bases without two halves of texts, checkpointed gradients, and a start that does not fit.

    Raises:
        ModelError, AdapterError: names the key.
    """
    family = base.config.family
    if family not in _FAMILIES:
        fix = f"choose a base of {', '.join(_FAMILIES)}, or another mode"
        what = f"mode {config.mode} cannot train this family: {_REASONS.get(family, _OTHERWISE)}"
        raise ModelError(what, got=family, where="base.family", fix=fix)
    halves_of(base.backbone)
    refuse_spread(base, config)
    if config.training.gradient_checkpointing:
        what = "activations are recomputed after the last task of a batch, with its adapters for all rows"
        raise ModelError(what, where="training.gradient_checkpointing", fix="switch it off")
    if config.settings.start is not None:
        read_start(base, config.settings)


def new_network(base: Base, settings: PrototypeSettings, tasks: int, seed: int) -> PrototypeNetwork:
    """Return a network at its initial values, which the seed determines; see `PrototypeNetwork`."""
    with drawing(seed_of("pha", seed)):
        return PrototypeNetwork(halves_of(base.backbone), tasks, settings.sizes)


def footprint_of(base: Base, config: FinetuneConfig) -> Footprint:
    """Count what a training with one task trains, and what the task's adapter contains; see `Mode.footprint`."""
    settings = cast("PrototypeSettings", config.settings)
    with torch.device("meta"):
        network = new_network(base, settings, 1, config.seed)
        own = ParallelAdapters(network.shapes())
        kept = network.kept() if settings.keep else {}
    if settings.start is not None:
        _freeze(network, settings)
    size = sum(p.numel() for p in own.parameters()) + sum(value.numel() for value in kept.values())
    return modules_footprint(network, len(own.shared) + len(own.generated), kept=size)


def train_prototypes(bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
    """Train on all tasks at once, and return each task's adapter; see `Mode.train`.

    Raises:
        ModelError: as `check_prototypes`; there is one prototype only and ``contrast: released``; or a loss or a
            weight is not finite.
    """
    base, settings = bench.base, cast("PrototypeSettings", config.settings)
    start = None if settings.start is None else read_start(base, settings)
    names = [task.name for task in tasks]
    earlier = [] if start is None else joint_part(start).tasks
    _refuse_prototypes(earlier, names, settings)
    network = new_network(base, settings, len(tasks), config.seed)
    if start is not None:
        load_start(network, start)
        _freeze(network, settings)
    with adding(bench, tasks, config, network) as session:
        nearest = [] if start is None else _from_nearest(network, base, tasks, settings.start_rows)
        common: dict[str, Any] = {"network": network, "smoothing": settings.smoothing}
        session.fit(
            lambda task: PrototypeTaskModel(base.backbone, task, base, index=names.index(task.name), **common),
            lambda models: PrototypeMixture(models, network, settings),
        )
        network.cpu()
    joint = JointPart(tasks=[*earlier, *names], sizes=settings.sizes) if settings.keep else None
    origins = {name: earlier[number] for name, number in zip(names, nearest, strict=bool(nearest))}
    return adapters_of(base, tasks, config, network, joint, origins)


def adapters_of(
    base: Base,
    tasks: Sequence[Task],
    config: FinetuneConfig,
    network: PrototypeNetwork,
    joint: JointPart | None,
    origins: Mapping[str, str],
) -> dict[str, Adapter]:
    """Bake the adapter of each task.

    Args:
        base, tasks, config: of the training.
        network: with a prototype for each task.
        joint: what is recorded of the network; None if the adapters shall not contain it.
        origins: new task -> the earlier one whose prototype it started from.

    Raises:
        ModelError: a generated weight is not finite.
    """
    made, kept = {}, {} if joint is None else network.kept()
    for number, task in enumerate(tasks):
        tensors = network.baked(number)
        if bad := [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]:
            fix = f"lower training.learning_rate (now {config.learning_rate:g})"
            where = f"task {task.name}, mode {config.mode}"
            raise ModelError("a generated weight is not finite", got=bad[0], where=where, fix=fix)
        shapes = network.shapes(joint=joint, nearest=origins.get(task.name))
        made[task.name] = modules_adapter(base, tasks, config, {**tensors, **kept}, shapes.model_dump(mode="json"))
    return made


def _freeze(network: PrototypeNetwork, settings: PrototypeSettings) -> None:
    """Train the new prototypes, and if the settings say so everything but the earlier ones, which have no rows."""
    network.requires_grad_(settings.tuned == "all")
    network.prototypes.requires_grad_(True)


def _refuse_prototypes(earlier: Sequence[str], names: Sequence[str], settings: PrototypeSettings) -> None:
    """Refuse a task with two prototypes, and a loss that has no negatives."""
    if twice := sorted(set(earlier) & set(names)):
        fix = "give the task another name, or train without start"
        raise ModelError("the earlier training has a prototype of this task", got=twice[0], where="start", fix=fix)
    if settings.contrast == "released" and settings.prototype_weight and len(earlier) + len(names) < 2:
        what, fix = "without the own prototype, one task has no prototype to compare with", "set contrast: ordinary"
        raise ModelError(what, got=len(names), where="contrast", fix=fix)


@torch.no_grad()
def _from_nearest(network: PrototypeNetwork, base: Base, tasks: Sequence[Task], rows: int) -> list[int]:
    """Set each new prototype to the earlier one that is nearest to its task; return the earlier ones' numbers."""
    device, found = next(base.backbone.parameters()).device, []
    for number, task in enumerate(tasks):
        model, split = TaskModel(base.backbone, task, base), task.splits["train"]
        chosen = split.select(sample(len(split), rows, seed=0))
        with evaluating(model), network.collecting() as pooled:
            for _, batch in chosen.batches(_ROWS, model.collator):
                on_device = {name: value.to(device) for name, value in batch.items()}
                model.logits({n: v for n, v in on_device.items() if n != "labels"}, on_device["labels"])
        found.append(nearest_prototype(network.retriever(torch.cat(pooled)), network.earlier))
        network.prototypes[number] = network.earlier[found[-1]]
    return found
