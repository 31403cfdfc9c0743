"""Tasks with maps: they keep the settings that their readout needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from tangora.errors import ModelError
from tangora.tasks.dense.base import of_base
from tangora.tasks.dense.problems import problem_of
from tangora.tasks.dense.readout import DenseReadout
from tangora.tasks.values import Split, Task

if TYPE_CHECKING:
    from tangora.tasks.base import Base
    from tangora.tasks.dense.settings import DenseBaseSettings, DenseSettings

__all__ = ["DenseTask", "dense_readout", "finish"]


@dataclass(frozen=True, kw_only=True, repr=False)
class DenseTask(Task):
    """A task with a map per row.

    Attributes:
        settings: of the task.
    """

    settings: DenseSettings


def finish(task: Task, config: DenseSettings) -> DenseTask:
    """Return the task with its settings, and with targets at the resolution of answers."""
    splits = {name: _at_labels(split) for name, split in task.splits.items()}
    return DenseTask(**{**vars(task), "splits": splits}, settings=config)


def dense_readout(task: Task, base: Base) -> DenseReadout:
    """Return a new readout of a task.

    Raises:
        ModelError: task or base are of another family.
    """
    held = of_base(base)
    if not isinstance(task, DenseTask):
        fix = "load the task for this base, with load_task"
        raise ModelError("the task has no settings of maps", got=task.family, where=f"task {task.name}", fix=fix)
    settings = cast("DenseBaseSettings", base.config)
    problem = problem_of(task.settings, len(task.labels))
    return DenseReadout(problem, held.stages, held.pixels, settings.width, settings.levels, base.config.family)


def _at_labels(split: Split) -> Split:
    maps = list(torch.as_tensor(split.inputs["labels"]).numpy()) if len(split) else []
    return Split(split.inputs, maps, cut=split.cut, longest=split.longest)
