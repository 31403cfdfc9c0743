"""``tangora finetune``: what it does with its options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tangora.cli.terminal import bars
from tangora.config.recipe import TaskConfig
from tangora.errors import RecipeError
from tangora.modes.contract import Bench, mode_of
from tangora.modes.finetuning import train_to
from tangora.modes.stage import stage_key
from tangora.support.files import refuse_existing
from tangora.support.validation import did_you_mean
from tangora.tasks import load_base, load_task

if TYPE_CHECKING:
    from tangora.config.recipe import Recipe

__all__ = ["finetune_recipe"]


def finetune_recipe(recipe: Recipe, mode: str, task: str | None, out: Path, overwrite: bool) -> None:
    """Train one adapter of a recipe, or all of a joint mode's; `tangora run` recognizes them as what it would train.

    Args:
        recipe: where base, tasks and modes are.
        mode: one of its modes.
        task: one of its tasks; None with a joint mode, which trains all of them.
        out: folder of the adapter; of a joint mode, the folder of one folder a task.
        overwrite: replace what is there.

    Raises:
        RecipeError: no such mode or task, or a task for a joint mode.
        TangoraError: as `tangora.finetune`.
    """
    config = recipe.finetune_config(mode)
    chosen = _chosen(recipe, mode, task, joint=mode_of(config).joint)
    folders = {one.name: out if task is not None else out / one.name for one in chosen}
    for folder in folders.values():
        refuse_existing(folder, overwrite)
    base = load_base(recipe.base)
    tasks = [load_task(one, base, recipe.seed) for one in chosen]
    with bars() as progress:
        progress.begin(f"{mode} · {'+'.join(folders)}", config.training.steps)
        scratch = out.parent / f".{out.name}.training"
        bench = Bench(base, scratch, on_step=lambda step, _, loss: progress.update(step, f"loss {loss:.3f}"))
        train_to(bench, tasks, config, folders, overwrite=overwrite, about={"stage": stage_key(base, tasks, config)})
        progress.end()
    for folder in folders.values():
        print(f"adapter: {folder.resolve()}")


def _chosen(recipe: Recipe, mode: str, task: str | None, *, joint: bool) -> list[TaskConfig]:
    known = {one.name: one for one in recipe.tasks}
    if joint:
        if task is not None:
            fix = "leave --task out"
            raise RecipeError(f"mode {mode} trains all tasks together", got=task, where="--task", fix=fix)
        return list(known.values())
    if task is None:
        fix = f"give one of {', '.join(known)}"
        raise RecipeError(f"mode {mode} trains one task at a time", where="--task", fix=fix)
    if task not in known:
        raise RecipeError("no such task", got=task, where="--task", fix=did_you_mean(task, list(known)))
    return [known[task]]
