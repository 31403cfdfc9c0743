"""Train HyperGrid on several tasks, and answer with each task's grids of gates.

HyperGrid ─ Session.fit ─▶ log-gates of each task ─▶ an adapter of kind ``modules``, d_r · d_c numbers a matrix
                                                       └─ as_weights ─▶ kind ``full``: the changes of the weights
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tangora.adapters.adapter import Adapter
from tangora.adapters.initial import seed_of
from tangora.config.hypergrid import GridsRecord
from tangora.errors import AdapterError, ModelError
from tangora.modes.modular import modules_adapter, modules_footprint, network_of
from tangora.modes.preparation import refuse_held, refuse_spread
from tangora.modes.rates import own_rate
from tangora.modes.session import training
from tangora.modular.conditioned import ConditionedTaskModel
from tangora.modular.hypergrid import Grids, HyperGrid, feed_forward, gated, layers_of, token_embedding
from tangora.modular.network import attached, drawing
from tangora.support.validation import validate
from tangora.updates.task_vector import Dense, Update

if TYPE_CHECKING:
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench, Footprint
    from tangora.tasks import Base, Task

__all__ = ["as_weights", "check_grids", "grids_footprint", "grids_network", "train_grids"]


def check_grids(base: Base, config: FinetuneConfig) -> None:
    """Refuse decoders, weights in half precision or on several devices, and grids that do not fit the weights.

    Raises:
        ModelError: names the setting.
    """
    settings = config.settings
    if base.config.family == "causal-lm" or type(base.backbone).__name__.endswith("ForCausalLM"):
        what = "HyperGrid is defined for encoders and encoder-decoders: its gates depend on a task that is given apart"
        what += " from the text, which a decoder reads in one sequence with its own answer"
        raise ModelError(what, got=type(base.backbone).__name__, where="base", fix="choose joint-lora or taps-joint")
    refuse_held(base, config)
    refuse_spread(base, config)
    if config.training.gradient_checkpointing:
        what, fix = "activations cannot be computed again: the gates would be those of the last task", "switch it off"
        raise ModelError(what, where="training.gradient_checkpointing", fix=fix)
    feed_forward(base.backbone, settings.target_modules, settings.grid)
    if settings.condition == "first-token" and token_embedding(base.backbone) is None:
        what, fix = "the base reads no tokens, so that a row has no first one", "set condition: task"
        raise ModelError(what, got=type(base.backbone).__name__, where="condition", fix=fix)
    _width(base, config)


def grids_footprint(base: Base, config: FinetuneConfig) -> Footprint:
    """Count what one task trains, and what its adapter contains: a grid for each matrix.

    The factors of the matrices are trained once for all tasks, and a task's embedding for each.
    """
    settings = config.settings
    layers = feed_forward(base.backbone, settings.target_modules, settings.grid)
    rows, columns = settings.grid
    tokens = [0] if settings.condition == "first-token" else None
    with drawing(0):
        network = HyperGrid(list(layers), settings, _width(base, config), 1, tokens)
    numbers = sum(p.numel() for p in base.backbone.parameters()) if settings.base == "train" else 0
    adapted = numbers or sum(layer.weight.numel() for layer in layers.values())
    counted = modules_footprint(network, len(layers), adapted, len(layers) * rows * columns + numbers)
    return replace(counted, trainable=counted.trainable + numbers)


def train_grids(bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
    """Train the factors of the gates on all tasks, and return the grids of each.

    Raises:
        ModelError: as `check_grids`; the tasks' first tokens do not tell them apart; or a loss or weight is not finite.
    """
    base, settings = bench.base, config.settings
    check_grids(base, config)
    sites = list(feed_forward(base.backbone, settings.target_modules))
    tokens = _first_tokens(tasks) if settings.condition == "first-token" else None
    with drawing(seed_of("hypergrid", config.seed)):
        network = HyperGrid(sites, settings, _width(base, config), len(tasks), tokens)
    number = {task.name: index for index, task in enumerate(tasks)}
    with training(bench, tasks, config, copy_weights=settings.base == "train") as session:
        with attached(base.backbone, network), _trained(base, config):
            session.fit(
                lambda task: ConditionedTaskModel(base.backbone, task, base, network=network, index=number[task.name])
            )
            grids = {name: network.grids(index) for name, index in number.items()}
        changes = session.changes() if settings.base == "train" else {}
    return {name: _adapter(base, tasks, config, grid, changes) for name, grid in grids.items()}


@contextlib.contextmanager
def _trained(base: Base, config: FinetuneConfig) -> Iterator[None]:
    """Train the base's weights too, at their own rate, if the settings say so."""
    if config.settings.base == "frozen":
        yield
        return
    chosen = [p for name, p in base.backbone.named_parameters() if p.is_floating_point() and not p.requires_grad]
    for parameter in chosen:
        parameter.requires_grad_(True)
    with own_rate(chosen, config.settings.base_rate):
        yield


