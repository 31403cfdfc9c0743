"""Train with a gate per layer (TAPS, arXiv:2203.16708): shared by its modes.

gate_lora_ or gated_weights ─▶ gates ─ fit: penalty, rate of the gates ─▶ closed layers are left out of the adapter
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import TrainerCallback

from tangora.adapters.adapter import Adapter
from tangora.adapters.initial import DRAWN
from tangora.adapters.metadata import GatesInfo
from tangora.errors import ModelError
from tangora.modes.contract import Footprint
from tangora.modes.outcome import adapter_of
from tangora.modes.preparation import adapt, check_lora, lora_footprint, refuse_held, refuse_spread
from tangora.modes.rates import at_own_rate
from tangora.modes.session import Session, training
from tangora.modular.gated_lora import gate_lora_
from tangora.modular.gated_weights import gated_weights, is_norm, weight_groups
from tangora.modular.layer_gates import RELEASED_GATES, LayerGate, Penalty
from tangora.tangent.linearization import linear_factors
from tangora.tasks.model import TaskModel
from tangora.updates.task_vector import Dense, LowRank

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from tangora.config.gated import LayerGateSettings
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench
    from tangora.modes.preparation import Start
    from tangora.tasks import Base, Task

__all__ = [
    "check_gated_lora",
    "check_gated_weights",
    "fit",
    "fit_gated_lora",
    "gated_lora_footprint",
    "gated_weights_footprint",
    "refuse_all_closed",
    "train_gated_lora",
    "train_gated_weights",
    "with_gates",
]


class _GatedTaskModel(TaskModel):
    """A task model whose loss in training includes the penalty of the gates."""

    penalty: Penalty

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the loss with the penalty, in training; see `TaskModel.forward`."""
        returned = super().forward(labels, **inputs)
        if self.losses_only and labels is not None:
            returned["loss"] = returned["loss"] + self.penalty()
        return returned


class _PenaltyFrom(TrainerCallback):
    """Activate a penalty from a step on; the trainer knows its step also after it has resumed."""

    def __init__(self, penalty: Penalty, step: int) -> None:
        self.penalty, self.step = penalty, step

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.penalty.active = state.global_step >= self.step


def fit(session: Session, gates: Mapping[str, LayerGate], model_of: Callable[[Task], TaskModel] | None = None) -> None:
    """Train what requires gradients in an open session, with the penalty of the gates.

    Args:
        session: of a mode with `LayerGateSettings`.
        gates: layer -> gate.
        model_of: as of `Session.fit`; by default the base's task models.
    """
    base, settings = session.bench.base, session.config.settings
    at_own_rate([gate.value for gate in gates.values()], settings.gate_rate)
    penalty = Penalty(gates, settings.penalty, RELEASED_GATES if settings.variant == "released" else None)
    first = round(settings.free * session.config.training.steps)

    def penalized(task: Task) -> TaskModel:
        plain = model_of(task) if model_of is not None else TaskModel(base.backbone, task, base)
        model = _GatedTaskModel(base.backbone, task, base, plain.readout)
        model.penalty = penalty
        return model

    watched = replace(session, callbacks=(*session.callbacks, _PenaltyFrom(penalty, first)))
    watched.fit(penalized)


def check_gated_lora(base: Base, config: FinetuneConfig) -> None:
    """Refuse what LoRA refuses, and a start with B₀ ≠ 0.

    Raises:
        ModelError: names the setting.
    """
    check_lora(base, config)
    if config.lora.init not in DRAWN:  # a closed layer would not be the base's, but the base without s·B₀A₀
        fix = f"choose one of {', '.join(map(str, DRAWN))}"
        raise ModelError("gated layers begin at the base, with B = 0", got=config.lora.init, where="lora.init", fix=fix)


def gated_lora_footprint(base: Base, config: FinetuneConfig) -> Footprint:
    """Count the factors and a gate of every layer; an adapter has the factors of open layers only."""
    plain = lora_footprint(base, config)
    return replace(plain, trainable=plain.trainable + plain.sites)


