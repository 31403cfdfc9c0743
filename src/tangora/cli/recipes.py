"""Look-ups of commands in a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tangora.errors import ArgumentError

if TYPE_CHECKING:
    from tangora.config.recipe import Recipe, TaskSettings

__all__ = ["task_config"]


def task_config(recipe: Recipe, name: str) -> TaskSettings:
    """Return the task of that name.

    Raises:
        ArgumentError: the recipe has none.
    """
    tasks = {task.name: task for task in recipe.tasks}
    if name not in tasks:
        from tangora.support.validation import did_you_mean  # deferred: only for a wrong name

        fix = did_you_mean(name, list(tasks))
        raise ArgumentError("no such task in the recipe", got=name, where="--task", fix=fix)
    return tasks[name]
