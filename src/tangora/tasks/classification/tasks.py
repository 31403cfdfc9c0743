"""Tasks with heads: they keep the settings that their readout needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tangora.errors import ModelError
from tangora.tasks.classification.base import of_base, start_
from tangora.tasks.classification.problems import problem_of
from tangora.tasks.classification.readouts import RowReadout, TagReadout
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from tangora.tasks.base import Base
    from tangora.tasks.classification.settings import ClassifierSettings, RowSettings, TokenSettings

__all__ = ["HeadTask", "finish", "row_readout", "tag_readout"]


@dataclass(frozen=True, kw_only=True, repr=False)
class HeadTask(Task):
    """A task with a head.

    Attributes:
        settings: of the task.
    """

    settings: ClassifierSettings


def finish(task: Task, config: ClassifierSettings, **changes: Any) -> HeadTask:
    """Return the task with its settings.

    Args:
        task: to finish.
        config: its settings.
        changes: of its attributes.
    """
    return HeadTask(**{**vars(task), **changes}, settings=config)


def row_readout(task: Task, base: Base) -> RowReadout:
    """Return the readout of a task with one target per row."""
    held, settings = of_base(base), _of(task).settings
    config: RowSettings = settings  # type: ignore[assignment]
    width = len(task.labels) if config.problem != "regression" else 1
    head = held.head(width)
    readout = RowReadout(problem_of(config), head, held.reads, width, base.config.family)
    start_(readout, head.last, config, held, task.labels)
    return readout


def tag_readout(task: Task, base: Base) -> TagReadout:
    """Return the readout of a task with a tag per word."""
    held, settings = of_base(base), _of(task).settings
    config: TokenSettings = settings  # type: ignore[assignment]
    head = held.head(len(task.labels))
    readout = TagReadout(task.labels, config.outside, head, held.reads, len(task.labels), base.config.family)
    start_(readout, head.last, config, held, task.labels)
    return readout


def _of(task: Task) -> HeadTask:
    if not isinstance(task, HeadTask):
        fix = "load the task for this base, with load_task"
        raise ModelError("the task has no settings of a head", got=task.family, where=f"task {task.name}", fix=fix)
    return task