def train_gated_lora(bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
    """Train a LoRA with a gate per layer on a task, and return the adapter of its open layers.

    Raises:
        ModelError: the settings do not fit the base; a loss or weight is not finite; or every gate is closed.
    """
    (task,) = tasks
    with training(bench, tasks, config) as session:
        start, gates, updates = fit_gated_lora(session)
    refuse_all_closed(updates, gates, config)
    adapter = adapter_of(bench.base, tasks, config, updates, _of_sites(start, updates))
    return {task.name: with_gates(adapter, gates, bench, task, config.settings)}


def _of_sites(start: Start, sites: Collection[str]) -> Start:
    """Return a start without the other sites, whose layers peft's configuration would name by their ends."""
    initial = {site: factors for site, factors in (start.initial or {}).items() if site in sites}
    selection = {} if len(initial) == len(start.initial or {}) else {"target_modules": None}  # saving names every site
    return replace(start, initial=initial, config={**start.config, **selection})


def fit_gated_lora(
    session: Session, model_of: Callable[[Task], TaskModel] | None = None
) -> tuple[Start, dict[str, LayerGate], dict[str, LowRank]]:
    """Put gated LoRA layers into the base of a session, and train them.

    Returns:
        the start, the gates, and the updates of open layers.
    """
    base, config, settings = session.bench.base, session.config, session.config.settings
    start = adapt(base.backbone, session.tasks[0].name, config)
    gates = gate_lora_(start.model, settings.gate_start, settings.threshold)
    fit(session, gates, model_of)
    updates = {site: u for site, u in linear_factors(start.model).items() if gates[site].is_open}
    return start, gates, updates


def check_gated_weights(base: Base, config: FinetuneConfig) -> None:
    """Refuse weights in half precision or on several devices, and a model without a layer for a gate.

    Raises:
        ModelError: names the setting.
    """
    refuse_held(base, config)
    refuse_spread(base, config)
    if not weight_groups(base.backbone, config.settings.layers):
        what, fix = "the model has no linear layer and no convolution", "set layers: all"
        raise ModelError(what, got=type(base.backbone).__name__, where="layers", fix=fix)


def gated_weights_footprint(base: Base, config: FinetuneConfig) -> Footprint:
    """Count the gated parameters, a gate for each layer, and the parameters of normalization layers if trained."""
    settings = config.settings
    groups = weight_groups(base.backbone, settings.layers)
    gated = {id(p): p for group in groups.values() for module, n in group for p in [getattr(module, n)]}
    free = _norm_parameters(base) if settings.norms == "train" else []
    numbers = sum(p.numel() for p in [*gated.values(), *free])
    return Footprint(len(gated) + len(free), numbers + len(groups), 4 * numbers, numbers)


def train_gated_weights(bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
    """Train weights in place with a gate per layer, restore them, and return the changes of open layers and norms.

    Raises:
        ModelError: as `train_gated_lora`.
    """
    (task,), base, settings = tasks, bench.base, config.settings
    groups = weight_groups(base.backbone, settings.layers)
    with training(bench, tasks, config, copy_weights=True) as session:
        for parameter in _norm_parameters(base) if settings.norms == "train" else ():
            parameter.requires_grad_(True)
        with gated_weights(groups, settings.gate_start, settings.threshold) as gates:
            fit(session, gates)
        updates = {name: Dense(change) for name, change in session.changes().items()}
    refuse_all_closed(updates, gates, config)
    adapter = adapter_of(base, tasks, config, updates)
    return {task.name: with_gates(adapter, gates, bench, task, settings)}


def _norm_parameters(base: Base) -> list[Any]:
    norms = [module for module in base.backbone.modules() if is_norm(module)]
    return [p for norm in norms for p in norm.parameters(recurse=False) if p.is_floating_point()]


def refuse_all_closed(updates: Collection[str], gates: Mapping[str, LayerGate], config: FinetuneConfig) -> None:
    """Refuse to make an adapter that changes nothing.

    Raises:
        ModelError: says what to do.
    """
    if updates:
        return
    settings: LayerGateSettings = config.settings
    largest = max(gate.value.item() for gate in gates.values())
    what = f"all {len(gates)} gates closed, so the adapter would change nothing (the largest is {largest:.3g})"
    fix = "lower penalty; or raise penalty_free, so that the layers learn before they have to pay"
    raise ModelError(what, got=f"penalty {settings.penalty:g}", where=f"mode {config.mode}", fix=fix)


def with_gates(
    adapter: Adapter, gates: Mapping[str, LayerGate], bench: Bench, task: Task, settings: LayerGateSettings
) -> Adapter:
    """Record the gates in the metadata of an adapter and in the record of its training, and return the adapter."""
    info = GatesInfo(
        threshold=settings.threshold,
        values={name: gate.value.item() for name, gate in gates.items()},
        closed=[name for name, gate in gates.items() if not gate.is_open],
    )
    bench.records[task.name]["gates"] = info.model_dump()
    return replace(adapter, metadata=adapter.metadata.model_copy(update={"gates": info}))
