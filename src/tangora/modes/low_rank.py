"""Train a LoRA, linearized or not: shared by the modes of low-rank adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tangora.modes.outcome import adapter_of
from tangora.modes.preparation import adapt
from tangora.modes.session import training
from tangora.tangent.linearization import linear_factors
from tangora.tasks.model import TaskModel

if TYPE_CHECKING:
    from peft import PeftModel

    from tangora.adapters.adapter import Adapter
    from tangora.config.settings import FinetuneConfig
    from tangora.modes.contract import Bench
    from tangora.tasks import Task

__all__ = ["train_lora"]


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
