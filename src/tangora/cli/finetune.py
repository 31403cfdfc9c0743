"""``tangora finetune``: one adapter of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tangora.cli import completion
from tangora.cli.command import Command
from tangora.cli.options import Options, OverwriteOption, RecipeArgument, SettingsOption
from tangora.cli.output import Output
from tangora.cli.recipes import task_config
from tangora.support.files import read_json, refuse_existing

__all__ = ["COMMAND", "FinetuneOptions", "finetune"]


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Options):
    """Which adapter of a recipe, and where it goes."""

    recipe: RecipeArgument
    task: Annotated[str, typer.Option("--task", help="One of the recipe's tasks.", autocompletion=completion.tasks)]
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the adapter goes.")]
    mode: Annotated[str, typer.Option("--mode", help="One of the recipe's modes.", autocompletion=completion.modes)] = (
        "lora"
    )
    settings: SettingsOption = None
    overwrite: OverwriteOption = False


def finetune(options: FinetuneOptions, output: Output) -> None:
    """Fine-tune one adapter. On several processes: [bold]accelerate launch -m tangora finetune ...[/bold]"""
    from tangora.config.recipe import load_recipe  # deferred: --help needs no pydantic

    recipe = load_recipe(options.recipe, options.settings or [])
    refuse_existing(options.out, options.overwrite)
    config = recipe.finetune_config(options.mode)
    chosen = task_config(recipe, options.task)
    from tangora.modes.finetuning import finetune as finetune_task  # deferred: imports torch
    from tangora.tasks import load_base, load_task

    base = load_base(recipe.base)
    task = load_task(chosen, base, recipe.seed)
    with output.progress() as progress:
        progress.begin(f"{options.mode} · {options.task}", config.training.steps)
        finetune_task(
            base,
            task,
            config,
            out=options.out,
            scratch=options.out.parent / f".{options.out.name}.training",
            overwrite=options.overwrite,
            on_step=lambda step, total, loss: progress.update(step, f"loss {loss:.3f}"),
        )
        progress.end()
    record = read_json(options.out / "training.json")
    document = {"adapter": options.out, "task": options.task, "mode": options.mode, "training": record}
    output.result(document, f"adapter: {options.out.resolve()}")


COMMAND = Command(finetune, panel="Recipes", example="tangora finetune quickstart --task digits --out adapters/digits")
