"""Train a LoRA, linearized or not, or a DoRA: shared by the modes of low-rank adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tangora.adapters.formats.lora.base_dependent import BaseWeights, adapted_digest, convert
from tangora.adapters.initial import DRAWN
from tangora.adapters.peft_layers import lora_layers
from tangora.errors import ModelError
from tangora.modes.outcome import adapter_of
from tangora.modes.preparation import adapt, check_lora, refuse_held, refuse_spread
from tangora.modes.session import training
from tangora.storage.architecture import stored_folder
from tangora.storage.checkpoint import open_checkpoint
from tangora.tangent.linearization import linear_factors
from tangora.tasks.model import TaskModel

if TYPE_CHECKING:
    from peft import PeftModel

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench
    from tangora.storage.checkpoint import Checkpoint
    from tangora.tasks import Base, Task

__all__ = ["check_dora", "train_dora", "train_lora"]


def train_lora(
    bench: Bench,
    tasks: Sequence[Task],
    config: FinetuneConfig,
    expand: Callable[[PeftModel], object] | None = None,
    model: type[TaskModel] = TaskModel,
) -> Mapping[str, Adapter]:
    """Train one LoRA on a task, or on several tasks at once; see `Mode.train`.

    Args:
        bench: base, folders and callbacks.
        tasks: one, or several that share the adapter.
        config: a resolved mode of a recipe.
        expand: linearizes the LoRA layers at φ₀, in place.
        model: the class of task model that is trained.

    Raises:
        ModelError: the settings do not fit the base, or a loss or weight is not finite.
    """
    base = bench.base
    with training(bench, tasks, config) as session:
        start = adapt(base.backbone, tasks[0].name if len(tasks) == 1 else None, config)
        if expand is not None:
            expand(start.model)
        session.fit(lambda task: model(base.backbone, task, base))
        updates = linear_factors(start.model)
    adapter = adapter_of(base, tasks, config, updates, start)
    return {task.name: adapter for task in tasks}


def check_dora(base: Base, config: FinetuneConfig) -> None:
    """Refuse rounded or spread weights, a base without files, and a start that is not the base.

    Raises:
        ModelError: names the key.
    """
    check_lora(base, config)
    refuse_held(base, config)
    refuse_spread(base, config)
    if config.lora.init not in DRAWN:  # the norms are those of W: with B₀ ≠ 0, training would not begin at the base
        fix = f"choose one of {', '.join(map(str, DRAWN))}"
        raise ModelError("DoRA begins at the base, with B = 0", got=config.lora.init, where="lora.init", fix=fix)
    _files(base)


def train_dora(bench: Bench, tasks: Sequence[Task], config: FinetuneConfig) -> Mapping[str, Adapter]:
    """Train one DoRA on a task, or on several tasks at once; see `Mode.train`.

    The updates depend on the base's weights, and read them from its files whenever they are needed.

    Args:
        bench: base, folders and callbacks.
        tasks: one, or several that share the adapter.
        config: a resolved mode of a recipe.

    Raises:
        ModelError: as `check_dora`; an embedding is targeted; or a loss or weight is not finite.
    """
    base = bench.base
    check_dora(base, config)
    with training(bench, tasks, config) as session:
        start = adapt(base.backbone, tasks[0].name if len(tasks) == 1 else None, config)
        if start.embeddings:
            fix = "leave it out of lora.target_modules"
            raise ModelError("DoRA is trained on linear layers only", got=min(start.embeddings), fix=fix)
        session.fit(lambda task: TaskModel(base.backbone, task, base))
        factors = linear_factors(start.model)
        norms = {
            site: layer.lora_magnitude_vector["default"].weight.detach().to("cpu", torch.float32, copy=True)
            for site, layer in lora_layers(start.model).items()
        }
    shapes = {site: update.shape for site, update in factors.items()}
    weights = BaseWeights(_files(base), shapes, frozenset(), start.config)
    updates, _ = convert(factors, norms, {}, weights)
    adapter = adapter_of(base, tasks, config, updates, replace(start, initial=None), adapted_digest(updates))
    return {task.name: adapter for task in tasks}


def _files(base: Base) -> Checkpoint:
    folder = stored_folder(base.config.model, base.config.revision)
    if folder is None:
        what = "DoRA depends on the base's weights, whose files are in no folder and not in the Hub's cache"
        raise ModelError(what, got=base.config.model, where="base.model", fix="give a folder, or train LoRA")
    return open_checkpoint(folder)