def _adapter(
    base: Base,
    tasks: Sequence[Task],
    config: FinetuneConfig,
    grids: Mapping[str, Tensor],
    changes: Mapping[str, Tensor],
) -> Adapter:
    rows, columns = config.settings.grid
    record = GridsRecord(sites=list(grids), rows=rows, columns=columns, changes=list(changes))
    tensors = {f"grids.{site}.log_gates": grid for site, grid in grids.items()}
    tensors |= {f"changes.{name}": change for name, change in changes.items()}
    return modules_adapter(base, tasks, config, tensors, record.model_dump())


def _width(base: Base, config: FinetuneConfig) -> int:
    """Return the width of what describes a task."""
    if config.settings.condition == "first-token":
        embedding = token_embedding(base.backbone)
        assert embedding is not None
        return embedding.embedding_dim
    found = config.settings.width or getattr(getattr(base.backbone, "config", None), "hidden_size", None)
    if not isinstance(found, int):
        what, fix = "the base's hidden size is not known, which is the default", "set it"
        raise ModelError(what, got=type(base.backbone).__name__, where="width", fix=fix)
    return found


def _first_tokens(tasks: Sequence[Task]) -> list[int]:
    """Return the token with which all rows of a task begin, for each task.

    Raises:
        ModelError: rows of a task begin with different tokens, or two tasks with the same one.
    """
    found: dict[int, str] = {}
    fix = "begin each task's template with a word of its own, or set condition: task"
    for task in tasks:
        tokens = {int(ids[0]) for ids in task.splits["train"].inputs["input_ids"]}
        if len(tokens) != 1:
            what = f"the rows of {task.name} begin with {len(tokens)} different tokens"
            raise ModelError(what, where="condition: first-token", fix=fix)
        (token,) = tokens
        if token in found:
            what = f"{found[token]} and {task.name} begin with the same token, and would have the same gates"
            raise ModelError(what, got=token, where="condition: first-token", fix=fix)
        found[token] = task.name
    return list(found)


def grids_network(model: nn.Module, adapter: Adapter) -> Grids:
    """Return the network of an adapter's settings, without its tensors.

    Raises:
        AdapterError: ``tangora.json`` does not describe one.
        ModelError: the model lacks a parameter that is changed.
    """
    if not adapter.metadata.modules:
        raise AdapterError("tangora.json does not say which layers have grids", where="modules", fix="copy it again")
    record = validate(GridsRecord, adapter.metadata.modules, "tangora.json, modules", AdapterError)
    own = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    if absent := [name for name in record.changes if name not in own]:
        fix = "give the base model that the adapter was made for"
        raise ModelError("the model has no such parameter", got=type(model).__name__, where=absent[0], fix=fix)
    shapes = {name: own[name] for name in record.changes}
    return Grids(record.sites, (record.rows, record.columns), shapes)


@torch.no_grad()
def as_weights(adapter: Adapter, model: nn.Module) -> Adapter:
    """Return the same function as an adapter of kind ``full``: the changes ``W ∘ repeat(H) − W`` of the weights.

    Choose it to export a task's network as a checkpoint, or to fuse it with other changes of weights. The sum of base
    and change differs from the gated weight by the rounding of float32.

    Args:
        adapter: of mode ``hypergrid``.
        model: its base, which stays as it is.

    Raises:
        AdapterError: the adapter is not one of grids, or its tensors do not fit its settings.
        ModelError: the model lacks a gated layer.
    """
    network = network_of(grids_network, model, adapter)
    changes = {name: network.changes.get_parameter(name).detach() for name in network.changed}
    for site, layer in layers_of(model, network.sites).items():
        before, name = layer.weight.detach().float().cpu(), f"{site}.weight"
        after = gated(before + changes.get(name, torch.zeros(())), network.log_gates(site).exp())
        changes[name] = after - before
    updates: dict[str, Update] = {name: Dense(change) for name, change in changes.items() if bool(change.any())}
    metadata = adapter.metadata.model_copy(update={"kind": "full", "train": "full", "modules": None})
    return replace(adapter, updates=updates, metadata=metadata)
