"""A task of a decoder with its settings, which its readout needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tangora.errors import ModelError
from tangora.tasks.values import Task

if TYPE_CHECKING:
    from tangora.config.language import LanguageTask

__all__ = ["LanguageModelTask", "of_task"]


@dataclass(frozen=True, kw_only=True, repr=False)
class LanguageModelTask(Task):
    """A task of a decoder.

    Attributes:
        config: its settings: how answers are generated and read.
    """

    config: LanguageTask


def of_task(task: Task) -> LanguageModelTask:
    """Return the task as a `LanguageModelTask`.

    Raises:
        ModelError: it was made for a base of another family.
    """
    if not isinstance(task, LanguageModelTask):
        fix = "load the task for this base, with load_task"
        raise ModelError("the task is of another family", got=task.family, where=f"task {task.name}", fix=fix)
    return task
