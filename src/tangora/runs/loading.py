"""Load the base and the tasks of a recipe, with reports of progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tangora.config.recipe import Recipe
from tangora.progress import Progress
from tangora.runs.machine import machine_of
from tangora.support.machine import Machine
from tangora.tasks import Base, Task, load_base, load_task
from tangora.tasks.base import BUILTIN

if TYPE_CHECKING:
    from tangora.config.tasks import TaskSettings

__all__ = ["prepare"]


def prepare(
    recipe: Recipe,
    progress: Progress | None = None,
    machine: Machine | None = None,
    load: Callable[[TaskSettings, Base, int], Task] = load_task,
) -> tuple[Base, list[Task]]:
    """Load the base model and every task of a recipe, by default on the recipe's machine and with all rows."""
    progress = progress or Progress()
    if machine is None:
        machine = machine_of(recipe)
        machine.use_threads()
    for name in (recipe.base.model, getattr(recipe.base, "vision", "")):
        if name in BUILTIN:
            _pretrain(name, progress)
    progress.begin("load base and data", 1 + len(recipe.tasks))
    base = load_base(recipe.base, machine)
    progress.advance(detail=recipe.base.model)
    tasks = []
    for config in recipe.tasks:
        tasks.append(load(config, base, recipe.first_seed))
        progress.advance(detail=config.name)
    progress.end()
    return base, tasks


def _pretrain(name: str, progress: Progress) -> None:
    """Make a built-in model if it does not exist yet, which takes a minute, and report progress."""

    def on_step(done: int, steps: int, loss: float) -> None:
        if done == 1:
            progress.begin("pretrain the built-in model", steps)
        progress.update(done, f"loss {loss:.3f}")
        if done == steps:
            progress.end()

    BUILTIN[name](on_step)
